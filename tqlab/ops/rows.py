"""Ops over rows: rotation, quantisation, dequantisation, embedding look-up."""

import torch
from torch import Tensor

from .. import formats, metal
from .. import rotation as rotations
from .base import FLOATS, check, check_tensor, define


# ---- wht: rotate groups of the last axis
def wht(x: Tensor, rotation: str, inverse: bool = False) -> Tensor:
    """Signed Walsh-Hadamard rotation ("wht32", "wht64", "wht128") of every group of the last axis.

    Shapes: float32, float16 or bfloat16 [..., n], n % group == 0 -> the same, computed in float32
    Error: float32 equals rotation.rotate bit for bit without FMA contraction; else one rounding.
    """
    turn = rotations.unrotate if inverse else rotations.rotate
    return turn(x, rotation).to(x.dtype).contiguous()  # as the shader, and the fake, give it


def _wht_fake(x, rotation, inverse=False):
    check_tensor("x", x, FLOATS)
    known = ("wht32", "wht64", "wht128")
    check(rotation in known, f"rotation is one of {', '.join(known)}, not {rotation!r}")
    n = rotations.group_size(rotation)
    check(x.dim() > 0, "x must have at least one axis")
    check(x.shape[-1] % n == 0, f"x: {rotation} needs a multiple of {n} values, got {x.shape[-1]}")
    return torch.empty_like(x)


def _wht_shader(out, x, rotation, inverse=False):
    n = rotations.group_size(rotation)
    groups, lanes = x.numel() // n, n if n == 32 else n // 4
    kernel = f"wht{'_inverse' if inverse else ''}_{metal.dtype_name(x.dtype)}_{n}"
    sizes = [] if n == 32 else [groups]
    metal.launch("wht", kernel, x, out, *sizes, threads=_simdgroups(groups * lanes))


