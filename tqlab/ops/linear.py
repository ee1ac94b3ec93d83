"""Products with packed TQ weights: matrices, and matrices chosen by experts.

The activations are rotated once, into their own buffer; a weight is then table value * scale. To
share one rotation among several products: xr = wht(x, "wht32"), then `rotated=True` in each.
"""

import torch
from torch import Tensor

from .. import formats, metal
from .base import FLOATS, check, check_tensor, define
from .rows import wht

TYPES = ("tq3_1s", "tq4_1s")
FEW = 8  # rows of x up to which the mat-vec kernel runs
_BLOCK, _TOKENS, _OUTPUTS = 32, 32, 64  # shaders/linear.h
_TILE_THREADS, _ROWS = 128, 4
_TILE_VALUES = 1 << 22  # weights the reference unpacks at once: 16 MB


# ---- tq_linear: y = x W^T
def tq_linear(x: Tensor, w: Tensor, type: str, rotated: bool = False) -> Tensor:
    """Linear layer with packed rows, "tq3_1s" or "tq4_1s". Nothing dense is kept.

    Shapes: x float32, float16 or bfloat16 [..., in]; w uint8 [out, in / 32 * block bytes]
        -> x.dtype [..., out]; any numbers of rows. `rotated`: x is wht(x, "wht32") already.
    Error: below twice that of x @ W.T in x.dtype; float32: NMSE below 1e-12.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    step = max(1, _TILE_VALUES // x.shape[-1])
    unpack = formats.get(type).dequantize
    y = torch.cat([rows @ unpack(part, rotated).T for part in w.split(step)], 1)
    return y.to(x.dtype).view(*x.shape[:-1], w.shape[0])


def _tq_linear_fake(x, w, type, rotated=False):
    _check_product(x, w, type, 2)
    return x.new_empty(*x.shape[:-1], w.shape[0])


def _check_product(x, w, type, axes):
    check_tensor("x", x, FLOATS)
    check_tensor("w", w, torch.uint8, like=x)
    check(type in TYPES, f"type is {' or '.join(TYPES)}, not {type!r}")
    check(x.dim() > 0 and x.shape[-1] > 0, "x must have a last axis of at least 32 values")
    check(w.dim() == axes, f"w must have {axes} axes, not shape {tuple(w.shape)}")
    check(w.shape[-2] > 0, "w has no rows")
    check(x.shape[-1] % _BLOCK == 0, f"x: the last axis must be a multiple of 32: {x.shape[-1]}")
    nbytes = formats.get(type).nbytes(x.shape[-1])
    wanted = f"{x.shape[-1]} values of {type} are {nbytes} bytes"
    check(w.shape[-1] == nbytes, f"w has rows of {w.shape[-1]} bytes, but {wanted}")
    check(w.storage_offset() % 4 == 0, "w must start at a multiple of 4 bytes of its storage")


def _tq_linear_shader(y, x, w, type, rotated=False):
    n_in, n_out = x.shape[-1], w.shape[0]
    n = x.numel() // n_in
    if not n:
        return
    x = x if rotated else wht(x, "wht32")
    args = (w, x, y, [n_in, n_out, n])
    kernel = f"{type}_{metal.dtype_name(x.dtype)}"
    if n <= FEW:
        kernel = f"tq_matvec_{kernel}_{next(c for c in (1, 2, 4, 8) if n <= c)}"
        metal.launch("tq_matvec", kernel, *args, threads=_few(n_out))
    else:
        metal.launch("tq_matmul", f"tq_matmul_{kernel}", *args, **_many(n_out, -(-n // _TOKENS)))


def _few(n_out: int) -> int:
    """Threads of a mat-vec kernel: a simdgroup for every four rows."""
    return -(-n_out // _ROWS) * metal.LANES


def _many(n_out: int, n_tiles: int) -> dict:
    """Grid of a mat-mul kernel: a threadgroup a tile of 64 outputs by 32 tokens."""
    threads = (-(-n_out // _OUTPUTS) * _TILE_THREADS, n_tiles)
    return {"threads": threads, "group_size": (_TILE_THREADS, 1)}


tq_linear = define(
    tq_linear,
    fake=_tq_linear_fake,
    shader=_tq_linear_shader,
    shaders=("wht", "tq_matvec", "tq_matmul"),
)


# ---- tq_moe_linear: y = x W_e^T for every token's experts e
def tq_moe_linear(
    x: Tensor, w: Tensor, type: str, experts: Tensor, rotated: bool = False
) -> Tensor:
    """Linear layers of routed experts: for each token and slot, the rows of that slot's expert.

    Shapes: x float32, float16 or bfloat16 [T, in] (every slot reads it) or [T, k, in];
        w uint8 [E, out, in / 32 * block bytes]; experts int32 or int64 [T, k], any E and k
        -> x.dtype [T, k, out]. An expert outside 0 .. E - 1 gives NaN in its slot.
    Error: that of tq_linear.
    """
    x = x if x.dim() == 3 else x[:, None].expand(*experts.shape, -1)
    y = torch.full((*experts.shape, w.shape[1]), torch.nan, device=x.device)
    unpack = formats.get(type).dequantize
    for e in experts.unique().tolist():
        if 0 <= e < len(w):
            chosen = experts == e
            y[chosen] = x[chosen].float() @ unpack(w[e], rotated).T
    return y.to(x.dtype)


def _tq_moe_fake(x, w, type, experts, rotated=False):
    _check_product(x, w, type, 3)
    check_tensor("experts", experts, (torch.int32, torch.int64), like=x)
    check(experts.dim() == 2, f"experts must be [T, k], not shape {tuple(experts.shape)}")
    wanted = tuple(experts.shape[:1]) if x.dim() == 2 else tuple(experts.shape)
    check(
        x.dim() in (2, 3) and tuple(x.shape[:-1]) == wanted,
        f"x must be [T, in] or [T, k, in] with the T and k of experts {tuple(experts.shape)}, "
        f"not shape {tuple(x.shape)}",
    )
    return x.new_empty(*experts.shape, w.shape[1])


def _tq_moe_shader(y, x, w, type, experts, rotated=False):
    if not y.numel():
        return
    share = experts.shape[1] if x.dim() == 2 else 1
    x = x if rotated else wht(x, "wht32")
    sizes = [x.shape[-1], w.shape[1], w.shape[0], share]
    kernel = f"{type}_{metal.dtype_name(x.dtype)}"
    chosen = experts.flatten().clamp(-1, len(w)).int()  # before a large id wraps into a valid one
    if len(experts) <= FEW:
        grid = {"threads": (_few(w.shape[1]), len(chosen)), "group_size": (metal.GROUP, 1)}
        metal.launch("tq_moe", f"tq_moe_matvec_{kernel}", w, x, y, chosen, sizes, **grid)
    else:
        pairs, tiles = _route(chosen, len(w))
        args = (w, x, y, pairs, tiles, sizes)
        metal.launch("tq_moe", f"tq_moe_matmul_{kernel}", *args, **_many(w.shape[1], len(tiles)))


def _route(experts: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Pairs sorted by expert, and tiles of at most 32 of them, without waiting for the device.

    Shapes: int32 [P] -> int32 [P], int32 [<= P / 32 + groups, 3]: expert, first place, count.
    Pairs of no expert form one more group, number n_experts. The last tiles may be empty.
    """
    known = (experts >= 0) & (experts < n_experts)
    sorted_, pairs = torch.where(known, experts, n_experts).sort()
    groups = torch.arange(n_experts + 2, device=experts.device, dtype=torch.int32)
    starts = torch.searchsorted(sorted_, groups, out_int32=True)
    n_tiles = (starts.diff() + _TOKENS - 1) // _TOKENS
    ends = n_tiles.cumsum(0).int()
    most = (len(experts) + (_TOKENS - 1) * min(n_experts + 1, len(experts))) // _TOKENS
    tile = torch.arange(most, device=experts.device, dtype=torch.int32)
    group = torch.searchsorted(ends, tile, right=True).clamp_(max=n_experts)
    first = starts[group] + (tile - (ends - n_tiles)[group]) * _TOKENS
    count = (starts[group + 1] - first).clamp_(0, _TOKENS)
    return pairs.int(), torch.stack([group.int(), first.int(), count.int()], 1).contiguous()


tq_moe_linear = define(
    tq_moe_linear, fake=_tq_moe_fake, shader=_tq_moe_shader, shaders=("wht", "tq_moe")
)
