"""tq3_1s and tq4_1s: weight blocks of 32 values, rotated, with one fp16 scale per half.

Source: spec formats 3 (layout 3.1, codebooks 3.2, quantiser 3.3, dequantiser 3.4).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from .. import codebook as cb
from .. import rotation as rot
from ..packing import pack, unpack
from .base import (
    TINY,
    Format,
    bucket,
    bytes_half,
    half_bytes,
    lookup,
    reciprocal,
    rows_of,
    serial_sum,
    square_root,
)

_SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
_ROUNDS = 6


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
        index = self._index(halves, reciprocal(d, TINY)).to(torch.uint8)
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
            values = lookup(self.table, self._index(halves, reciprocal(d, TINY))) * d[:, None]
            error = serial_sum((r - values.view_as(r)).square_())
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, d, best)
        return best

    def _refine(self, halves, d):
        """Step 4: six rounds of least squares for each half, with its own indices."""
        for _ in range(_ROUNDS):
            c = lookup(self.table, self._index(halves, reciprocal(d, TINY)))
            num = torch.stack([serial_sum(p) for p in halves * c])
            den = torch.stack([serial_sum(p) for p in c * c])
            d = torch.where(den > TINY, num / den, d)
        return d

    def indices(self, b):
        """Codebook indices: uint8 [..., blocks * block_bytes] -> uint8 [..., blocks * 32]."""
        codes = b.reshape(-1, self.block_bytes)[:, 4:].T.contiguous()
        return unpack(codes, self.bits).T.reshape(*b.shape[:-1], -1)

    def _decode(self, blocks, out):
        codes = blocks[:, 4:].int()
        if self.bits == 3:  # 3 bytes hold 8 indices: twice 12 bits
            low, middle, high = codes.view(len(blocks), 4, 3).unbind(2)
            codes = torch.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], 2)
        values = rows_of(_decode_table(self.bits, self.table, blocks.device), codes)
        d = torch.cat([bytes_half(blocks[:, :2]), bytes_half(blocks[:, 2:4])], 1)
        torch.mul(values.view(-1, 2, 16), d[:, :, None], out=out.view(-1, 2, 16))


@lru_cache(maxsize=16)
def _decode_table(bits, table, device):
    """The values of one code: a byte's two, [256, 2], or four of 3 bits, [4096, 4]."""
    width = 2 if bits == 4 else 4
    code = torch.arange(1 << bits * width)
    index = torch.stack([code >> bits * j & ((1 << bits) - 1) for j in range(width)], 1)
    return torch.tensor(table, dtype=torch.float32)[index].to(device)


TQ3_1S = TQ("tq3_1s", 32, 16, "wht32", 45, 3, cb.TQ3, cb.TQ3_THRESHOLDS)
TQ4_1S = TQ("tq4_1s", 32, 20, "wht32", 46, 4, cb.TQ4, cb.TQ4_THRESHOLDS)
