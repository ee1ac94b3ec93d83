"""Storage: how a head's values become bytes, and the tiles in which attention reads them back."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import formats, metal, ops
from ..rotation import group_size, padded


@dataclass(frozen=True)
class LayerShape:
    """What one layer stores: KV heads, the values in each, and which tokens.

    `window`: keys a query sees, its own included (None: all of them). `donor`: the earlier layer
    whose keys and values this one reads instead of storing its own (None: it has its own).
    """

    n_kv_heads: int
    head_dim: int
    window: int | None = None
    donor: int | None = None


class PackedHeads:
    """Storage of `capacity` tokens of one layer's K or V: uint8 [B, H_kv, capacity, head_bytes].

    Heads whose size is not a multiple of the rotation group are zero-padded one by one, as the fork
    does (spec formats 5), so the real stored bits per value can exceed the format's own.
    Raises: ValueError when the head does not fit the format's block.
    """

    def __init__(self, fmt: str, batch: int, shape: LayerShape, capacity: int, device):
        self.format = formats.get(fmt)
        self.head_dim = shape.head_dim
        self.padded_dim = padded_head_dim(self.format, shape.head_dim)
        size = (batch, shape.n_kv_heads, capacity, self.format.nbytes(self.padded_dim))
        self.data = torch.zeros(size, dtype=torch.uint8, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes really held."""
        return self.data.untyped_storage().nbytes()

    def pack(self, x: Tensor) -> Tensor:
        """float [B, H_kv, T, D] -> uint8 [B, H_kv, T, head_bytes], not stored yet."""
        x = padded(x, self.padded_dim)
        if metal.engine(x.device):
            return ops.quantize_rows(x.contiguous(), self.format.name)
        return self.format.quantize(x)

    def write(self, start: int, x: Tensor) -> None:
        """Pack x, float [B, H_kv, T, D], into slots start .. start + T."""
        self.data.narrow(2, start, x.shape[2]).copy_(self.pack(x))

    def read(self, start: int, stop: int) -> Tensor:
        """Slots start .. stop, float32 [B, H_kv, stop - start, padded D], rotated domain."""
        packed = self.data.narrow(2, start, stop - start)
        if metal.engine(packed.device):
            return ops.dequantize_rows(packed.contiguous(), self.format.name, rotated=True)
        return self.format.dequantize(packed, rotated=True)

    def holding(self, data: Tensor) -> "PackedHeads":
        """The same layout over other bytes: uint8 [B, H_kv, any, head_bytes]."""
        other = copy.copy(self)
        other.data = data
        return other


def padded_head_dim(fmt: formats.Format, head_dim: int) -> int:
    """Head size after padding: the next multiple of the rotation group for the KV formats.

    Raises: ValueError when the head is not a multiple of a format's block that does not pad.
    """
    if head_dim < 1:
        raise ValueError(f"head_dim must be positive, not {head_dim}")
    if fmt.rotation:
        group = group_size(fmt.rotation)
        return -(-head_dim // group) * group
    if head_dim % fmt.block_size:
        raise ValueError(
            f"{fmt.name} packs {fmt.block_size} values a block; heads of {head_dim} do not divide. "
            "Use a turbo format (they pad) or f16"
        )
    return head_dim


@dataclass(frozen=True)
class View:
    """The tokens a layer's queries may see in this step: slots 0 .. n hold consecutive positions.

    Fields: first (position of slot 0); window (a query sees this many keys, itself included; None:
    all before it); pads (positions before pads[b] are padding in row b; None: no padding).
    Of parts of a cache: hidden (bool [B or 1, 1, T, 1, n], all that is masked, in place of order,
    window and pads); query, decode (a key transform's: queries [B, H_kv, N, D], decoded keys and
    their first slot).
    """

    k: PackedHeads
    v: PackedHeads
    n: int
    first: int = 0
    window: int | None = None
    pads: Tensor | None = None
    hidden: Tensor | None = None
    query: Callable[[Tensor], Tensor] | None = None
    decode: Callable[[Tensor, int], Tensor] | None = None

    def keys(self, start: int, stop: int) -> Tensor:
        """Keys of slots start .. stop as queries meet them: float32 [B, H_kv, n, D']."""
        k = self.k.read(start, stop)
        return k if self.decode is None else self.decode(k, start)

    def tiles(self, size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (k, v, first slot): float32 [B, H_kv, <= size, padded D], rotated domain."""
        for start in range(0, self.n, size):
            stop = min(start + size, self.n)
            yield self.keys(start, stop), self.v.read(start, stop), start
