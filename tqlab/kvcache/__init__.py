"""The KV cache: packed bytes for K and V, whatever the format, layer by layer.

Two independent choices compose. *Storage* (`PackedHeads`) is how a head's values become bytes: any
format name, separately for K and V. *Retention* (`FullLayer`, `SlidingLayer`, `SharedLayer`) is
which tokens a layer keeps. Reading never undoes the rotation: a view yields tiles in the rotated
domain, and attention rotates the query once and the output once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .mixed import MixedLayer, Parts, Policy
from .retention import FullLayer, SharedLayer, SlidingLayer, StoringLayer
from .storage import LayerShape, PackedHeads, View, padded_head_dim


class KVCache:
    """One retention object a layer, and the number of tokens already inside.

    Rows of a batch share their positions; shorter prompts are padded on the left, `pads` tokens a
    row, which no query of that row sees. `k` and `v` name one format, or one for each layer.
    `policy`: exact tokens and transformed keys, as a recipe has them (None: every token packed as
    it comes). `start`: what rope calls the first token's position.
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
        policy: Policy | None = None,
        start: int = 0,
    ):
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, not {max_tokens}")
        if pads is not None and (len(pads) != batch or not all(0 <= p < max_tokens for p in pads)):
            raise ValueError(f"pads {list(pads)}: {batch} counts below {max_tokens} are wanted")
        self.k_format, self.v_format, self.max_tokens = k, v, max_tokens
        self.shapes, self.batch, self.offset = shapes, batch, 0
        self.policy, self.start = policy, start
        self.pads = torch.tensor(pads, device=device) if pads and any(pads) else None
        self.layers = []
        names = zip(shapes, _per_layer(k, len(shapes)), _per_layer(v, len(shapes)), strict=True)
        for shape, k_name, v_name in names:
            self.layers.append(self._layer(shape, k_name, v_name, device))

    def _layer(self, shape: LayerShape, k: str, v: str, device):
        if shape.donor is not None:
            return SharedLayer(self.layers[shape.donor])
        storage = (shape, k, v, self.batch, self.max_tokens, device)
        if self.policy is not None:
            transforms = self.policy.transforms
            transform = transforms[len(self.layers)] if transforms else None
            return MixedLayer(*storage, self.policy, transform, self.start)
        return (FullLayer if shape.window is None else SlidingLayer)(*storage)

    def refuse_text(self, tokens) -> None:
        """Raises: ValueError when keys are transformed by what was learnt on these tokens."""
        if self.policy is not None and self.policy.calibration is not None:
            self.policy.calibration.refuse_text(tokens)

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
        return self._nbytes("k")

    @property
    def v_nbytes(self) -> int:
        return self._nbytes("v")

    def _nbytes(self, side: str) -> int:
        return sum(heads.nbytes for layer in self._stored() for heads in layer.storage(side))

    @property
    def shared_nbytes(self) -> int:
        """Bytes of key transforms: they belong to the model, and all its caches share them."""
        transforms = self.policy.transforms if self.policy else ()
        return sum(x.nbytes for x in transforms if x is not None)

    def stored_bits(self) -> tuple[float, float]:
        """Measured bits per value of K and of V: storage bytes over the values it has room for."""
        shapes = [
            (layer.room, shape)
            for layer, shape in zip(self.layers, self.shapes, strict=True)
            if not isinstance(layer, SharedLayer)
        ]
        values = self.batch * sum(n * shape.n_kv_heads * shape.head_dim for n, shape in shapes)
        return 8 * self.k_nbytes / values, 8 * self.v_nbytes / values

    def _stored(self) -> list[StoringLayer | MixedLayer]:
        return [layer for layer in self.layers if not isinstance(layer, SharedLayer)]


def _per_layer(names: str | Sequence[str], n_layers: int) -> Sequence[str]:
    if isinstance(names, str):
        return [names] * n_layers
    if len(names) != n_layers:
        raise ValueError(
            f"{len(names)} format names for {n_layers} layers: give one, or one a layer"
        )
    return names


__all__ = [
    "FullLayer",
    "KVCache",
    "LayerShape",
    "MixedLayer",
    "PackedHeads",
    "Parts",
    "Policy",
    "SharedLayer",
    "SlidingLayer",
    "View",
    "padded_head_dim",
]
