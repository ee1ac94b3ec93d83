"""The KV cache: packed bytes for K and V, whatever the format, layer by layer.

Two independent choices compose. *Storage* (`PackedHeads`) is how a head's values become bytes: any
format name, separately for K and V. *Retention* (`FullLayer`, `SlidingLayer`, `SharedLayer`) is
which tokens a layer keeps. Reading never undoes the rotation: a view yields tiles in the rotated
domain, and attention rotates the query once and the output once.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import formats, metal, ops
from .rotation import group_size


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
        missing = self.padded_dim - self.head_dim
        padded = torch.nn.functional.pad(x, (0, missing)) if missing else x
        if metal.engine(x.device):
            return ops.quantize_rows(padded.contiguous(), self.format.name)
        return self.format.quantize(padded)

    def write(self, start: int, x: Tensor) -> None:
        """Pack x, float [B, H_kv, T, D], into slots start .. start + T."""
        self.data[:, :, start : start + x.shape[2]] = self.pack(x)

    def read(self, start: int, stop: int) -> Tensor:
        """Slots start .. stop, float32 [B, H_kv, stop - start, padded D], rotated domain."""
        packed = self.data[:, :, start:stop]
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
    """

    k: PackedHeads
    v: PackedHeads
    n: int
    first: int = 0
    window: int | None = None
    pads: Tensor | None = None

    def tiles(self, size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (k, v, first slot): float32 [B, H_kv, <= size, padded D], rotated domain."""
        for start in range(0, self.n, size):
            stop = min(start + size, self.n)
            yield self.k.read(start, stop), self.v.read(start, stop), start


class FullLayer:
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


class SlidingLayer:
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


class KVCache:
    """One retention object a layer, and the number of tokens already inside.

    Rows of a batch share their positions; shorter prompts are padded on the left, `pads` tokens a
    row, which no query of that row sees. `k` and `v` name one format, or one for each layer.
    Fields: k_format, v_format, max_tokens, offset (tokens held), pads (int64 [B] or None).
    Raises: ValueError for an unknown format, an unfit head, or more tokens than max_tokens.
    """

    def __init__(
        self,
        shapes: list[LayerShape],
        k: str | Sequence[str] = "q8_0",
        v: str | Sequence[str] = "turbo4",
        max_tokens: int = 4096,
        batch: int = 1,
        device="cpu",
        pads: Sequence[int] | None = None,
    ):
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, not {max_tokens}")
        if pads is not None and (len(pads) != batch or not all(0 <= p < max_tokens for p in pads)):
            raise ValueError(f"pads {list(pads)}: {batch} counts below {max_tokens} are wanted")
        self.k_format, self.v_format, self.max_tokens = k, v, max_tokens
        self.shapes, self.batch, self.offset = shapes, batch, 0
        self.pads = torch.tensor(pads, device=device) if pads and any(pads) else None
        self.layers = []
        names = zip(shapes, _per_layer(k, len(shapes)), _per_layer(v, len(shapes)), strict=True)
        for shape, k_name, v_name in names:
            self.layers.append(self._layer(shape, k_name, v_name, device))

    def _layer(self, shape: LayerShape, k: str, v: str, device):
        if shape.donor is not None:
            return SharedLayer(self.layers[shape.donor])
        kind = FullLayer if shape.window is None else SlidingLayer
        return kind(shape, k, v, self.batch, self.max_tokens, device)

    def reserve(self, n: int) -> None:
        """Check that `n` more tokens fit, before any work starts."""
        if self.offset + n > self.max_tokens:
            raise ValueError(
                f"{n} more tokens do not fit: the cache has {self.offset} of {self.max_tokens}"
            )

    def update_and_fetch(self, layer: int, k: Tensor, v: Tensor) -> View:
        """Pack this step's k and v, float [B, H_kv, T, D], and return what queries may see."""
        if k.shape[0] != self.batch:  # one row would broadcast
            raise ValueError(f"{k.shape[0]} rows do not match the cache's batch of {self.batch}")
        self.reserve(k.shape[2])
        return self.layers[layer].update(k, v, self.offset, self.pads)

    def fetch(self, layer: int) -> View:
        """What the queries of a shared layer may see: its donor must have had its update."""
        return self.layers[layer].view(self.pads)

    def advance(self, n: int) -> None:
        """End a step of `n` tokens: the next one starts behind them."""
        for layer in self.layers:
            layer.commit()
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
        return sum(layer.k.nbytes for layer in self._stored())

    @property
    def v_nbytes(self) -> int:
        return sum(layer.v.nbytes for layer in self._stored())

    def stored_bits(self) -> tuple[float, float]:
        """Measured bits per value of K and of V: storage bytes over the values it has room for."""
        rows = [(layer.k.data.shape[:3].numel(), layer.k.head_dim) for layer in self._stored()]
        values = sum(n * dim for n, dim in rows)
        return 8 * self.k_nbytes / values, 8 * self.v_nbytes / values

    def _stored(self) -> list[FullLayer | SlidingLayer]:
        return [layer for layer in self.layers if not isinstance(layer, SharedLayer)]


def _per_layer(names: str | Sequence[str], n_layers: int) -> Sequence[str]:
    if isinstance(names, str):
        return [names] * n_layers
    if len(names) != n_layers:
        raise ValueError(
            f"{len(names)} format names for {n_layers} layers: give one, or one a layer"
        )
    return names
