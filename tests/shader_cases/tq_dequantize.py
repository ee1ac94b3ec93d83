"""tq_dequantize.metal: rows by id, repeated and out of order, both domains; ids outside are NaN."""

import torch

from tqlab import formats, ops

from . import DTYPES, case

FORMATS = ("tq3_1s", "tq4_1s")
ROWS, BLOCKS = 5, 3


def packed(format: str) -> torch.Tensor:
    """Random codes, all four bytes of scales finite and different: uint8 [ROWS, row bytes]."""
    fmt = formats.get(format)
    generator = torch.Generator().manual_seed(12)
    n = ROWS * BLOCKS
    b = torch.randint(0, 256, (n, fmt.block_bytes), generator=generator, dtype=torch.uint8)
    scales = torch.rand(n, 2, generator=generator).half() + 0.25
    b[:, :4] = scales.view(torch.uint8).view(n, 4)
    return b.view(ROWS, -1)


def looks_up(format: str, dtype: torch.dtype, rotated: bool) -> None:
    w, ids = packed(format), torch.tensor([[4, 0, 2], [2, 3, 4]])
    got = ops.embedding_rows(w, ids, format, rotated, dtype)
    expected = formats.get(format).dequantize(w[ids.flatten()], rotated).to(dtype)
    assert got.shape == (2, 3, BLOCKS * 32)
    assert torch.equal(got.view_as(expected), expected)


def ids_outside(format: str) -> None:
    w = packed(format)
    got = ops.embedding_rows(w, torch.tensor([-1, 4, ROWS, 2**32]), format)
    assert got[[0, 2, 3]].isnan().all()
    assert torch.equal(got[1], formats.get(format).dequantize(w[4]))


def unpacks(format: str) -> None:
    w = packed(format)
    got = ops.dequantize_rows(w, format)
    assert torch.equal(got, formats.get(format).dequantize(w))


CASES = [case(looks_up, f, dtype, r) for f in FORMATS for dtype in DTYPES for r in (False, True)]
CASES += [case(function, f) for f in FORMATS for function in (ids_outside, unpacks)]
