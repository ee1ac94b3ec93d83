"""tq3_1s and tq4_1s: weight blocks of 32 values, rotated, with one fp16 scale per half.

Source: spec formats 3 (layout 3.1, codebooks 3.2, quantiser 3.3, dequantiser 3.4).
"""

from dataclasses import dataclass

import torch

from .. import codebook as cb
from .. import rotation as rot
from ..packing import pack, unpack
from .base import (
    Format,
    bucket,
    bytes_half,
    half_bytes,
    lookup,
    reciprocal,
    serial_sum,
    square_root,
)

_SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
_ROUNDS = 6
_TINY = 1e-10


@dataclass(frozen=True)
class TQ(Format):
    """Two scales a block, searched jointly and then refined half by half."""

    bits: int = 0
    table: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()

    def _encode(self, blocks):
        r = rot.rotate_columns(blocks.T.contiguous(), self.rotation)  # [32, N]
        halves = r.view(2, 16, -1)
        d = self._refine(halves, self._search(r))
        index = self._index(halves, reciprocal(d, _TINY)).to(torch.uint8)
        codes = pack(index.view(32, -1), self.bits).T
        return torch.cat([half_bytes(d[0].contiguous()), half_bytes(d[1].contiguous()), codes], 1)

    def _index(self, halves, inv):
        return bucket(halves * inv[:, None], self.thresholds)

    def _search(self, r):
        """Step 3: the same factor for both halves, least squared error over the whole block."""
        halves = r.view(2, 16, -1)
        rms = torch.stack([square_root(serial_sum(h * h) / 16) for h in halves])  # [2, N]
        best = rms.clone()
        least = torch.full_like(rms[0], 1e30)
        for factor in _SCALES:
            d = rms * factor
            values = lookup(self.table, self._index(halves, reciprocal(d, _TINY))) * d[:, None]
            error = serial_sum((r - values.view_as(r)).square_())
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, d, best)
        return best

    def _refine(self, halves, d):
        """Step 4: six rounds of least squares for each half, with its own indices."""
        for _ in range(_ROUNDS):
            c = lookup(self.table, self._index(halves, reciprocal(d, _TINY)))
            num = torch.stack([serial_sum(p) for p in halves * c])
            den = torch.stack([serial_sum(p) for p in c * c])
            d = torch.where(den > _TINY, num / den, d)
        return d

    def indices(self, b):
        """Codebook indices: uint8 [..., blocks * block_bytes] -> uint8 [..., blocks * 32]."""
        codes = b.reshape(-1, self.block_bytes)[:, 4:].T.contiguous()
        return unpack(codes, self.bits).T.reshape(*b.shape[:-1], -1)

    def _decode(self, blocks, out):
        values = lookup(self.table, self.indices(blocks).int()).view(-1, 2, 16)
        d = torch.cat([bytes_half(blocks[:, :2]), bytes_half(blocks[:, 2:4])], 1)
        torch.mul(values, d[:, :, None], out=out.view(-1, 2, 16))


TQ3_1S = TQ("tq3_1s", 32, 16, "wht32", 45, 3, cb.TQ3, cb.TQ3_THRESHOLDS)
TQ4_1S = TQ("tq4_1s", 32, 20, "wht32", 46, 4, cb.TQ4, cb.TQ4_THRESHOLDS)
