"""Causal attention that reads the packed cache in tiles.

Equivalent to softmax(scale * q k^T + mask) v over the whole cache, with an online softmax, so that
only one tile of K and V is ever unpacked. Rotated formats: <R q, R k> = <q, k>, so the query is
rotated once and the keys never un-rotated; the output is un-rotated once (spec formats 2.3).
"""

import math

import torch
from torch import Tensor

from .kvcache import View
from .rotation import rotate, unrotate

# Keys unpacked at once. Prefill: small tiles skip more of the causal triangle; decode: fewer calls.
PREFILL_TILE, DECODE_TILE = 128, 1024


def attend(q: Tensor, view: View, scale: float, tile: int | None = None) -> Tensor:
    """Attention of the newest T tokens over a cache view.

    Shapes: q float32 [B, H, T, D]; view of n >= T tokens, H a multiple of H_kv -> [B, H, T, D]
    The last query sits at position n - 1. Query head h reads KV head h // (H / H_kv).
    Error: equals one full softmax to float32 rounding, for any tile.
    """
    batch, heads, steps, dim = q.shape
    kv_heads = view.k.data.shape[1]
    query = rotate(_pad(q * scale, view.k.padded_dim), view.k.format.rotation)
    state = _OnlineSoftmax(
        query.view(batch, kv_heads, heads // kv_heads, steps, -1), view.v.padded_dim
    )
    first = view.n - steps  # position of the first query
    for k, v, start in view.tiles(tile or (DECODE_TILE if steps < 16 else PREFILL_TILE)):
        state.add(k, v, start - first)
    out = unrotate(state.result(), view.v.format.rotation)
    return out[..., :dim].reshape(batch, heads, steps, dim)


def _pad(x: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, dim - x.shape[-1])) if dim > x.shape[-1] else x


class _OnlineSoftmax:
    """Running maximum, sum and weighted values of every query."""

    def __init__(self, q: Tensor, v_dim: int):
        self.q = q  # [B, H_kv, G, T, D]
        self.high = q.new_full((*q.shape[:-1], 1), -math.inf)
        self.total = torch.zeros_like(self.high)
        self.out = q.new_zeros(*q.shape[:-1], v_dim)

    def add(self, k: Tensor, v: Tensor, ahead: int) -> None:
        """Fold in a tile whose first key lies `ahead` positions after the first query."""
        lo = max(0, ahead)  # earlier queries see nothing of it
        q = self.q[:, :, :, lo:]
        scores = (q.flatten(2, 3) @ k.mT).view(*q.shape[:-1], k.shape[2])
        if ahead + k.shape[2] > lo + 1:  # the diagonal crosses this tile
            scores.masked_fill_(_later(q.shape[3], k.shape[2], lo - ahead, k.device), -math.inf)
        old = self.high[:, :, :, lo:]
        high = torch.maximum(old, scores.amax(-1, keepdim=True))
        weights = scores.sub_(high).exp_()
        decay = (old - high).exp_()
        old.copy_(high)
        self.total[:, :, :, lo:].mul_(decay).add_(weights.sum(-1, keepdim=True))
        values = (weights.flatten(2, 3) @ v).view(*q.shape[:-1], -1)
        self.out[:, :, :, lo:].mul_(decay).add_(values)

    def result(self) -> Tensor:
        return self.out / self.total


def _later(n_queries: int, n_keys: int, shift: int, device) -> Tensor:
    """True where key j comes after query i, with query 0 at key `shift`: bool [queries, keys]."""
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.triu_(shift + 1)
