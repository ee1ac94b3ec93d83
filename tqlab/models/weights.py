"""Weight matrices from a GGUF file: dense float32, or packed and unpacked at use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import formats
from ..gguf_file import GGUFError, GGUFFile
from .matrices import (
    Affine,
    Dense,
    Experts,
    GroupedExperts,
    Joined,
    Matrix,
    Packed,
    PackedExperts,
    Table,
)


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

    def experts(self, *names: str, n: int, rows: int, columns: int) -> Experts | Joined:
        """`n` experts from 3-D tensors [n, rows, columns], stacked along their rows."""
        parts = [self._experts(name, (n, rows, columns)) for name in names]
        return parts[0] if len(parts) == 1 else Joined(parts)

    def _experts(self, name: str, shape: tuple[int, int, int]) -> Experts:
        self._check(name, shape)
        whole = self._pack_one(name) if self.mode == "packed" else self._dense([name])
        self.nbytes += whole.nbytes
        if isinstance(whole, Dense):
            return GroupedExperts([Dense(expert) for expert in whole.weight])
        if whole.turns:
            return PackedExperts(whole.raw, whole.type)
        return GroupedExperts([Packed(expert, whole.type) for expert in whole.raw])

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
        whole = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(self.device)
        n_out, n_in = whole.shape[-2:]
        if self.device.type == "cpu" and n_out > n_in:
            # The longer side contiguous: one token's product then takes as little as half the time.
            whole = whole.mT.contiguous().mT
        return Dense(whole)

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
