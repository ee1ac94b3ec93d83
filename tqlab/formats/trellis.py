"""trellis2, trellis3, trellis4: trellis-coded quantisation of 128 or 64 rotated values (ours).

A shift register of 8 bits takes in each value's code of R bits, s' = (s << R | code) mod 256 from
s = 0, and the value is table[s']: 256 levels at R bits, of which every value's predecessors leave
it 2^R. The encoder finds the best path of all (Viterbi); the decoder needs no path: codes are
stored last value first, so that the state of value j is the 8 bits from bit R (n - 1 - j) on, and
bits beyond the block are 0. A block: the fp16 scale norm / |table values|, then n R bits.
Source: Marcellin and Fischer 1990; the bit-shift trellis of QTIP (arXiv 2406.11235); spec beyond 4.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import rotation as rot
from ..packing import pack
from .base import Format, bytes_half, corrected, directions, half_bytes, rows_of

STATES = 256
# Blocks the encoder takes at once: 256 costs of each stay in a CPU's cache.
_CPU_BLOCKS, _GPU_BLOCKS = 1 << 10, 1 << 14
_FEW = 8  # vectors, a token's, up to which calls cost more than arithmetic


@dataclass(frozen=True)
class Trellis(Format):
    """One rotation group of 128 or 64 values, `bits` a value and an fp16 scale."""

    bits: int = 0

    def _encode(self, blocks):
        values = table(self.bits, blocks.device)
        norm, unit = directions(blocks, self.block_size**0.5)
        states = viterbi(rot.rotate_columns(unit, self.rotation), values, self.bits)
        scale = half_bytes(corrected(norm, values[states]))
        codes = (states & (1 << self.bits) - 1).to(torch.uint8)
        return torch.cat([scale, pack(codes.flip(0), self.bits).T], 1)

    def _decode(self, blocks, out):
        windows = _windows(blocks[:, 2:], self.bits, self.block_size)
        values = rows_of(_pairs(self.bits, blocks.device), windows)
        torch.mul(values.view(out.shape), bytes_half(blocks[:, :2]), out=out)


@lru_cache(maxsize=16)
def table(bits: int, device: torch.device | str = "cpu") -> Tensor:
    """The value of every state, for unit variance: float32 [256].

    Source: generalised Lloyd (spec beyond 4); benchmarks/trellis_tables.py makes tables as good.
    """
    with np.load(Path(__file__).with_name("trellis.npz")) as arrays:
        return torch.from_numpy(arrays[f"L8_R{bits}"]).to(device)


def viterbi(z: Tensor, values: Tensor, bits: int) -> Tensor:
    """The path of states whose values come closest to each column, of all paths from state 0.

    Shapes: z float32 [n, N], values float32 [256] -> int64 [n, N]
    Error: none but float32 rounding of the sums of squares; the same path for any N.
    """
    on_cpu = z.device.type == "cpu"
    if on_cpu and z.shape[1] <= _FEW:
        return torch.from_numpy(_viterbi_few(z.numpy(), values.numpy(), bits))
    parts = z.split(_CPU_BLOCKS if on_cpu else _GPU_BLOCKS, 1)
    return torch.cat([_backward(p, values, bits, _least(p, values, bits)) for p in parts], 1)


def _least(z, values, bits):
    """Least cost of a path to any state with given low bits: float32 [n + 1, 256 >> bits, N].

    A state's successors depend on its low 8 - bits bits alone, so of the 2^bits states that share
    them only the best matters; it goes on to 2^bits successors, which are neighbours.
    """
    n, columns = z.shape
    low, branches = STATES >> bits, 1 << bits
    least = z.new_full((n + 1, low, columns), torch.inf)
    least[0, 0] = 0
    cost = z.new_empty(STATES, columns)
    for k in range(n):
        torch.sub(values[:, None], z[k], out=cost)
        torch.mul(cost, cost, out=cost)  # not fused: the last bit may not depend on the place
        cost.view(low, branches, columns).add_(least[k][:, None])
        torch.amin(cost.view(branches, low, columns), 0, out=least[k + 1])
    return least


def _backward(z, values, bits, least):
    """The states of the best path, last to first: int64 [n, N]."""
    low, branches = STATES >> bits, 1 << bits
    top = torch.arange(0, STATES, low, device=z.device)[:, None]  # the bits that were shifted out
    by_low = values.view(branches, low)
    states = torch.empty(z.shape, dtype=torch.int64, device=z.device)
    known = least[-1].argmin(0)  # low bits of the state, from the one behind it
    for k in range(len(z) - 1, -1, -1):
        cost = by_low.index_select(1, known).sub_(z[k])
        cost.mul_(cost).add_(least[k].gather(0, (top + known) >> bits))
        best = torch.where(cost == cost.amin(0), top, STATES).amin(0)  # argmin: twice the time
        states[k] = best + known
        known = states[k] >> bits
    return states


def _viterbi_few(z, values, bits):
    """The same in numpy with every cost kept: float32 [n, N], [256] -> int64 [n, N]."""
    n, columns = z.shape
    low, branches = STATES >> bits, 1 << bits
    cost = np.square(values - z[:, :, None])  # [n, N, 256]
    least = np.full((columns, low), np.inf, np.float32)
    least[:, 0] = 0
    for step in cost:
        by_source = step.reshape(columns, low, branches)
        by_source += least[:, :, None]
        np.minimum.reduce(step.reshape(columns, branches, low), 1, out=least)
    top = cost.reshape(n, columns, branches, low).argmin(2) * low
    states, known, each = np.empty(z.shape, np.int64), least.argmin(1), np.arange(columns)
    for k in range(n - 1, -1, -1):
        states[k] = top[k][each, known] + known
        known = states[k] >> bits
    return states


def _windows(stream, bits, n):
    """The 8 + bits bits that hold the states of values 2 p and 2 p + 1: int32 [N, n / 2]."""
    octets = torch.nn.functional.pad(stream, (0, 2)).int()
    words = octets[:, :-2] | octets[:, 1:-1] << 8 | octets[:, 2:] << 16
    first = bits * torch.arange(n - 2, -1, -2, dtype=torch.int32, device=stream.device)
    return words.index_select(1, first >> 3) >> (first & 7) & ((STATES << bits) - 1)


@lru_cache(maxsize=16)
def _pairs(bits, device):
    """Two values in a row by the window that holds their states: float32 [256 << bits, 2]."""
    window = torch.arange(STATES << bits)
    return table(bits)[torch.stack([window >> bits, window & STATES - 1], 1)].to(device)


def _family(suffix: str, n: int) -> tuple[Trellis, ...]:
    sizes = {bits: 2 + bits * n // 8 for bits in (2, 3, 4)}
    return tuple(Trellis(f"trellis{b}{suffix}", n, sizes[b], f"wht{n}", None, b) for b in sizes)


TRELLIS, TRELLIS_64 = _family("", 128), _family("_h64", 64)
