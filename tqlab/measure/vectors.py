"""Vectors, synthetic and real, and what a rotation does to their coordinates."""

import torch
from torch import Tensor

from .. import codebook as cb
from .. import rotation as rot
from .codebooks import nearest

ROTATIONS = ("none", "hadamard", "wht", "haar")
Row = dict


def gaussian(n: int, dim: int = 128, seed: int = 0) -> Tensor:
    """N(0, 1) vectors, the same on every machine: float32 [n, dim]."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def capture_kv(model, tokens) -> dict[str, list[Tensor]]:
    """The K and V vectors a model writes for a text, before any rounding.

    Shapes: tokens int64 [T] or a list -> {"K": layers, "V": layers}, each float32 [H_kv, T, D]
    K is taken after the rotary embedding, as the cache holds it. Sliding layers give the tokens
    their window still holds; layers that store nothing are left out.
    """
    ids = torch.as_tensor(tokens, dtype=torch.int64)[None]
    cache = model.new_cache("f32", "f32", max_tokens=ids.shape[1])
    model.run(ids, cache)
    stored = [layer for layer in cache.layers if hasattr(layer, "k")]
    return {side.upper(): [_held(getattr(layer, side)) for layer in stored] for side in ("k", "v")}


def _held(heads) -> Tensor:
    """All slots of one layer's K or V: float32 [H_kv, slots, D]."""
    return heads.read(0, heads.data.shape[2])[0].cpu()


def flat(layers: list[Tensor]) -> Tensor:
    """All vectors of one head size: list of [H_kv, T, D] -> [N, D]."""
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in layers])


def spiked(n: int, dim: int, strength: float, offset: float = 0.0, seed: int = 0) -> Tensor:
    """N(offset, 1) vectors with one channel in 16 multiplied by `strength`: float32 [n, dim]."""
    x = gaussian(n, dim, seed) + offset
    channels = torch.randperm(dim, generator=torch.Generator().manual_seed(seed + 1))
    x[:, channels[: max(1, dim // 16)]] *= strength
    return x


def rotated(x: Tensor, rotation: str, seed: int | None = None) -> Tensor:
    """Rotate the whole last axis: "none", "hadamard" (no signs), "wht" (signs) or "haar".

    Shapes: float [N, n], n a power of two for the Hadamard kinds -> float32 [N, n]
    `seed` draws the signs or the matrix; None: on 128 values the formats' own signs, else seed 0.
    Raises: ValueError for an unknown rotation.
    """
    n = x.shape[-1]
    if rotation == "none":
        return x.float()
    if rotation == "haar":
        return x.float() @ rot.haar(n, seed or 0).float().T
    if rotation == "wht" and n == 128 and seed is None:
        return rot.rotate(x, "wht128")
    if rotation not in ROTATIONS:
        raise ValueError(f"unknown rotation {rotation!r}; known: {', '.join(ROTATIONS)}")
    signs = torch.ones(n, 1) if rotation == "hadamard" else _random_signs(n, seed or 0)
    return (rot.butterflies(x.float().T.contiguous() * signs) / n**0.5).T


def _random_signs(n: int, seed: int) -> Tensor:
    bits = torch.randint(0, 2, (n, 1), generator=torch.Generator().manual_seed(seed))
    return 1.0 - 2.0 * bits


def coordinates(x: Tensor, rotation: str = "none", seed: int | None = None) -> Tensor:
    """What a codebook sees: rotated, and every vector scaled to rms 1. float32 [N, n]"""
    z = rotated(x, rotation, seed)
    return z / z.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)


def coordinate_rows(x: Tensor, rotations=ROTATIONS, seed: int | None = None, **labels) -> list[Row]:
    """How Gaussian the coordinates of [N, n] vectors are after each rotation.

    Row: rotation, kurtosis (fourth moment about 0 over squared second; 3 = Gaussian), max_rms and
    max_rms_p99 (largest coordinate of a vector over its rms), overload (share beyond the last
    4-bit threshold), mse_4bit (relative MSE of the 4-bit Lloyd-Max codebook).
    """
    top = float(cb.lloyd_max(4)[1][-1])
    rows = []
    for rotation in rotations:
        z = coordinates(x, rotation, seed)
        peak = z.abs().amax(-1)
        stats = {
            "kurtosis": float(z.double().pow(4).mean()),
            "max_rms": float(peak.mean()),
            "max_rms_p99": float(peak.quantile(0.99)),
            "overload": float((z.abs() > top).double().mean()),
            "mse_4bit": relative_mse(z, nearest(z, 4)),
        }
        rows.append({**labels, "rotation": rotation, **stats})
    return rows


def layer_rows(kv: dict[str, list[Tensor]], rotations=("none", "wht")) -> list[Row]:
    """`coordinate_rows` of every layer and side, with the share of energy in the mean vector.

    Row: layer, side ("K" | "V"), offset_share (|E x|^2 / E |x|^2, over heads; no rotation moves it)
    """
    rows = []
    for side, layers in kv.items():
        for i, x in enumerate(layers):
            mean = x.mean(1).square().sum(-1)  # [H_kv]
            share = float((mean / x.square().sum(-1).mean(1)).mean())
            flat_x = x.reshape(-1, x.shape[-1])
            rows += coordinate_rows(flat_x, rotations, layer=i, side=side, offset_share=share)
    return rows


def relative_mse(x: Tensor, y: Tensor) -> float:
    """sum |x - y|^2 / sum |x|^2, accumulated in float64."""
    return float((x - y).double().square().sum() / x.double().square().sum())
