"""Attention over packed keys and values."""

import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from .. import formats, metal
from ..rotation import rotate, unrotate
from .base import FLOATS, check, check_tensor, define
from .rows import wht

FORMATS = ("f16", "q8_0", "turbo2", "turbo3", "turbo4", "turbo4_lm")
MAX_DIM = 512
DECODE_STEPS = 4  # tokens up to which the decode kernel runs
_SPLIT_KEYS, _MAX_SPLITS, _SIMDGROUPS = 64, 128, 4
_THREADS = 128


# ---- kv_attention: softmax(scale q K^T + mask) V
def kv_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_format: str,
    v_format: str,
    n: int,
    scale: float,
    window: int | None = None,
    pads: Tensor | None = None,
) -> Tensor:
    """Attention of the newest T tokens over the first n slots of packed K and V.

    Shapes: q float32, float16 or bfloat16 [B, H, T, D]; k, v uint8 [B, H_kv, slots, head bytes],
        heads of turbo formats zero-padded to a multiple of 128 -> q.dtype [B, H, T, D]
    Query t is token n - T + t: it sees no later slot, `window` slots with its own (None: all), and
    none before pads[b], int32 [B]; one that sees nothing gets zeros. H is a multiple of H_kv.
    Formats: f16, q8_0, turbo2, turbo3, turbo4, turbo4_lm, in any pair.
    Error: float32: 1e-5 of the largest value; else one rounding of the result more.
    """
    heads, steps, dim = q.shape[1:]
    rows = zero_pad(q.float() * scale, (0, _padded(k_format, dim) - dim))
    rows = rotate(rows, formats.get(k_format).rotation)
    hidden = _hidden(n, steps, window, pads, q.device)
    group, out = heads // k.shape[1], []
    for head in range(k.shape[1]):  # K and V of one head at a time are unpacked
        keys = formats.get(k_format).dequantize(k[:, head, :n], rotated=True)[:, None]
        values = formats.get(v_format).dequantize(v[:, head, :n], rotated=True)[:, None]
        scores = rows[:, head * group : (head + 1) * group] @ keys.mT
        weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1).nan_to_num(0.0)
        out.append(weights @ values)
    out = unrotate(torch.cat(out, 1), formats.get(v_format).rotation)
    return out[..., :dim].to(q.dtype).contiguous()


def _hidden(n, steps, window, pads, device):
    """True where query t may not see slot j: bool [1 or B, 1, T, n]."""
    slot = torch.arange(n, device=device)
    own = slot[n - steps :, None]
    hidden = ((slot > own) | (slot <= own - (window or n)))[None, None]
    return hidden if pads is None else hidden | (slot < pads[:, None])[:, None, None]


def handles(format: str, dim: int) -> bool:
    """Whether keys or values of `format`, heads of `dim` values, can be arguments."""
    return format in FORMATS and not _unfit(format, dim)


def _unfit(format: str, dim: int) -> str:
    """What is wrong with heads of `dim` values; nothing: an empty text."""
    padded = _padded(format, dim)
    if padded % 32:
        return f"heads of {padded} values are no multiple of 32, which {format} needs"
    return f"heads of {padded} values; at most {MAX_DIM} are handled" if padded > MAX_DIM else ""


