"""Causal attention that reads the packed cache in tiles.

Equivalent to softmax(scale * q k^T + mask) v over the whole cache, with an online softmax, so that
only one tile of K and V is ever unpacked: by the shaders of ops.kv_attention where those run and
know both formats, else by torch. Rotated formats: <R q, R k> = <q, k>, so the query is rotated once
and the keys never un-rotated; the output is un-rotated once (spec formats 2.3).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import torch
from torch import Tensor

from . import ops
from .kvcache import Parts, View
from .rotation import padded, rotate_product, unrotate_product

# Keys unpacked at once. Prefill: small tiles skip more of the causal triangle; decode: fewer calls.
PREFILL_TILE, DECODE_TILE = 128, 512
AT_ONCE = 2048  # keys up to which one token needs no tiles
# The score of a hidden key. Finite, so that a query which sees nothing of a tile (or nothing at
# all: padding) does not turn into NaN; any key it does see makes exp2(_HIDDEN - high) exactly 0.
_HIDDEN = -1e30
# Softmax in base 2, the factor folded into the queries: on a CPU torch's exp takes six times as
# long where arguments underflow, as hidden keys' do, and exp2 does not.
_LOG2_E = math.log2(math.e)


def attend(q: Tensor, view: View | Parts, scale: float, tile: int | None = None) -> Tensor:
    """Attention of the newest T tokens over a cache view.

    Shapes: q float32 [B, H, T, D]; view of n >= T tokens, H a multiple of H_kv -> [B, H, T, D]
    The last query sits in slot n - 1. Query head h reads KV head h // (H / H_kv). A query sees keys
    up to itself, no further back than the view's window, and none of its row's padding.
    The parts of a cache share one softmax; torch computes it, on any device.
    `tile`: keys unpacked at once, which torch does then, whatever else could.
    Error: equals one full softmax to float32 rounding, on any path and for any tile.
    """
    if isinstance(view, Parts):
        return _joined([_partial(q, part, scale, tile) for part in view.views], q)
    if tile is None and fused(view.k.format.name, view.v.format.name, q.shape[-1], q.device):
        return _fused(q, view, scale)
    if view.hidden is None and _fits(view, q.shape[2], tile or AT_ONCE):
        return _one_token(q, view, scale)
    return _joined([_partial(q, view, scale, tile)], q)


@dataclass(frozen=True)
class _Partial:
    """Softmax over some of the keys, not divided yet: [B, H_kv, T, G, padded D or 1]."""

    out: Tensor
    total: Tensor
    high: Tensor
    rotation: str | None


def _partial(q: Tensor, view: View, scale: float, tile: int | None) -> _Partial:
    batch, heads, steps, dim = q.shape
    kv_heads = view.k.data.shape[1]
    tile = tile or (DECODE_TILE if steps < 16 else PREFILL_TILE)
    read = _at_once if _fits(view, steps, tile) else _tiled
    query = _query(q.reshape(batch, kv_heads, -1, dim), view) * (scale * _LOG2_E)
    query = query.view(batch, kv_heads, heads // kv_heads, steps, -1).transpose(2, 3)
    return _Partial(*read(query.contiguous(), view, tile), view.v.format.rotation)


def _query(q: Tensor, view: View) -> Tensor:
    """Queries where the view's keys are: float32 [B, H_kv, N, D] -> [B, H_kv, N, D']."""
    if view.query is not None:
        return view.query(q)
    return rotate_product(padded(q, view.k.padded_dim), view.k.format.rotation)


def _joined(parts: list[_Partial], q: Tensor) -> Tensor:
    """One softmax from those of its parts: [B, H, T, D]."""
    high = reduce(torch.maximum, [part.high for part in parts])
    shares = [part if part.high is high else _rescaled(part, high) for part in parts]
    total = reduce(torch.add, [part.total for part in shares])
    outs = [unrotate_product(p.out / total, p.rotation)[..., : q.shape[-1]] for p in shares]
    return reduce(torch.add, outs).transpose(2, 3).reshape(q.shape)


def _rescaled(part: _Partial, high: Tensor) -> _Partial:
    share = (part.high - high).exp2_()
    return replace(part, out=part.out * share, total=part.total * share)


def _one_token(q: Tensor, view: View, scale: float) -> Tensor:
    """Decoding, the same in few calls, which are what one token costs: [B, H, 1, D]."""
    rows = (q * scale).reshape(q.shape[0], view.k.data.shape[1], -1, q.shape[-1])
    weights = (_query(rows, view) @ view.keys(0, view.n).mT).softmax(-1)
    out = unrotate_product(weights @ view.v.read(0, view.n), view.v.format.rotation)
    return out[..., : q.shape[-1]].reshape(q.shape)


def fused(k_format: str, v_format: str, head_dim: int, device: torch.device) -> bool:
    """Whether shaders attend over heads of these formats, and not torch."""
    handled = (ops.attention.handles(name, head_dim) for name in (k_format, v_format))
    return ops.runs_shader("kv_attention", device) and all(handled)


def _fused(q: Tensor, view: View, scale: float) -> Tensor:
    pads = view.pads
    if pads is not None:  # the op counts slots, not positions
        pads = (pads - view.first).clamp_(min=0).int()
    formats = view.k.format.name, view.v.format.name
    data = q.contiguous(), view.k.data, view.v.data
    return ops.kv_attention(*data, *formats, view.n, scale, view.window, pads)


def _fits(view: View, steps: int, tile: int) -> bool:
    """Whether one product does: a view with a mask of its own, or one query that sees all of it."""
    if view.hidden is not None:
        return True
    limited = view.pads is not None or view.n > (view.window or math.inf)
    return steps == 1 and view.n <= tile and not limited


def _at_once(q: Tensor, view: View, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """One softmax over all keys: q [B, H_kv, T, G, D] -> out [..., padded D], total, high."""
    scores = (q.flatten(2, 3) @ view.keys(0, view.n).mT).view(*q.shape[:-1], view.n)
    if view.hidden is not None:
        scores.masked_fill_(view.hidden, _HIDDEN)
    high = scores.amax(-1, keepdim=True)
    weights = scores.sub_(high).exp2_()
    out = weights.flatten(2, 3) @ view.v.read(0, view.n)
    return out.view(*q.shape[:-1], -1), weights.sum(-1, keepdim=True), high


def _tiled(q: Tensor, view: View, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    state = _OnlineSoftmax(q, view.v.padded_dim, view.window)
    first = view.n - q.shape[2]  # slot of the first query
    for k, v, start in view.tiles(tile):
        state.add(k, v, start - first, _padding(view, start, k.shape[2]))
    return state.out, state.total, state.high


def _padding(view: View, start: int, n_keys: int) -> Tensor | None:
    """True where a tile's key is padding: bool [B, 1, 1, 1, keys]."""
    if view.pads is None:
        return None
    positions = torch.arange(n_keys, device=view.pads.device) + (view.first + start)
    return (positions < view.pads[:, None])[:, None, None, None]


