"""The KV cache: packed bytes for K and V, whatever the format, layer by layer.

Two independent choices compose. *Storage* (`PackedHeads`) is how a head's values become bytes: any
format name, separately for K and V. *Retention* (`FullLayer`) is which tokens a layer keeps.
Reading never undoes the rotation: a view yields tiles in the rotated domain, and attention rotates
the query once and the output once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import formats
from .rotation import group_size


@dataclass(frozen=True)
class LayerShape:
    """What one layer stores: the number of KV heads and the values in each."""

    n_kv_heads: int
    head_dim: int


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

    def write(self, start: int, x: Tensor) -> None:
        """Pack x, float [B, H_kv, T, D], into slots start .. start + T."""
        padded = torch.nn.functional.pad(x, (0, self.padded_dim - self.head_dim))
        self.data[:, :, start : start + x.shape[2]] = self.format.quantize(padded)

    def read(self, start: int, stop: int) -> Tensor:
        """Slots start .. stop, float32 [B, H_kv, stop - start, padded D], rotated domain."""
        return self.format.dequantize(self.data[:, :, start:stop], rotated=True)


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
    """The tokens a layer's queries may see in this step: slots 0 .. n hold positions 0 .. n."""

    k: PackedHeads
    v: PackedHeads
    n: int

    def tiles(self, size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (k, v, first position): float32 [B, H_kv, <= size, padded D], rotated domain."""
        for start in range(0, self.n, size):
            stop = min(start + size, self.n)
            yield self.k.read(start, stop), self.v.read(start, stop), start


class FullLayer:
    """Retention: every token is kept, slot = position."""

    def __init__(self, shape: LayerShape, k: str, v: str, batch: int, max_tokens: int, device):
        self.k = PackedHeads(k, batch, shape, max_tokens, device)
        self.v = PackedHeads(v, batch, shape, max_tokens, device)

    def update(self, k: Tensor, v: Tensor, offset: int) -> View:
        self.k.write(offset, k)
        self.v.write(offset, v)
        return View(self.k, self.v, offset + k.shape[2])


class KVCache:
    """One retention object a layer, and the number of tokens already inside.

    Fields: k_format, v_format, max_tokens, offset (tokens held).
    Raises: ValueError for an unknown format, an unfit head, or more tokens than max_tokens.
    """

    def __init__(
        self,
        shapes: list[LayerShape],
        k: str = "q8_0",
        v: str = "turbo4",
        max_tokens: int = 4096,
        batch: int = 1,
        device="cpu",
    ):
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, not {max_tokens}")
        self.k_format, self.v_format, self.max_tokens = k, v, max_tokens
        self.shapes, self.batch, self.offset = shapes, batch, 0
        self.layers = [FullLayer(s, k, v, batch, max_tokens, device) for s in shapes]

    def reserve(self, n: int) -> None:
        """Check that `n` more tokens fit, before any work starts."""
        if self.offset + n > self.max_tokens:
            raise ValueError(
                f"{n} more tokens do not fit: the cache has {self.offset} of {self.max_tokens}"
            )

    def update_and_fetch(self, layer: int, k: Tensor, v: Tensor) -> View:
        """Pack this step's k and v, float [B, H_kv, T, D], and return what queries may see."""
        self.reserve(k.shape[2])
        return self.layers[layer].update(k, v, self.offset)

    def advance(self, n: int) -> None:
        """End a step of `n` tokens: the next one starts behind them."""
        self.offset += n

    def reset(self) -> None:
        """Forget every token; the storage stays."""
        self.offset = 0

    @property
    def nbytes(self) -> int:
        """Bytes of storage really held, K and V, all layers."""
        return self.k_nbytes + self.v_nbytes

    @property
    def k_nbytes(self) -> int:
        return sum(layer.k.nbytes for layer in self.layers)

    @property
    def v_nbytes(self) -> int:
        return sum(layer.v.nbytes for layer in self.layers)

    def stored_bits(self) -> tuple[float, float]:
        """Measured bits per value of K and of V: storage bytes over the values it has room for."""
        values = self.batch * self.max_tokens * sum(s.n_kv_heads * s.head_dim for s in self.shapes)
        return 8 * self.k_nbytes / values, 8 * self.v_nbytes / values
