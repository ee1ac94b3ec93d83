"""Rope for keys that were stored long ago: any positions, forth and back."""

from collections.abc import Callable

import torch
from torch import Tensor


class Turn:
    """The rotary rotation of one kind of layer, from a table that grows with the positions asked.

    `frequencies`: float64 [n / 2], radians a position; `rotate`: how the architecture pairs
    channels (rope_interleaved or rope_neox); channels from n on stay as they are.
    """

    def __init__(self, frequencies: Tensor, rotate: Callable, head_dim: int, device):
        self.frequencies, self.rotate, self.device = frequencies, rotate, device
        self.n = 2 * len(frequencies)
        self.mate = self.quarter(torch.arange(head_dim).float()[None])[0].abs().long().to(device)
        first = torch.arange(self.n, device=device)
        self.first = first[first < self.mate[: self.n]]  # of each pair, in order of frequency
        self._cos = self._sin = torch.zeros(0, self.n // 2, device=device)

    def reserve(self, n_positions: int) -> None:
        """Make room for positions 0 .. n_positions."""
        if n_positions > len(self._cos):
            angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * self.frequencies
            self._cos, self._sin = (f().float().to(self.device) for f in (angles.cos, angles.sin))

    def __call__(self, x: Tensor, positions: Tensor, back: bool = False) -> Tensor:
        """Rotate keys to their positions, or back to position 0.

        Shapes: x float32 [..., T or 1, D]; positions int64 [T] or [..., T] -> [..., T, D]
        Error: 1e-6 of the largest value. Raises: IndexError for a position not reserved.
        """
        # torch.broadcast_shapes is Python: forty times as long, in every tile of every layer
        shape = torch.broadcast_tensors(x[..., 0], positions)[0].shape
        cos, sin = self._cos[positions], self._sin[positions]
        return self.rotate(x.expand(*shape, -1), cos, -sin if back else sin)

    def quarter(self, x: Tensor) -> Tensor:
        """Every pair turned by a right angle: (a, b) -> (-b, a)."""
        ones = torch.ones(1, self.n // 2, device=x.device)
        return self.rotate(x, torch.zeros_like(ones), ones)

    def mates(self, x: Tensor) -> Tensor:
        """Each channel's partner in its pair; a channel that does not turn is its own."""
        return x[..., self.mate.to(x.device)]

    def columns(self, positions: Tensor) -> Tensor:
        """What a product with RoPE_p(x) depends on: cos, sin and, for channels that stay, a one.

        Shapes: int64 [...] -> float32 [..., n or n + 1]
        """
        parts = [self._cos[positions], self._sin[positions]]
        if self.n < len(self.mate):
            parts.append(torch.ones_like(parts[0][..., :1]))
        return torch.cat(parts, -1)

    def factors(self, q: Tensor, x: Tensor) -> Tensor:
        """What `columns(p)` are multiplied with to give q . RoPE_p(x).

        Shapes: q, x float32 [..., D] -> [..., n or n + 1]
        """
        along, across = q * x, q * self.quarter(x)
        parts = [(p + self.mates(p))[..., self.first] for p in (along, across)]
        if self.n < len(self.mate):
            parts.append(along[..., self.n :].sum(-1, keepdim=True))
        return torch.cat(parts, -1)