def _padded(name: str, dim: int) -> int:
    """The stored head size: turbo heads are padded to whole blocks."""
    fmt = formats.get(name)
    return -(-dim // fmt.block_size) * fmt.block_size if fmt.rotation else dim


def _fake(q, k, v, k_format, v_format, n, scale, window=None, pads=None):
    check_tensor("q", q, FLOATS)
    check(q.dim() == 4 and q.numel() > 0, f"q must be [B, H, T, D], not shape {tuple(q.shape)}")
    _check_side("k", k, k_format, q)
    _check_side("v", v, v_format, q)
    check(k.shape[1] == v.shape[1], f"v has {v.shape[1]} heads, k {k.shape[1]}")
    most = min(k.shape[2], v.shape[2])
    check(q.shape[2] <= n <= most, f"n must lie between T = {q.shape[2]} and {most} slots: {n}")
    check(window is None or window > 0, f"window must be positive, not {window}")
    if pads is not None:
        check_tensor("pads", pads, torch.int32, like=q)
        check(pads.shape == q.shape[:1], f"pads must be [B], not shape {tuple(pads.shape)}")
    return torch.empty_like(q)


def _check_side(name, x, format, q):
    check_tensor(name, x, torch.uint8, like=q)
    check(format in FORMATS, f"{name}_format is one of {', '.join(FORMATS)}, not {format!r}")
    check(x.dim() == 4, f"{name} must be [B, H_kv, slots, bytes], not shape {tuple(x.shape)}")
    check(x.shape[0] == q.shape[0], f"{name} has a batch of {x.shape[0]}, q of {q.shape[0]}")
    heads = x.shape[1]
    check(
        heads > 0 and q.shape[1] % heads == 0,
        f"{name} has {heads} heads, which do not divide the {q.shape[1]} of q",
    )
    check(not (wrong := _unfit(format, q.shape[3])), f"q: {wrong}")
    dim = _padded(format, q.shape[3])
    nbytes = formats.get(format).nbytes(dim)
    check(
        x.shape[3] == nbytes,
        f"{name} has heads of {x.shape[3]} bytes, but {dim} values of {format} are {nbytes}",
    )
    check(x.storage_offset() % 2 == 0, f"{name} must start at an even byte of its storage")


def _shader(y, q, k, v, k_format, v_format, n, scale, window=None, pads=None):
    batch, heads, steps, dim = q.shape
    sizes = [_padded(k_format, dim), _padded(v_format, dim)]
    rows = zero_pad(q.float(), (0, sizes[0] - dim))
    rows = wht(rows, "wht128") if formats.get(k_format).rotation else rows
    kernels = _Kernels(k, v, k_format, v_format, sizes, heads // k.shape[1], steps)
    pads = [0] * batch if pads is None else pads
    run = kernels.decode if steps <= DECODE_STEPS else kernels.prefill
    out = run(rows, pads, n, float(scale), min(window or n, n))
    out = wht(out, "wht128", True) if formats.get(v_format).rotation else out
    y.copy_(out[..., :dim])


class _Kernels:
    """The kernels of one pair of formats and head sizes, launched over one K and V."""

    def __init__(self, k, v, k_format, v_format, sizes, group, steps):
        self.k, self.v, self.v_dim, self.dim = k, v, sizes[1], max(sizes)
        self.heads, self.rows = k.shape[0] * k.shape[1], group * steps
        self.shape = [k.shape[1], group, steps]
        names = ("K_FORMAT", "V_FORMAT", "K_DIM", "V_DIM")
        self.defines = tuple(zip(names, (k_format, v_format, *sizes), strict=True))

    def _launch(self, kernel, *args, threads, group_size=_THREADS):
        grid = {"threads": threads, "group_size": group_size, "defines": self.defines}
        metal.launch("kv_prefill" if kernel == "kv_prefill" else "kv_decode", kernel, *args, **grid)

    def _sizes(self, n, window, splits):
        return [*self.shape, n, self.k.shape[2], self.v.shape[2], window, splits]

    def decode(self, q, pads, n, scale, window):
        """float32 [B, H, T, K_DIM] -> [B, H, T, V_DIM]: stretches of keys, then their sum."""
        keys = min(n, window + self.shape[2] - 1)
        groups = min(-(-keys // (_SPLIT_KEYS * _SIMDGROUPS)), _MAX_SPLITS // _SIMDGROUPS)
        splits, queries = groups * _SIMDGROUPS, min(4, 1 << (self.rows - 1).bit_length())
        sizes = self._sizes(n, window, splits)
        part = q.new_empty(self.heads, self.rows, splits, self.v_dim)
        stats = q.new_empty(self.heads, self.rows, splits, 2)
        args = (q, self.k, self.v, part, stats, pads, sizes, scale)
        threads = (-(-self.rows // queries) * _THREADS, groups, self.heads)
        self._launch(f"kv_decode_{queries}", *args, threads=threads, group_size=(_THREADS, 1, 1))
        out = q.new_empty(*q.shape[:3], self.v_dim)
        threads = self.heads * self.rows * metal.LANES
        self._launch("kv_reduce", part, stats, out, sizes, threads=threads)
        return out

    def prefill(self, q, pads, n, scale, window):
        """float32 [B, H, T, K_DIM] -> [B, H, T, V_DIM]: tiles of queries and keys."""
        out = q.new_empty(*q.shape[:3], self.v_dim)
        queries = 32 if self.dim <= 128 else 16 if self.dim <= 256 else 8
        args = (q, self.k, self.v, out, pads, self._sizes(n, window, 0), scale)
        threads = (-(-self.rows // queries) * _THREADS, self.heads)
        self._launch("kv_prefill", *args, threads=threads, group_size=(_THREADS, 1))
        return out


kv_attention = define(
    kv_attention, fake=_fake, shader=_shader, shaders=("wht", "kv_decode", "kv_prefill")
)
