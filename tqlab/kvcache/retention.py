"""Retention: which tokens a layer keeps, whatever the format of their bytes."""

import torch
from torch import Tensor

from .storage import LayerShape, PackedHeads, View


class StoringLayer:
    """What layers with keys and values of their own have in common: `k` and `v`, their storage."""

    k: PackedHeads
    v: PackedHeads

    @property
    def room(self) -> int:
        """Tokens it has room for."""
        return self.k.data.shape[2]

    def storage(self, side: str) -> list[PackedHeads]:
        """Everything held of side "k" or "v"."""
        return [getattr(self, side)]


class FullLayer(StoringLayer):
    """Retention: every token is kept, slot = position."""

    def __init__(self, shape: LayerShape, k: str, v: str, batch: int, max_tokens: int, device):
        self.k = PackedHeads(k, batch, shape, max_tokens, device)
        self.v = PackedHeads(v, batch, shape, max_tokens, device)
        self._end = 0

    def update(self, k: Tensor, v: Tensor, offset: int, pads: Tensor | None = None) -> View:
        """Store a step's tokens, the first at position `offset`; nothing older changes."""
        self.k.write(offset, k)
        self.v.write(offset, v)
        self._end = offset + k.shape[2]
        return self.view(pads)

    def view(self, pads: Tensor | None = None) -> View:
        """What this step's queries may see."""
        return View(self.k, self.v, self._end, pads=pads)

    def commit(self) -> None:
        """End the step."""


class SlidingLayer(StoringLayer):
    """Retention: a ring of the last `window` tokens, slot = position modulo window.

    A step's tokens wait beside the ring until `commit`: its first query still needs window - 1
    older keys, layers that share this one read the same view later in the step, and a step that is
    interrupted leaves the ring as it was.
    """

    def __init__(self, shape: LayerShape, k: str, v: str, batch: int, max_tokens: int, device):
        self.window, slots = shape.window, min(shape.window, max_tokens)
        self.k = PackedHeads(k, batch, shape, slots, device)
        self.v = PackedHeads(v, batch, shape, slots, device)
        self._step = None

    def update(self, k: Tensor, v: Tensor, offset: int, pads: Tensor | None = None) -> View:
        """Pack a step's tokens, the first at position `offset`; the ring does not change yet."""
        self._step = (self.k.pack(k), self.v.pack(v), offset)
        return self.view(pads)

    def view(self, pads: Tensor | None = None) -> View:
        """The ring's tokens in order of position, then the step's."""
        k, v, offset = self._step
        older = torch.arange(max(0, offset - self.window + 1), offset) % self.k.data.shape[2]
        older = older.to(k.device)
        k, v = (torch.cat([p.data[:, :, older], new], 2) for p, new in ((self.k, k), (self.v, v)))
        first = offset - len(older)
        return View(self.k.holding(k), self.v.holding(v), k.shape[2], first, self.window, pads)

    def commit(self) -> None:
        """End the step: its last tokens take the places of the oldest."""
        k, v, offset = self._step
        kept = min(k.shape[2], self.window)
        newest = torch.arange(offset + k.shape[2] - kept, offset + k.shape[2])
        slots = (newest % self.k.data.shape[2]).to(k.device)
        self.k.data[:, :, slots], self.v.data[:, :, slots] = k[:, :, -kept:], v[:, :, -kept:]
        self._step = None


class SharedLayer:
    """Retention: nothing is stored; queries see what the donor's queries saw in the same step."""

    def __init__(self, donor: FullLayer | SlidingLayer):
        self.view = donor.view

    def commit(self) -> None:
        """End the step."""
