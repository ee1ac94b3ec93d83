"""Matrices as a model applies them: dense float32, or packed and unpacked at use."""

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from .. import ops
from ..gguf_file import dequantize, type_layout

_TILE_VALUES = 1 << 22  # values unpacked at once by a packed matrix: 16 MB
_CORES = 4  # that one vector's product is spread over: more are not faster than the memory


class Matrix:
    """One or more [out, in] matrices that share their input, applied in one call.

    Fields: nbytes; turns (whether the stored domain is wht32's: then x is rotated once, and no
    weight is, and there is `times_rotated` for an x that is rotated already).
    """

    nbytes: int
    turns = False

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [..., in] -> float32 [..., out]"""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Rows by index (an embedding): int64 [...] -> float32 [..., in]"""
        raise NotImplementedError


class Dense(Matrix):
    """Float32 rows."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    @property
    def nbytes(self):
        return self.weight.nbytes

    def __call__(self, x):
        blocks = math.gcd(self.weight.shape[0], min(torch.get_num_threads(), _CORES))
        if x.device.type != "cpu" or blocks == 1 or x.shape[:-1].numel() != 1:
            return linear(x, self.weight)
        # MKL keeps one vector's product on one core; blocks of rows, as a batch, go to all of them.
        w = self.weight.unflatten(0, (blocks, -1)).mT
        return torch.bmm(x.reshape(1, 1, -1).expand(blocks, 1, -1), w).view(*x.shape[:-1], -1)

    def rows(self, ids):
        return embedding(ids, self.weight)


class Packed(Matrix):
    """Rows kept as the file has them (memory-mapped on a CPU), unpacked tile by tile at use."""

    def __init__(self, raw: Tensor, type_name: str):
        self.raw, self.type = raw, type_name

    @property
    def nbytes(self):
        return self.raw.nbytes

    @property
    def turns(self) -> bool:
        """Whether the stored domain is wht32's: then x is rotated once, and no weight is."""
        return self.type in ("tq3_1s", "tq4_1s")

    def __call__(self, x):
        if self.turns:
            return self.times_rotated(rotated(x))
        return torch.cat([linear(x, tile) for tile in self._tiles()], -1)

    def times_rotated(self, x: Tensor) -> Tensor:
        """The product with an x that is rotated already; only where `turns`."""
        return ops.tq_linear(x, self.raw, self.type, rotated=True)

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite; all are unpacked once."""
        return all(bool(tile.isfinite().all()) for tile in self._tiles())

    def _tiles(self):
        """Its rows in float32, some at a time: [<= step, in]"""
        raw = self.raw.flatten(0, -2)
        values = raw.shape[1] // type_layout(self.type)[1] * type_layout(self.type)[0]
        return (dequantize(part, self.type) for part in raw.split(max(1, _TILE_VALUES // values)))

    def rows(self, ids):
        if self.turns:
            return ops.embedding_rows(self.raw, ids.contiguous(), self.type)
        return dequantize(self.raw[ids.flatten()], self.type).view(*ids.shape, -1)


def rotated(x: Tensor) -> Tensor:
    """The input of every packed tq matrix that reads x, in a buffer of its own."""
    return ops.wht(x.contiguous(), "wht32")


class Joined(Matrix):
    """Matrices, or experts, of different types side by side; x is rotated once for all of them."""

    def __init__(self, parts: list[Matrix]):
        self.parts = parts

    @property
    def nbytes(self):
        return sum(p.nbytes for p in self.parts)

    def __call__(self, x, *chosen):
        turned = rotated(x) if any(p.turns for p in self.parts) else None
        parts = (p.times_rotated(turned, *chosen) if p.turns else p(x, *chosen) for p in self.parts)
        return torch.cat(list(parts), -1)


class Affine(Matrix):
    """A matrix whose output is multiplied by a scale and moved by a bias, each where given."""

    def __init__(self, inner: Matrix, scale: Tensor | None, bias: Tensor | None):
        self.inner, self.scale, self.bias = inner, scale, bias

    @property
    def nbytes(self):
        return self.inner.nbytes

    def __call__(self, x):
        y = self.inner(x)
        y = y if self.scale is None else y * self.scale
        return y if self.bias is None else y + self.bias


class Experts(Matrix):
    """An [out, in] matrix of every expert; each token goes through those that it has chosen."""

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        """float32 [T, in] (every choice reads it) or [T, k, in], int64 [T, k] -> [T, k, out]"""
        raise NotImplementedError


class PackedExperts(Experts):
    """All experts in one packed tq tensor [experts, out, in]: one call, whatever is chosen."""

    turns = True

    def __init__(self, raw: Tensor, type_name: str):
        self.raw, self.type = raw, type_name

    @property
    def nbytes(self):
        return self.raw.nbytes

    def __call__(self, x, chosen):
        return self.times_rotated(rotated(x), chosen)

    def times_rotated(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The products with an x that is rotated already."""
        return ops.tq_moe_linear(x, self.raw, self.type, chosen, rotated=True)


class GroupedExperts(Experts):
    """A matrix an expert of any type: one product for every expert in use, over its tokens."""

    def __init__(self, matrices: list[Matrix]):
        self.matrices = matrices

    @property
    def nbytes(self):
        return sum(m.nbytes for m in self.matrices)

    def __call__(self, x, chosen):
        share = chosen.shape[1] if x.dim() == 2 else 1
        rows, order = x.flatten(0, -2), chosen.flatten().argsort(stable=True)
        used, counts = chosen.flatten()[order].unique_consecutive(return_counts=True)
        groups = zip(used.tolist(), order.split(counts.tolist()), strict=True)
        y = torch.cat([self.matrices[expert](rows[group // share]) for expert, group in groups])
        return torch.empty_like(y).index_copy_(0, order, y).view(*chosen.shape, -1)


class Table:
    """An embedding too large to unpack: rows stay packed in host memory (memory-mapped)."""

    def __init__(self, raw: Tensor, type_name: str, device: torch.device):
        self._packed, self._device = Packed(raw, type_name), device

    @property
    def nbytes(self):
        return self._packed.nbytes

    def rows(self, ids: Tensor) -> Tensor:
        """Rows by index, only these unpacked: int64 [...] -> float32 [..., columns]"""
        return self._packed.rows(ids.cpu()).to(self._device)
