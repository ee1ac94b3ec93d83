"""wht.metal: bit-identical to the reference in the simulator, which never contracts to FMA."""

import torch

from tqlab import ops

from . import DTYPES, case, gaussian


def rotates(rotation: str, dtype: torch.dtype, inverse: bool) -> None:
    """Odd numbers of groups leave the last threadgroup short."""
    n = int(rotation.removeprefix("wht"))
    for rows in (1, 5):
        x = gaussian(rows, n, seed=rows, dtype=dtype)
        kept = x.clone()
        got = ops.wht(x, rotation, inverse)
        with ops.reference():
            expected = ops.wht(x, rotation, inverse)
        assert torch.equal(got, expected), "rotation differs from the reference"
        assert torch.equal(x, kept), "the input changed"


CASES = [
    case(rotates, rotation, dtype, inverse)
    for rotation in ("wht32", "wht64", "wht128")
    for dtype in DTYPES
    for inverse in (False, True)
]
