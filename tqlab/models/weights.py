"""Weight matrices from a GGUF file: dense float32, or packed and unpacked at use."""

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from .. import formats
from ..gguf_file import GGUFFile, dequantize

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

    def __call__(self, x):
        step = max(1, _TILE_VALUES // x.shape[-1])
        parts = [linear(x, dequantize(raw, self.type)) for raw in self.raw.split(step)]
        return torch.cat(parts, -1)

    def rows(self, ids):
        return dequantize(self.raw[ids.flatten()], self.type).view(*ids.shape, -1)


class Joined(Matrix):
    """Packed matrices of different types side by side."""

    def __init__(self, parts: list[Matrix]):
        self.parts = parts

    @property
    def nbytes(self):
        return sum(p.nbytes for p in self.parts)

    def __call__(self, x):
        return torch.cat([p(x) for p in self.parts], -1)


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

    def vector(self, name: str, size: int) -> Tensor:
        """A float32 vector (norms, biases): [size]."""
        found = self.file.info(name).shape
        if found != (size,):
            raise ValueError(
                f"{self.file.path}: tensor {name!r} has shape {found}, expected ({size},)"
            )
        value = self.file.dequantize(name).to(self.device)
        self.nbytes += value.nbytes
        return value

    def matrix(self, *names: str, rows: int, columns: int) -> Matrix:
        """The matrices called `names`, stacked along their rows: [rows in all, columns]."""
        shapes = [self.file.info(name).shape for name in names]
        if sum(s[0] for s in shapes) != rows or any(s[1:] != (columns,) for s in shapes):
            raise ValueError(
                f"{self.file.path}: {' + '.join(names)} have shapes {shapes}; "
                f"expected {rows} rows of {columns} in all"
            )
        made = self._packed(names) if self.mode == "packed" else self._dense(names)
        self.nbytes += made.nbytes
        return made

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
        return Packed(self.file.raw(name).to(self.device), type_name)