class _OnlineSoftmax:
    """Running maximum, sum and weighted values of every query."""

    def __init__(self, q: Tensor, v_dim: int, window: int | None):
        self.q = q  # [B, H_kv, T, G, D]: the queries of a tile are one stretch of memory
        self.window = window or math.inf
        self.high = q.new_full((*q.shape[:-1], 1), -math.inf)
        self.total = torch.zeros_like(self.high)
        self.out = q.new_zeros(*q.shape[:-1], v_dim)

    def add(self, k: Tensor, v: Tensor, ahead: int, padding: Tensor | None = None) -> None:
        """Fold in a tile whose first key lies `ahead` positions after the first query."""
        n_keys, seen = k.shape[2], self._seeing(ahead, k.shape[2])
        q = self.q[:, :, seen]
        scores = (q.flatten(2, 3) @ k.mT).view(*q.shape[:-1], n_keys)
        hidden = _hidden(q.shape[2], n_keys, seen.start - ahead, self.window, k.device)
        if hidden is not None:  # only the queries it has rows for are near the diagonal
            scores[:, :, : len(hidden)].masked_fill_(hidden, _HIDDEN)
        if padding is not None:
            scores.masked_fill_(padding, _HIDDEN)
        old = self.high[:, :, seen]
        high = torch.maximum(old, scores.amax(-1, keepdim=True))
        weights = scores.sub_(high).exp2_()
        decay = (old - high).exp2_()
        old.copy_(high)
        self.total[:, :, seen].mul_(decay).add_(weights.sum(-1, keepdim=True))
        values = (weights.flatten(2, 3) @ v).view(*q.shape[:-1], -1)
        self.out[:, :, seen].mul_(decay).add_(values)

    def _seeing(self, ahead: int, n_keys: int) -> slice:
        """The queries that see any of a tile: not the earlier ones, nor those a window later."""
        stop = min(self.q.shape[2], ahead + n_keys - 1 + self.window)
        return slice(max(0, ahead), int(stop))


@lru_cache(maxsize=64)
def _hidden(n_queries: int, n_keys: int, shift: int, window: float, device) -> Tensor | None:
    """True where query i may not see key j, with query 0 at key `shift`: bool [queries, 1, keys].

    Without a window only the first queries have later keys: the rows of the rest are left out.
    """
    later, older = n_keys > shift + 1, n_queries + shift > window
    if not (later or older):
        return None
    rows = n_queries if older else min(n_queries, n_keys - 1 - shift)
    ones = torch.ones(rows, n_keys, dtype=torch.bool, device=device)
    later = ones.triu(shift + 1)
    return (later | ones.tril_(shift - int(window)) if older else later)[:, None]
