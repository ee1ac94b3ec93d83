"""tq_matmul.metal: more than 8 tokens, with edges in every direction."""

import torch

from tqlab import ops

from . import DTYPES, case, gaussian
from .linear import GOLDEN, TYPES, close, dense, golden_product, weights

SHAPES = ((9, 1, 32), (32, 64, 64), (33, 67, 96), (64, 130, 64))  # tokens, outputs, inputs


def multiplies(type: str, dtype: torch.dtype, n: int, n_out: int, n_in: int) -> None:
    w, x = weights(type, n_out, n_in, seed=n), gaussian(n, n_in, seed=n, dtype=dtype)
    kept = x.clone()
    close(ops.tq_linear(x, w, type), x, dense(type, w))
    assert torch.equal(x, kept), "the input changed"


CASES = [
    *(case(multiplies, t, torch.float32, *shape) for t in TYPES for shape in SHAPES),
    *(case(multiplies, t, dtype, 33, 67, 96) for t in TYPES for dtype in DTYPES[1:]),
    *(case(golden_product, GOLDEN[2], type) for type in TYPES),
]
