"""What the cases of tq_matvec, tq_matmul and tq_moe share: data and the tolerance."""

from pathlib import Path

import numpy as np
import torch

from tqlab import formats, ops

from . import gaussian

DATA = Path(__file__).parents[1] / "data"

TYPES = ("tq3_1s", "tq4_1s")
GOLDEN = ("mm_24x256_n1", "mm_24x256_n3", "mm_16x576_n9")
# test-backend-ops allows 5e-4. The fork's rounding of activations to q8_0 alone gives 6e-5 to 9e-5
# on these Gaussian vectors (1.27e-5 on uniform ones).
FORK_LIMIT, FORK_NMSE = 5e-4, 1e-4
FLOAT_NMSE = 1e-12  # float sums of up to 576 products in another order


def weights(type: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """Packed rows whose scales differ from half-block to half-block, so that a mix-up shows."""
    w = gaussian(*shape, seed=seed)
    halves = w.view(*shape[:-1], -1, 16)
    spread = torch.arange(halves.shape[-2]) % 5 + 1.0
    return formats.get(type).quantize((halves * spread[:, None]).view(shape))


def dense(type: str, w: torch.Tensor) -> torch.Tensor:
    """The matrix that the bytes mean, float64."""
    return formats.get(type).dequantize(w).double()


def nmse(y: torch.Tensor, truth: torch.Tensor) -> float:
    """Squared error over squared truth (test-backend-ops divides by the tested side)."""
    return float(((y.double() - truth).square().sum() / truth.square().sum()).item())


def close(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> None:
    """y against x w^T: the largest error below twice that of torch in the same dtype, + atol.

    Shapes: y dtype [n, out], x dtype [n, in], w float64 [out, in]
    """
    truth = x.double() @ w.T
    atol = 2e-6 * float(truth.abs().max())
    same_dtype = (x @ w.to(x.dtype).T).double()
    allowed = 2 * float((same_dtype - truth).abs().max()) + atol
    worst = float((y.double() - truth).abs().max())
    assert y.shape == truth.shape, f"shape {tuple(y.shape)}"
    assert y.dtype == x.dtype, f"dtype {y.dtype}"
    assert worst <= allowed, f"error {worst:.3g}, allowed {allowed:.3g}, NMSE {nmse(y, truth):.3g}"
    if x.dtype == torch.float32 and y.numel() > 16:  # fewer may all be near zero
        assert nmse(y, truth) < FLOAT_NMSE, f"NMSE {nmse(y, truth):.3g}"


def golden(name: str, type: str) -> dict[str, torch.Tensor]:
    """The fork's vectors: x, packed bytes, the fork's product y, and x as the fork rounds it."""
    with np.load(DATA / "formats-golden.npz") as arrays:
        parts = {"x": "x", "rounded": "x_q8_0_bytes", "w": f"{type}/bytes", "y": f"{type}/y"}
        found = {key: torch.from_numpy(arrays[f"{name}/{part}"]) for key, part in parts.items()}
    found["rounded"] = formats.get("q8_0").dequantize(found["rounded"])
    return found


def golden_product(name: str, type: str) -> None:
    """tq_linear against the fork, with the activations it rounded to q8_0 and with the original."""
    g = golden(name, type)
    error = nmse(ops.tq_linear(g["rounded"], g["w"], type), g["y"].double())
    assert error < FLOAT_NMSE, f"NMSE {error:.3g} on the fork's own activations"
    error = nmse(ops.tq_linear(g["x"], g["w"], type), g["y"].double())
    assert error < FORK_NMSE < FORK_LIMIT, f"NMSE {error:.3g}"
