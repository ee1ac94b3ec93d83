"""tq_matvec.metal: 1 to 8 columns, odd rows, rows longer and shorter than a simdgroup."""

import torch

from tqlab import ops

from . import DTYPES, case, gaussian
from .linear import GOLDEN, TYPES, close, dense, golden_product, weights

SHAPES = ((1, 32), (3, 64), (6, 288), (13, 544))  # 544 / 8 = 68 chunks: two steps of 32 and a rest


def multiplies(type: str, dtype: torch.dtype) -> None:
    for n in range(1, 9):
        n_out, n_in = SHAPES[n % 4]
        w, x = weights(type, n_out, n_in, seed=n), gaussian(n, n_in, seed=n, dtype=dtype)
        kept = x.clone()
        close(ops.tq_linear(x, w, type), x, dense(type, w))
        assert torch.equal(x, kept), "the input changed"


def shares_a_rotation(type: str) -> None:
    """Rotated once outside: the same bits as rotated inside, and batch axes are kept."""
    w, x = weights(type, 13, 544), gaussian(2, 3, 544)
    inside = ops.tq_linear(x, w, type)
    assert inside.shape == (2, 3, 13)
    assert torch.equal(ops.tq_linear(ops.wht(x, "wht32"), w, type, True), inside)


CASES = [
    *(case(multiplies, type, dtype) for type in TYPES for dtype in DTYPES),
    *(case(shares_a_rotation, type) for type in TYPES),
    *(case(golden_product, name, type) for name in GOLDEN[:2] for type in TYPES),
]