def _simdgroups(threads: int) -> int:
    """Threads of a grid of whole simdgroups."""
    return -(-threads // metal.LANES) * metal.LANES


wht = define(wht, fake=_wht_fake, shader=_wht_shader, shaders=("wht",))


# ---- quantize_rows: pack the last axis
_TURBO = ("turbo2", "turbo3", "turbo4", "turbo4_lm", "turbo2_h64", "turbo3_h64", "turbo4_lm_h64")
_TRELLIS = tuple(f"trellis{bits}{heads}" for bits in (2, 3, 4) for heads in ("", "_h64"))
QUANTIZED = (*_TURBO, "q8_0", "q4_0")  # by a shader; every other format by its reference
DEQUANTIZED = (*QUANTIZED, *_TRELLIS)  # alike


def quantize_rows(x: Tensor, format: str) -> Tensor:
    """Pack the last axis into blocks of `format`.

    Shapes: float32, float16 or bfloat16 [..., n], n % block_size == 0 -> uint8 [..., nbytes(n)]
    Error: the reference's bytes without FMA contraction; with it at most 0.02 % of blocks differ,
    by a borderline index (spec formats).
    Formats outside QUANTIZED (floats, tq, trellis) are packed by the reference on every device.
    """
    return formats.get(format).quantize(x)


def _quantize_fake(x, format):
    fmt = formats.get(format)
    check_tensor("x", x, FLOATS)
    check(x.dim() > 0, "x must have at least one axis")
    n = x.shape[-1]
    check(n % fmt.block_size == 0, f"x: {format} needs a multiple of {fmt.block_size}, got {n}")
    return x.new_empty(*x.shape[:-1], fmt.nbytes(n), dtype=torch.uint8)


def _quantize_shader(out, x, format):
    fmt = formats.get(format)
    if format not in QUANTIZED:
        out.copy_(fmt.quantize(x))
    elif x.numel():
        blocks = x.numel() // fmt.block_size
        lanes, sizes = (fmt.block_size // 4, [blocks]) if fmt.rotation else (fmt.block_size, [])
        kernel = f"quantize_{format}_{metal.dtype_name(x.dtype)}"
        metal.launch("kv_quantize", kernel, x, out, *sizes, threads=_simdgroups(blocks * lanes))


quantize_rows = define(
    quantize_rows, fake=_quantize_fake, shader=_quantize_shader, shaders=("kv_quantize",)
)


# ---- dequantize_rows: unpack the last axis
def dequantize_rows(
    b: Tensor, format: str, rotated: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Unpack blocks of `format`, in the original domain or as stored (`rotated`).

    Shapes: uint8 [..., nbytes(n)] -> float32, float16 or bfloat16 [..., n]
    Error: equals the reference bit for bit without FMA contraction.
    Formats outside DEQUANTIZED (floats) are unpacked by the reference on every device.
    """
    return formats.get(format).dequantize(b, rotated).to(dtype)


def _dequantize_fake(b, format, rotated=False, dtype=torch.float32):
    return b.new_empty(*b.shape[:-1], _values("b", b, format, dtype), dtype=dtype)


def _values(name: str, b: Tensor, format: str, dtype: torch.dtype) -> int:
    """Values in the last axis of packed rows, after all checks."""
    fmt = formats.get(format)
    check_tensor(name, b, torch.uint8)
    check(b.dim() > 0, f"{name} must have at least one axis")
    check(dtype in FLOATS, f"dtype must be float32, float16 or bfloat16, not {dtype}")
    n = b.shape[-1]
    check(
        n % fmt.block_bytes == 0, f"{name}: {format} needs whole {fmt.block_bytes} bytes, got {n}"
    )
    aligned = b.storage_offset() % 4 == 0
    check(
        aligned, f"{name} starts {b.storage_offset()} bytes into its storage, not a multiple of 4"
    )
    return n // fmt.block_bytes * fmt.block_size


def _dequantize_shader(out, b, format, rotated=False, dtype=torch.float32):
    fmt = formats.get(format)
    if not out.numel():
        return
    if format not in (*DEQUANTIZED, *_ROWS):
        out.copy_(fmt.dequantize(b, rotated))
    elif format in _ROWS:
        blocks = b.numel() // fmt.block_bytes
        ids = torch.arange(blocks, dtype=torch.int32, device=b.device)
        _launch_rows(out, b, ids, format, blocks, rotated)
    else:
        kernel = f"dequantize_{format}_{metal.dtype_name(dtype)}"
        blocks, sizes, threads = b.numel() // fmt.block_bytes, [], out.numel() // 4
        if fmt.rotation:
            sizes, threads = [[blocks, int(not rotated)]], _simdgroups(threads)
        metal.launch("kv_dequantize", kernel, b, out, *sizes, threads=threads)


dequantize_rows = define(
    dequantize_rows,
    fake=_dequantize_fake,
    shader=_dequantize_shader,
    shaders=("kv_dequantize", "tq_dequantize"),
)


# ---- embedding_rows: unpack the rows asked for
_ROWS = ("tq3_1s", "tq4_1s")  # look-up and unpacking in one launch


def embedding_rows(
    w: Tensor, ids: Tensor, format: str, rotated: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Unpack the rows of `w` that `ids` names.

    Shapes: w uint8 [rows, nbytes(n)], ids int32 or int64 [...] -> [..., n] of `dtype`
    Raises: ValueError for an id outside w; on a GPU, which would have to wait to see it, such a row
    is NaN.
    """
    if ids.numel() and not (ids.min() >= 0 and ids.max() < len(w)):
        raise ValueError(f"ids run from {ids.min()} to {ids.max()}, but w has {len(w)} rows")
    rows = w.index_select(0, ids.flatten().long())
    found = formats.get(format).dequantize(rows, rotated)
    return found.to(dtype).view(*ids.shape, found.shape[-1])


def _embedding_fake(w, ids, format, rotated=False, dtype=torch.float32):
    n = _values("w", w, format, dtype)
    check(w.dim() == 2, f"w must have two axes, not {w.dim()}")
    check_tensor("ids", ids, (torch.int32, torch.int64), like=w)
    return w.new_empty(*ids.shape, n, dtype=dtype)


def _embedding_shader(out, w, ids, format, rotated=False, dtype=torch.float32):
    if format not in _ROWS:
        rows = w.index_select(0, ids.flatten().long())
        _dequantize_shader(out, rows, format, rotated, dtype)
    elif out.numel():
        inside = ids.clamp(-1, len(w)).to(torch.int32)  # an id beyond 32 bits stays outside
        _launch_rows(out, w, inside, format, len(w), rotated)


def _launch_rows(out, w, ids, format, n_rows, rotated):
    kernel = f"rows_{format}_{metal.dtype_name(out.dtype)}"
    sizes = [n_rows, out.numel() // ids.numel() // 32, int(not rotated)]
    metal.launch("tq_dequantize", kernel, w, ids, out, sizes, threads=out.numel())


embedding_rows = define(
    embedding_rows,
    fake=_embedding_fake,
    shader=_embedding_shader,
    shaders=("tq_dequantize", "kv_dequantize"),
)
