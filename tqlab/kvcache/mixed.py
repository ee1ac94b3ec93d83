"""Retention with exact tokens: the first and the last ones stay f16, those between are packed.

It is made of the other kinds: a ring holds the window, a full or sliding layer the packed tokens.
These live in a time of their own, in which token `sinks` comes first and all come late by a window.
Keys may be transformed on their way into it (`tqlab.transforms`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from .. import formats
from ..calibration import Calibration
from ..transforms import Plain
from .retention import FullLayer, SlidingLayer
from .storage import LayerShape, PackedHeads, View, padded_head_dim

EXACT = "f16"


@dataclass(frozen=True)
class Policy:
    """What a recipe asks of a cache beside its formats.

    Fields: sinks, window (tokens kept in f16: the first, and a query's last, its own included);
    transforms (one a layer, None for a layer without keys of its own; empty: keys as they are);
    calibration (what they were made from).
    """

    sinks: int = 0
    window: int = 0
    transforms: Sequence[Plain | None] = ()
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Parts:
    """Views that share one softmax."""

    views: tuple[View, ...]


class MixedLayer:
    """Exact first and last tokens, packed ones between; full or sliding like its shape.

    A token is packed, from its f16 values, when it leaves the window: how a text is cut into steps
    changes no byte. A query sees what decoding would show it, however many tokens its step has: its
    own last `window` keys exact, older ones packed.
    """

    def __init__(
        self,
        shape: LayerShape,
        k: str,
        v: str,
        batch: int,
        max_tokens: int,
        device,
        policy: Policy,
        transform: Plain | None = None,
        start: int = 0,
    ):
        self.shape, self.policy, self.start = shape, policy, start
        fmt = formats.get(k)
        plain = Plain(fmt.rotation, padded_head_dim(fmt, shape.head_dim))
        self.transform = plain if transform is None else transform
        exact = (EXACT, EXACT, batch)
        self.sinks = FullLayer(shape, *exact, min(policy.sinks, max_tokens), device)
        ring = replace(shape, window=policy.window)
        self.ring = SlidingLayer(ring, *exact, max_tokens, device) if policy.window else None
        self._late = max(0, policy.window - 1)
        self.packed = self._packed(k, v, batch, max_tokens, device)
        self.room = min(max_tokens, shape.window or max_tokens)

    def _packed(self, *storage) -> FullLayer | SlidingLayer | None:
        """What holds the packed tokens; None when the shape's own window has only exact ones."""
        *rest, max_tokens, device = storage
        capacity, window = self._count(max_tokens), self.shape.window
        if window is None:
            return FullLayer(self.shape, *rest, capacity, device)
        if capacity == 0 or window <= self.policy.window:
            return None
        shape = replace(self.shape, window=window - self._late)
        return SlidingLayer(shape, *rest, capacity, device)

    def storage(self, side: str) -> list[PackedHeads]:
        """Everything held of side "k" or "v"."""
        layers = (self.sinks, self.ring, self.packed)
        return [getattr(layer, side) for layer in layers if layer is not None]

    def _count(self, end: int) -> int:
        """Tokens packed once `end` are in: one more than the last query sees, for the next step."""
        return max(0, end - self.policy.sinks - self._late)

    def update(self, k: Tensor, v: Tensor, offset: int, pads: Tensor | None = None) -> Parts:
        """Store a step's tokens, the first at position `offset`."""
        if self.transform.centre is not None:
            k = k - self.transform.centre
        self._step = offset, offset + k.shape[2]
        self._keep_first(k, v, pads)
        recent = self.ring.update(k, v, offset) if self.ring is not None else None
        if self.packed is not None:
            self._pack(*self._leaving(k, v, recent), pads)
        return self.view(pads)

    def _keep_first(self, k: Tensor, v: Tensor, pads: Tensor | None) -> None:
        """Put the step's share of every row's first tokens in their places."""
        (offset, _), n = self._step, self.sinks.k.data.shape[2]
        if n == 0 or (pads is None and offset >= n):
            return
        token = self._first(pads, k.device) - offset
        inside = ((token >= 0) & (token < k.shape[2]))[:, None, :, None]
        token = token.clamp(0, k.shape[2] - 1)[:, None, :, None]
        for heads, x in ((self.sinks.k, k), (self.sinks.v, v)):
            new = heads.pack(x.gather(2, token.expand(*x.shape[:2], n, x.shape[3])))
            heads.data.copy_(torch.where(inside, new, heads.data))

    def _first(self, pads: Tensor | None, device) -> Tensor:
        """Positions of every row's first tokens: int64 [B or 1, sinks]."""
        every = torch.arange(self.sinks.k.data.shape[2], device=device)[None]
        return every if pads is None else every + pads[:, None]

    def _leaving(self, k: Tensor, v: Tensor, recent: View | None) -> tuple[Tensor, Tensor, int]:
        """The tokens to be packed in this step, k and v, and the first's position."""
        start, stop = (self._count(step) + self.policy.sinks for step in self._step)
        if recent is not None:
            slots = [min(end - recent.first, recent.n) for end in (start, stop)]  # none: 0 long
            return recent.k.read(*slots), recent.v.read(*slots), start
        part = slice(start - self._step[0], stop - self._step[0])
        return k[:, :, part], v[:, :, part], start

    def _pack(self, k: Tensor, v: Tensor, start: int, pads: Tensor | None) -> None:
        positions = self._positions(start, start + k.shape[2], pads, k.device)
        k = self.transform.encode(k, positions)
        self.packed.update(k, v, start - self.policy.sinks)

    def _positions(self, start: int, stop: int, pads: Tensor | None, device) -> Tensor:
        """What rope calls tokens start .. stop: int64 [n] or, with padding, [B, 1, n]."""
        every = torch.arange(start, stop, device=device)
        if pads is not None:
            every = (every - pads[:, None, None]).clamp_(min=0)
        return every + self.start

    def view(self, pads: Tensor | None = None) -> Parts:
        """What this step's queries may see."""
        return Parts((*self._packed_view(pads), *self._exact_view(pads)))

    def commit(self) -> None:
        """End the step."""
        for layer in (self.ring, self.packed):
            if layer is not None:
                layer.commit()

    def _packed_view(self, pads: Tensor | None) -> list[View]:
        sinks, window = self.policy.sinks, self.policy.window
        n_seen = 0 if self.packed is None else self._count(self._step[1]) - (window > 0)
        if n_seen <= 0:
            return []
        view = self.packed.view(None if pads is None else pads + sinks)
        first = view.first + sinks
        changes = {"n": view.n - (window > 0), "first": first, "query": self.transform.query}
        if self.shape.window is not None:
            changes["window"] = self.shape.window - window
        if self.transform.turns:
            changes["decode"] = partial(self._decode, first, pads)
        return [replace(view, **changes)]

    def _decode(self, first: int, pads: Tensor | None, y: Tensor, start: int) -> Tensor:
        """Keys of slots start .. start + n from what their format decoded."""
        start += first
        positions = self._positions(start, start + y.shape[2], pads, y.device)
        return self.transform.decode(y, positions)

    def _exact_view(self, pads: Tensor | None) -> list[View]:
        heads, first = (self.sinks.k, self.sinks.v), self._step[1]
        if self.ring is not None:
            recent = self.ring.view()
            first, pairs = recent.first, zip(heads, (recent.k, recent.v), strict=True)
            heads = [a.holding(torch.cat([a.data, b.data[:, :, : recent.n]], 2)) for a, b in pairs]
        n = heads[0].data.shape[2]
        if n == 0:
            return []
        return [View(*heads, n, hidden=self._hidden(first, pads, heads[0].data.device))]

    def _hidden(self, first: int, pads: Tensor | None, device) -> Tensor | None:
        """True where a query may not see an exact key: bool [B or 1, 1, T, 1, keys]."""
        far = self.shape.window or self._step[1]
        sizes = self.sinks.k.data.shape[2], min(self.policy.window, far), far
        if pads is None:
            return _hidden_unpadded(*self._step, first, *sizes, device)
        return _hidden_exact(*self._step, first, *sizes, pads[:, None, None])


@lru_cache(maxsize=8)
def _hidden_unpadded(offset, end, first, n_sinks, near, far, device) -> Tensor | None:
    lead = torch.zeros(1, 1, 1, dtype=torch.int64, device=device)
    hidden = _hidden_exact(offset, end, first, n_sinks, near, far, lead)
    alone = end - offset == 1  # without a mask, several queries would see keys in their order
    return None if alone and not bool(hidden.any()) else hidden


def _hidden_exact(offset, end, first, n_sinks, near, far, lead: Tensor) -> Tensor:
    """Queries offset .. end against a row's first tokens, from `lead` on, and tokens first .. end.

    Of its own last tokens a query sees `near`; of those it keeps from the start, `far` back.
    """
    query = torch.arange(offset, end, device=lead.device)[:, None]
    recent = torch.arange(first, end, device=lead.device)
    sinks = lead + torch.arange(n_sinks, device=lead.device)
    hide_sinks = (sinks > query) | (sinks <= query - far)
    hide_recent = (recent > query) | (recent <= query - near) | (recent < lead + n_sinks)
    return torch.cat([hide_sinks, hide_recent], -1)[:, None, :, None]
