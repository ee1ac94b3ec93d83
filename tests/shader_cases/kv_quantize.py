"""kv_quantize.metal: the reference's bytes, for ordinary and for awkward rows."""

import torch

from tqlab import formats, ops
from tqlab.ops.rows import QUANTIZED

from . import DTYPES, case, gaussian


def awkward(n: int) -> torch.Tensor:
    """Ties, zeros of both signs, single spikes, offsets, and sizes from vanishing to infinite norm.

    Shapes: -> float32 [12, n]
    """
    g, j = gaussian(n, seed=3), torch.arange(n)
    rows = [
        torch.full((n,), 0.37),
        torch.zeros(n) * g,
        torch.where(j % 32 < 16, 0.0, g),
        torch.eye(n)[n - 2] * -1.5,
        100 + g,
        torch.where(j % 2 == 0, 1.0, -1.0) * 0.25,
        (j % 5 - 2).float(),
        1e-9 * g,
        1e-14 * g,
        2e4 * g,
        1e25 * g,
        (j - 64) / 2 + 0.5,
    ]
    return torch.stack(rows)


def differing(got: torch.Tensor, expected: torch.Tensor, block_bytes: int) -> int:
    """Number of blocks that are not the same."""
    return int((got != expected).view(-1, block_bytes).any(1).sum())


def quantizes(format: str, x: torch.Tensor) -> None:
    fmt, kept = formats.get(format), x.clone()
    got = ops.quantize_rows(x, format)
    wrong = differing(got, fmt.quantize(x), fmt.block_bytes)
    assert wrong == 0, f"{wrong} of {got.numel() // fmt.block_bytes} blocks differ"
    assert torch.equal(x.nan_to_num(), kept.nan_to_num()), "the input changed"


def ordinary(format: str, dtype: torch.dtype) -> None:
    """Seven groups: the last threadgroup of the grid is short."""
    n = formats.get(format).block_size
    quantizes(format, gaussian(7, n, seed=5, dtype=dtype) * 3)


def edges(format: str) -> None:
    quantizes(format, awkward(128))


def order_of_sums(format: str) -> None:
    """Rows whose bytes change when the lanes are added in another order."""
    rows = [617, 12894, 23044, 23888, 28696, 31746, 37271]
    quantizes(format, gaussian(40000, 128, seed=1)[rows])


def both_halves(format: str) -> None:
    """A simdgroup takes two blocks of 64: neighbours a thousand times longer show a mix-up."""
    size = torch.tensor([1.0, 1e3, 1.0, 1e-3, 1.0])[:, None]
    quantizes(format, gaussian(5, 64, seed=6) * size)


CASES = [case(ordinary, f, dtype) for f in QUANTIZED for dtype in DTYPES]
CASES += [case(edges, f) for f in QUANTIZED] + [case(order_of_sums, "turbo2")]
CASES += [case(both_halves, f) for f in QUANTIZED if f.endswith("_h64")]
