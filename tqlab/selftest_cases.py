"""What `tqlab selftest` runs: for each op, arguments of every format, dtype and awkward shape.

A new op adds a function and a line to CASES. Tensors are made on the CPU from fixed seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from . import formats, ops
from .formats import Format
from .kvcache import padded_head_dim
from .rotation import rotate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KV, UNPACKED = ops.rows.QUANTIZED, ops.rows.DEQUANTIZED
TQ = ("tq3_1s", "tq4_1s")
CACHE = ("f16", "q8_0", "turbo2", "turbo3", "turbo4", "turbo4_lm")
_MATMUL_NMSE = 5e-4  # spec kernels 1: what test-backend-ops allows a matrix product
_BYTES_NMSE = 1e-4  # decoded: one borderline index of a few thousand


@dataclass(frozen=True)
class Case:
    """Arguments of one call: `variant` groups cases, `shape` tells them apart.

    `limit`: a fixed NMSE beside the tolerance rule; `format`: of packed results; `peer`: torch's
    way to compute it in the case's dtype throughout, where the reference works in float32 inside.
    """

    variant: str
    shape: str
    args: tuple
    limit: float | None = None
    format: Format | None = None
    peer: Callable | None = None


def _counts(quick: bool) -> tuple[int, ...]:
    """Rows at once: all of 1 to 64, or the ones where kernels and tiles change."""
    return (1, 3, 9) if quick else tuple(range(1, 65))


def _gaussian(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def wht(quick: bool) -> Iterator[Case]:
    """Every rotation, both ways."""
    for rotation, n in (("wht32", 32), ("wht64", 64), ("wht128", 128)):
        for dtype in DTYPES:
            for inverse in (False, True):
                for rows in _counts(quick):
                    x = _gaussian(rows, 3 * n, dtype=dtype)
                    variant = f"{rotation} {'inverse ' if inverse else ''}{_short(dtype)}"
                    yield Case(variant, f"{rows} x {3 * n}", (x, rotation, inverse))


def quantize_rows(quick: bool) -> Iterator[Case]:
    """Every KV format; rows of zeros, ties, spikes and extreme sizes among ordinary ones."""
    for name in KV:
        fmt = formats.get(name)
        for dtype in DTYPES:
            for rows in _counts(quick):
                x = _awkward(_gaussian(rows, 256, dtype=dtype))
                variant = f"{name} {_short(dtype)}"
                yield Case(variant, f"{rows} x 256", (x, name), _BYTES_NMSE, fmt)


def _awkward(x: Tensor) -> Tensor:
    """Every third row becomes one of: zeros, a spike, alternating signs, tiny, large."""
    n = x.shape[-1]
    spike = torch.zeros(n)
    spike[n - 3] = -2.5
    odd = [torch.zeros(n), spike, torch.where(torch.arange(n) % 2 == 0, 0.5, -0.5)]
    odd += [1e-4 * x[0].float(), 1e3 * x[0].float()]
    for i in range(1, len(x), 3):
        x[i] = odd[i // 3 % len(odd)].to(x.dtype)
    return x


def dequantize_rows(quick: bool) -> Iterator[Case]:
    """Every packed format, both domains, all output types."""
    for name in (*UNPACKED, *TQ):
        for dtype in DTYPES:
            for rotated in (False, True) if formats.get(name).rotation else (False,):
                for rows in _counts(quick):
                    b = formats.get(name).quantize(_gaussian(rows, 128))
                    variant = f"{name} {'rotated ' if rotated else ''}{_short(dtype)}"
                    yield Case(variant, f"{rows} x 128", (b, name, rotated, dtype))


def embedding_rows(quick: bool) -> Iterator[Case]:
    """Repeated ids in no order."""
    for name in (*TQ, "q8_0"):
        w = formats.get(name).quantize(_gaussian(37, 160))
        for dtype in DTYPES:
            for n in _counts(quick):
                args = (w, torch.arange(n) * 17 % 37, name, False, dtype)
                yield Case(f"{name} {_short(dtype)}", f"{n} of 37 rows of 160", args)


def tq_linear(quick: bool) -> Iterator[Case]:
    """Mat-vec and mat-mul around their limits; output counts that fill no tile."""
    sizes = ((96, 70),) if quick else ((96, 70), (2048, 257))
    for name in TQ:
        for dtype in DTYPES:
            for n_in, n_out in sizes:
                w = formats.get(name).quantize(_gaussian(n_out, n_in))
                for n in _counts(quick):
                    x = _gaussian(n, n_in, dtype=dtype)
                    shape, args = f"{n} x {n_in} -> {n_out}", (x, w, name)
                    yield Case(f"{name} {_short(dtype)}", shape, args, _MATMUL_NMSE, peer=_linear)


def _linear(x: Tensor, w: Tensor, name: str) -> Tensor:
    """As the shaders do it: x is rotated, and rounded, instead of w."""
    fmt = formats.get(name)
    rotated = rotate(x, fmt.rotation).to(x.dtype)
    return rotated @ fmt.dequantize(w, rotated=True).to(x.dtype).T


def tq_moe_linear(quick: bool) -> Iterator[Case]:
    """Any number of experts and choices; experts nobody asks for."""
    kinds = ((5, 2), (96, 3)) if quick else ((5, 2), (96, 8), (128, 4), (256, 6), (96, 96))
    for name in TQ:
        for dtype in DTYPES:
            for n_experts, k in kinds:
                w = formats.get(name).quantize(_gaussian(n_experts, 9, 64))
                for n in (1, 9) if quick else (1, 2, 7, 8, 9, 33, 64):
                    x = _gaussian(n, 64, dtype=dtype)
                    seed = torch.Generator().manual_seed(n)
                    chosen = [torch.randperm(n_experts, generator=seed)[:k] for _ in range(n)]
                    shape = f"{n} tokens, {k} of {n_experts} experts"
                    args = (x, w, name, torch.stack(chosen))
                    yield Case(f"{name} {_short(dtype)}", shape, args, _MATMUL_NMSE, peer=_moe)


def _moe(x: Tensor, w: Tensor, name: str, experts: Tensor) -> Tensor:
    rows = [_linear(x[t], w[e], name) for t, row in enumerate(experts) for e in row]
    return torch.stack(rows).view(*experts.shape, -1)


def kv_attention(quick: bool) -> Iterator[Case]:
    """Every pair of formats, all head sizes; decode and prefill, groups, windows, padding."""
    pairs = (("turbo3", "turbo4"), ("q8_0", "turbo3")) if quick else tuple(product(CACHE, CACHE))
    for k, v in pairs:
        for dim in (128,) if quick or k != v else (64, 128, 256, 512):
            for dtype in DTYPES[:1] if (k, v) not in pairs[:2] else DTYPES:
                yield from _attentions(k, v, dim, dtype, (40,) if quick else (1, 40, 700))


def _attentions(k_format, v_format, dim, dtype, lengths) -> Iterator[Case]:
    variant = f"{k_format}/{v_format} {_short(dtype)}"
    pads = torch.tensor([0, 3], dtype=torch.int32)
    for n in lengths:
        k, v = (
            _heads(name, _gaussian(2, 2, n + s, dim)[:, :, s:])
            for s, name in ((0, k_format), (1, v_format))
        )
        for steps, window in ((1, None), (2, 16), (9, 16), (33, None)):
            if steps <= n:
                q = _gaussian(2, 6, steps, dim, dtype=dtype)
                args = (q, k, v, k_format, v_format, n, dim**-0.5, window, pads)
                yield Case(variant, f"{steps} on {n} keys of {dim}", args)


def _heads(name: str, x: Tensor) -> Tensor:
    fmt, dim = formats.get(name), x.shape[-1]
    return fmt.quantize(torch.nn.functional.pad(x, (0, padded_head_dim(fmt, dim) - dim)))


CASES: dict[str, Callable[[bool], Iterator[Case]]] = {
    "wht": wht,
    "quantize_rows": quantize_rows,
    "dequantize_rows": dequantize_rows,
    "embedding_rows": embedding_rows,
    "tq_linear": tq_linear,
    "tq_moe_linear": tq_moe_linear,
    "kv_attention": kv_attention,
}


# ---- torch itself on the same device


def matmul(quick: bool) -> Iterator[Case]:
    """Plain and transposed products, as prefill and dense weights use them."""
    for dtype in DTYPES:
        for m, k, n in ((1, 576, 70), (9, 128, 33)) if quick else ((1, 2048, 257), (64, 576, 1000)):
            x, w = _gaussian(m, k, dtype=dtype), _gaussian(n, k, dtype=dtype)
            yield Case(_short(dtype), f"{m} x {k} x {n}", (x, w.T), _MATMUL_NMSE)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def sdpa(quick: bool) -> Iterator[Case]:
    """Known trouble on MPS: permuted inputs (pytorch 181133), grouped decode (174861)."""
    keys = 64 if quick else 1024
    for dtype in DTYPES[:2]:
        q = _gaussian(1, 7, 4, 64, dtype=dtype).transpose(1, 2)
        k, v = (_gaussian(2, 7, 4, 64, dtype=dtype)[i : i + 1].transpose(1, 2) for i in (0, 1))
        yield Case(f"permuted {_short(dtype)}", "4 heads, 7 x 7, 64", (q, k, v, True))
        contiguous = tuple(t.contiguous() for t in (q, k, v))
        yield Case(f"contiguous {_short(dtype)}", "4 heads, 7 x 7, 64", (*contiguous, True))
        q, k, v = (_gaussian(1, h, t, 64, dtype=dtype) for h, t in ((8, 1), (2, keys), (2, keys)))
        yield Case(f"decode {_short(dtype)}", f"8 on 2 heads, 1 x {keys}, 64", (q, k, v, False))


TORCH: dict[str, tuple[Callable, Callable[[bool], Iterator[Case]]]] = {
    "torch.matmul": (torch.matmul, matmul),
    "torch.sdpa": (_sdpa, sdpa),
}
