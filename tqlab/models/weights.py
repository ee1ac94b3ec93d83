"""Weight matrices from a GGUF file: dense float32, or packed and unpacked at use."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from .. import formats, ops
from ..gguf_file import GGUFError, GGUFFile, dequantize, type_layout

_TILE_VALUES = 1 << 22  # values unpacked at once by a packed matrix: 16 MB


class Matrix:
    """One or more [out, in] matrices that share their input, applied in one call."""

    nbytes: int

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
        return linear(x, self.weight)

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
            return ops.embedding_rows(self.raw, ids, self.type)
        return dequantize(self.raw[ids.flatten()], self.type).view(*ids.shape, -1)


def rotated(x: Tensor) -> Tensor:
    """The input of every packed tq matrix that reads x, in a buffer of its own."""
    return ops.wht(x.contiguous(), "wht32")


class Joined(Matrix):
    """Packed matrices of different types side by side; x is rotated once for all of them."""

    def __init__(self, parts: list[Matrix]):
        self.parts = parts

    @property
    def nbytes(self):
        return sum(p.nbytes for p in self.parts)

    def __call__(self, x):
        turning = [isinstance(p, Packed) and p.turns for p in self.parts]
        turned = rotated(x) if any(turning) else None
        pairs = zip(self.parts, turning, strict=True)
        return torch.cat([p.times_rotated(turned) if t else p(x) for p, t in pairs], -1)


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


class Weights:
    """Takes tensors out of a file, onto a device, in one of two modes.

    Fields: file; device; mode ("dense" | "packed"); nbytes (bytes of everything taken so far);
    kept_dense (types that packed mode had to expand on this device).
    Raises: ValueError for an unknown mode; GGUFError for missing or damaged tensors.
    """

    def __init__(self, file: GGUFFile, device: torch.device, mode: str):
        if mode not in ("dense", "packed"):
            raise ValueError(f"unknown weights mode {mode!r}; known: auto, packed, dense")
        self.file, self.device, self.mode, self.nbytes = file, device, mode, 0
        self.kept_dense: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of that name."""
        return name in self.file.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, rows last."""
        return self.file.info(name).shape

    def vector(self, name: str, size: int) -> Tensor:
        """A float32 vector (norms, biases): [size]."""
        self._check(name, (size,))
        value = self.file.dequantize(name).to(self.device)
        self.nbytes += value.nbytes
        return value

    def optional(self, name: str, size: int) -> Tensor | None:
        """A float32 vector the file may do without."""
        return self.vector(name, size) if self.has(name) else None

    def matrix(self, *names: str, rows: int | Sequence[int], columns: int) -> Matrix:
        """The matrices called `names`, stacked along their rows: [rows in all, columns].

        `rows`: of each matrix. A one-value `.scale` beside a `.weight` multiplies that matrix's
        output (NVFP4 files), a `.bias` is added to it.
        """
        sizes = (rows,) if isinstance(rows, int) else rows
        for name, size in zip(names, sizes, strict=True):
            self._check(name, (size, columns))
        made = self._packed(names) if self.mode == "packed" else self._dense(names)
        self.nbytes += made.nbytes
        scale, bias = (
            self._beside(names, sizes, "scale", 1.0),
            self._beside(names, sizes, "bias", 0.0),
        )
        return made if scale is None and bias is None else Affine(made, scale, bias)

    def _beside(self, names, sizes, kind: str, missing: float) -> Tensor | None:
        """Scales or biases of stacked matrices as one vector; None when no matrix has any."""
        parts = []
        for name, size in zip(names, sizes, strict=True):
            other = f"{name.removesuffix('.weight')}.{kind}"
            length = 1 if kind == "scale" else size
            if self.has(other) and (kind == "bias" or self.shape(other) == (1,)):
                parts.append(self.vector(other, length).expand(size))
            else:
                parts.append(None)
        if not any(part is not None for part in parts):
            return None
        filled = [
            torch.full((size,), missing, device=self.device) if part is None else part
            for part, size in zip(parts, sizes, strict=True)
        ]
        return torch.cat(filled)

    def experts(self, name: str, n: int, rows: int, columns: int) -> list[Matrix]:
        """One matrix an expert, from a 3-D tensor: each [rows, columns], dense or packed."""
        self._check(name, (n, rows, columns))
        whole = self._pack_one(name) if self.mode == "packed" else self._dense([name])
        self.nbytes += whole.nbytes
        if isinstance(whole, Dense):
            return [Dense(expert) for expert in whole.weight]
        return [Packed(expert, whole.type) for expert in whole.raw]

    def table(self, name: str, rows: int, columns: int) -> Table:
        """An embedding that is only looked up; packed in every mode."""
        self._check(name, (rows, columns))
        made = Table(self.file.raw(name), self.file.info(name).type, self.device)
        self.nbytes += made.nbytes
        return made

    def _check(self, name: str, expected: tuple[int, ...]) -> None:
        if self.shape(name) != expected:
            raise ValueError(
                f"{self.file.path}: tensor {name!r} has shape {self.shape(name)}, "
                f"expected {expected}"
            )

    def _dense(self, names):
        parts = [self.file.dequantize(name) for name in names]
        return Dense((torch.cat(parts) if len(parts) > 1 else parts[0]).to(self.device))

    def _packed(self, names):
        parts = [self._pack_one(name) for name in names]
        return parts[0] if len(parts) == 1 else Joined(parts)

    def _pack_one(self, name):
        type_name = self.file.info(name).type
        if type_name not in formats.names() and self.device.type != "cpu":
            self.kept_dense.add(type_name)  # gguf's dequantisers run on the CPU only
            return Dense(self.file.dequantize(name).to(self.device))
        packed = Packed(self.file.raw(name).to(self.device), type_name)
        if not packed.is_finite():
            raise GGUFError(f"{self.file.path}: tensor {name!r} holds NaN or infinite values")
        return packed
