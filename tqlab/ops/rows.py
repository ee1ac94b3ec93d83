"""Ops over rows: rotation, quantisation, dequantisation, embedding look-up."""

import torch
from torch import Tensor

from .. import metal
from .. import rotation as rotations
from .base import FLOATS, check, check_tensor, define


# ---- wht: rotate groups of the last axis
def wht(x: Tensor, rotation: str, inverse: bool = False) -> Tensor:
    """Signed Walsh-Hadamard rotation ("wht32" or "wht128") of every group of the last axis.

    Shapes: float32, float16 or bfloat16 [..., n], n % group == 0 -> the same, computed in float32
    Error: float32 equals rotation.rotate bit for bit without FMA contraction; else one rounding.
    """
    turn = rotations.unrotate if inverse else rotations.rotate
    return turn(x, rotation).to(x.dtype)


def _wht_fake(x, rotation, inverse=False):
    check_tensor("x", x, FLOATS)
    check(rotation in ("wht32", "wht128"), f"rotation is wht32 or wht128, not {rotation!r}")
    n = rotations.group_size(rotation)
    check(x.dim() > 0, "x must have at least one axis")
    check(x.shape[-1] % n == 0, f"x: {rotation} needs a multiple of {n} values, got {x.shape[-1]}")
    return torch.empty_like(x)


def _wht_shader(out, x, rotation, inverse=False):
    n = rotations.group_size(rotation)
    kernel = f"wht{'_inverse' if inverse else ''}_{metal.dtype_name(x.dtype)}_{n}"
    metal.launch("wht", kernel, x, out, threads=x.numel() // n * metal.LANES)


wht = define(wht, fake=_wht_fake, shader=_wht_shader, shaders=("wht",))
