"""turbo2, turbo3, turbo4 (the fork's KV blocks, byte for byte), turbo4_lm and blocks of 64 (ours).

A block is one vector of 128 values: norm, rotation, one codebook (spec formats 4).
turbo4_lm keeps turbo4's layout without its unused rnorm field and takes the true Lloyd-Max table.
turbo2_h64, turbo3_h64 and turbo4_lm_h64 rotate and scale 64 values at a time, so that heads of 64
need no padding (spec beyond). Codes, tables and layout stay: a rotated unit vector of 64 values is
shrunk by sqrt(64 / 128) to the spread the tables are made for.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .. import codebook as cb
from .. import rotation as rot
from ..packing import pack, unpack
from .base import (
    TINY,
    Format,
    bucket,
    bytes_half,
    corrected,
    directions,
    half_bytes,
    lookup,
    rows_of,
)


@dataclass(frozen=True)
class Turbo(Format):
    """One rotation group of 128 or 64 values; `norm` carries the norm correction n / |codes|."""

    bits: int = 0
    table: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    few = 64
    header: int = 2  # bytes before the codes: the fp16 norm, and turbo4's unused rnorm

    @property
    def _length(self) -> float:
        """Length at which a vector meets the tables, whose values have variance 1 / 128."""
        return (self.block_size / 128) ** 0.5

    def _encode(self, blocks):
        norm, unit = directions(blocks, self._length)
        index = bucket(rot.rotate_columns(unit, self.rotation), self.thresholds)
        out = torch.zeros(len(blocks), self.block_bytes, dtype=torch.uint8, device=blocks.device)
        out[:, :2] = half_bytes(corrected(norm, lookup(self.table, index)))
        out[:, self.header :] = self._pack(index.to(torch.uint8)).T
        return out

    @np.errstate(all="ignore")  # an empty block divides by 0, a huge one overflows fp16
    def _encode_few(self, blocks):
        before, after = _diagonals(self.rotation)
        norm = np.sqrt(np.add.accumulate(blocks * blocks, 1)[:, -1:])
        inv = np.where(norm > TINY, 1 / norm, np.float32(0)) * np.float32(self._length)
        rotated = rot.small_butterflies(blocks * inv * before) * after
        reached = rotated.reshape(-1) >= _column(self.thresholds)
        index = np.add.reduce(reached.view(np.uint8), 0, np.uint8).reshape(rotated.shape)
        codes = _column(self.table).take(index)
        norm /= np.sqrt(np.add.accumulate(codes * codes)[-1:].T)  # no table holds 0
        out = np.zeros((len(blocks), self.block_bytes), np.uint8)
        out[:, :2] = norm.astype(np.float16).view(np.uint8)
        out[:, self.header :] = self._pack(index, np.concatenate).T
        return out

    def _pack(self, index, cat=torch.cat):
        if self.bits != 3:
            return pack(index, self.bits)
        return cat([pack(index & 3, 2), pack(index >> 2, 1)])

    def indices(self, b):
        """Codebook indices: uint8 [..., blocks * block_bytes] -> [..., blocks * block_size]."""
        codes = b.reshape(-1, self.block_bytes)[:, self.header :].T.contiguous()
        if self.bits == 3:
            low = self.block_size // 4
            index = unpack(codes[:low], 2) | (unpack(codes[low:], 1) << 2)
        else:
            index = unpack(codes, self.bits)
        return index.T.reshape(*b.shape[:-1], -1)

    def _decode(self, blocks, out):
        codes = blocks[:, self.header :]
        if self.bits == 3:
            low = self.block_size // 4
            signs = codes[:, low:]
            high = torch.stack([signs & 15, signs >> 4], 2).view(len(blocks), low)
            codes = codes[:, :low].int() | (high.int() << 8)
        table = _decode_table(self.bits, self.table, blocks.device)
        values = rows_of(table, codes.int())
        torch.mul(values.view(out.shape), bytes_half(blocks[:, :2]), out=out)


@lru_cache(maxsize=16)
def _column(values: tuple[float, ...]) -> np.ndarray:
    return np.asarray(values, np.float32)[:, None]


@lru_cache(maxsize=4)
def _diagonals(rotation: str) -> tuple[np.ndarray, np.ndarray]:
    before, after = rot._signs(rotation, torch.device("cpu"))
    return before.numpy().T, after.numpy()


@lru_cache(maxsize=16)
def _decode_table(bits, table, device):
    """All values one code byte holds, [256, 8 / bits]; turbo3: byte + sign nibble, [4096, 4]."""
    c = torch.tensor(table, dtype=torch.float32)
    if bits == 3:
        byte = torch.arange(4096, dtype=torch.int32)
        index = torch.stack([(byte >> 2 * j & 3) | (byte >> 8 + j & 1) << 2 for j in range(4)], 1)
    else:
        byte = torch.arange(256, dtype=torch.int32)
        index = torch.stack([byte >> j & ((1 << bits) - 1) for j in range(0, 8, bits)], 1)
    return c[index.long()].to(device)


def _lloyd_max_128(bits):
    """Lloyd-Max table and thresholds for unit vectors of 128 values: N(0, 1/128)."""
    centroids, thresholds = (t / 128**0.5 for t in cb.lloyd_max(bits))
    return tuple(centroids.tolist()), tuple(thresholds.tolist())


_LM4, _LM4_THRESHOLDS = _lloyd_max_128(4)

TURBO2 = Turbo("turbo2", 128, 34, "wht128", 42, 2, cb.TURBO2, cb.TURBO2_THRESHOLDS)
TURBO3 = Turbo("turbo3", 128, 50, "wht128", 43, 3, cb.TURBO3, cb.TURBO3_THRESHOLDS)
TURBO4 = Turbo("turbo4", 128, 68, "wht128", 44, 4, cb.TURBO4, cb.TURBO4_THRESHOLDS, header=4)
TURBO4_LM = Turbo("turbo4_lm", 128, 66, "wht128", None, 4, _LM4, _LM4_THRESHOLDS)

TURBO2_H64 = Turbo("turbo2_h64", 64, 18, "wht64", None, 2, cb.TURBO2, cb.TURBO2_THRESHOLDS)
TURBO3_H64 = Turbo("turbo3_h64", 64, 26, "wht64", None, 3, cb.TURBO3, cb.TURBO3_THRESHOLDS)
TURBO4_LM_H64 = Turbo("turbo4_lm_h64", 64, 34, "wht64", None, 4, _LM4, _LM4_THRESHOLDS)
