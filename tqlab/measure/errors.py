"""Relative MSE of storage formats and of the choices inside them."""

import torch
from torch import Tensor

from .. import codebook as cb
from .. import formats
from ..kvcache import padded_head_dim
from .codebooks import nearest
from .vectors import coordinates, gaussian, relative_mse

Row = dict
LOSSY = ("q8_0", "q4_0", "turbo2", "turbo3", "turbo4", "turbo4_lm", "tq3_1s", "tq4_1s")
LOSSY += ("trellis2", "trellis3", "trellis4")
LOSSY_64 = tuple(name for name in formats.names() if name.endswith("_h64"))  # for heads of 64
# Relative MSE on N(0, 1) of the fork's own C code at commit 69d8e4be4: gguf-py cannot write these.
_QUOTED = {
    "q2_K": (2.63, 0.0879),
    "q3_K": (3.44, 0.02276),
    "iq4_xs": (4.25, 0.00589),
    "q4_K": (4.5, 0.00509),
}


def error_rows(x: Tensor, names=LOSSY, data: str = "Gaussian") -> list[Row]:
    """Relative MSE of storage formats on vectors [N, n], against the bits really stored.

    Heads are zero-padded as the KV cache pads them.
    Row: format, data, bits, mse, gap (mse * 4^bits; the Shannon bound is 1), source.
    """
    rows = []
    for name in names:
        fmt, n = formats.get(name), x.shape[-1]
        packed = fmt.quantize(torch.nn.functional.pad(x, (0, padded_head_dim(fmt, n) - n)))
        mse = relative_mse(x, fmt.dequantize(packed)[..., :n])
        rows.append(_error_row(name, data, 8 * packed.nbytes / x.numel(), mse))
    return rows


def gguf_error_rows(x: Tensor, names=("q4_1", "q5_0"), data: str = "Gaussian") -> list[Row]:
    """`error_rows` for types that only gguf-py writes: q4_1, q5_0, q5_1."""
    import gguf

    rows = []
    for name in names:
        kind = gguf.GGMLQuantizationType[name.upper()]
        packed = gguf.quants.quantize(x.numpy(), kind)
        y = torch.from_numpy(gguf.quants.dequantize(packed, kind))
        rows.append(_error_row(name, data, 8 * packed.nbytes / x.numel(), relative_mse(x, y)))
    return rows


def quoted_rows() -> list[Row]:
    """`error_rows` on Gaussian data of types that gguf-py cannot write; source is "quoted"."""
    return [_error_row(k, "Gaussian", *v, source="quoted") for k, v in _QUOTED.items()]


def _error_row(name: str, data: str, bits: float, mse: float, source: str = "here") -> Row:
    gap = mse / cb.shannon_bound(bits)
    return {"format": name, "data": data, "bits": bits, "mse": mse, "gap": gap, "source": source}


def round_trip(
    x: Tensor, bits: int, rotation: str = "wht", scale: str = "corrected", seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """(z, z^): rotated coordinates at rms 1, and what a `bits`-bit Lloyd-Max codebook keeps.

    `scale` of a vector: "plain" (its own norm), "corrected" (decoded vectors have the original
    length, as the turbo formats do) or "least squares" (least error). Raises: ValueError else.
    """
    z = coordinates(x, rotation, seed)
    q = nearest(z, bits)
    if scale == "corrected":
        return z, q * (z.norm(dim=-1, keepdim=True) / q.norm(dim=-1, keepdim=True))
    if scale == "least squares":
        return z, q * ((z * q).sum(-1, keepdim=True) / q.square().sum(-1, keepdim=True))
    if scale != "plain":
        raise ValueError(f"unknown scale {scale!r}; known: plain, corrected, least squares")
    return z, q


def scale_rows(x: Tensor, bits=(2, 3, 4)) -> list[Row]:
    """Relative MSE by bits and by the way a vector's scale is chosen."""
    scales = ("plain", "corrected", "least squares")
    return [
        {"bits": b} | {s: relative_mse(*round_trip(x, b, scale=s)) for s in scales} for b in bits
    ]


def offset_rows(
    ratios, n: int, dim: int = 128, bits: int = 4, draws: int = 8, seed: int = 0
) -> list[Row]:
    """Error of a Lloyd-Max quantiser on x = ratio + N(0, 1), over draws of the rotation.

    Row: ratio (constant offset over standard deviation), rotation, mse (mean over the draws), low,
    high (least and greatest draw: with a large offset all vectors share one rotated direction)
    """
    rows, noise = [], gaussian(n, dim, seed)
    for ratio in ratios:
        for rotation in ("hadamard", "wht", "haar"):
            seeds = range(seed, seed + draws) if rotation != "hadamard" else [seed]
            pairs = (round_trip(noise + ratio, bits, rotation, "plain", s) for s in seeds)
            each = [relative_mse(z, q) for z, q in pairs]
            spread = {"mse": sum(each) / len(each), "low": min(each), "high": max(each)}
            rows.append({"ratio": ratio, "rotation": rotation, **spread})
    return rows


def spread_rows(x: Tensor, rotations=("wht", "haar"), bits: int = 4) -> list[Row]:
    """Per-vector relative MSE by rotation: row with mean, p50, p99 over the vectors."""
    rows = []
    for rotation in rotations:
        z, q = round_trip(x, bits, rotation)
        each = (z - q).square().mean(-1)
        p50, p99 = each.quantile(torch.tensor([0.5, 0.99])).tolist()
        rows.append({"rotation": rotation, "mean": float(each.mean()), "p50": p50, "p99": p99})
    return rows


def padding_rows(head_dim: int, names=LOSSY) -> list[Row]:
    """What a value of a head really takes: row with format, bits (its own), padded (head size in
    the cache), stored (bits a value, padding included)."""
    rows = []
    for fmt in map(formats.get, names):
        padded = padded_head_dim(fmt, head_dim)
        stored = 8 * fmt.nbytes(padded) / head_dim
        row = {"format": fmt.name, "bits": fmt.bits_per_value, "padded": padded}
        rows.append(row | {"stored": stored})
    return rows


def outlier_recipe_bits(dim: int = 128, outliers: int = 32, high: int = 3, low: int = 2) -> float:
    """Bits a value when `outliers` of `dim` channels take `high` bits and the others `low`."""
    return (outliers * high + (dim - outliers) * low) / dim


def verdict(claim: str, source: str, printed: str, measured: float, rel: float = 0.02) -> Row:
    """A published number, as it is printed, beside ours.

    It reproduces when they differ by at most one unit of its last printed digit, or by `rel`.
    """
    digits = len(printed.partition(".")[2])
    within = max(10.0**-digits, rel * abs(float(printed)))
    row = {"claim": claim, "source": source, "printed": printed, "measured": measured}
    return row | {"reproduces": abs(measured - float(printed)) <= within}
