"""What every storage format shares: shapes, checks, tiling and un-rotation.

A format is one file: a subclass with a block layout, `_encode` and `_decode`, and a registry line
in `formats/__init__.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .. import rotation as rot

# Values handled at once on a CPU: measured best between 2^17 and 2^20 (benchmarks/codecs.py).
_CPU_TILE_VALUES = 1 << 18
_GPU_TILE_VALUES = 1 << 26


@dataclass(frozen=True)
class Format:
    """A block storage format.

    Fields: name; block_size (values); block_bytes; rotation (None | "wht32" | "wht64" | "wht128":
    what was applied before rounding); ggml_type (id in GGUF files, None when a file cannot hold
    it).
    """

    name: str
    block_size: int
    block_bytes: int
    rotation: str | None = None
    ggml_type: int | None = None

    few = 0  # blocks up to which `_encode_few` is used on a CPU

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value, scales included, before any padding of heads."""
        return 8 * self.block_bytes / self.block_size

    def nbytes(self, n: int) -> int:
        """Bytes of `n` consecutive values. Raises ValueError unless n % block_size == 0."""
        self._check_multiple(n)
        return n // self.block_size * self.block_bytes

    def quantize(self, x: Tensor) -> Tensor:
        """Pack the last axis; gradients stop here.

        Shapes: float [..., n], n % block_size == 0 -> uint8 [..., n // block_size * block_bytes]
        Raises: ValueError naming the offending size or dtype.
        """
        if not x.is_floating_point():
            raise ValueError(f"{self.name} quantises floating-point tensors, got {x.dtype}")
        nbytes = self.nbytes(x.shape[-1])
        blocks = x.detach().reshape(-1, self.block_size)
        if x.device.type == "cpu" and 0 < blocks.shape[0] <= self.few:
            packed = self._encode_few(blocks.float().numpy())
            return torch.from_numpy(packed).view(*x.shape[:-1], nbytes)
        out = torch.empty(len(blocks), self.block_bytes, dtype=torch.uint8, device=x.device)
        for some, packed in self._tiles(blocks, out):
            packed.copy_(self._encode(some.float()))
        return out.view(*x.shape[:-1], nbytes)

    def dequantize(self, b: Tensor, rotated: bool = False) -> Tensor:
        """Unpack the last axis.

        Shapes: uint8 [..., n // block_size * block_bytes] -> float32 [..., n]
        `rotated=True` returns the domain in which values are stored: no inverse rotation.
        Raises: ValueError naming the offending size or dtype.
        """
        if b.dtype != torch.uint8:
            raise ValueError(f"{self.name} dequantises uint8 tensors, got {b.dtype}")
        if b.shape[-1] % self.block_bytes:
            raise ValueError(
                f"{self.name} needs a multiple of {self.block_bytes} bytes, got {b.shape[-1]}"
            )
        n = b.shape[-1] // self.block_bytes * self.block_size
        blocks = b.reshape(-1, self.block_bytes)
        out = torch.empty(blocks.shape[0], self.block_size, dtype=torch.float32, device=b.device)
        for some, values in self._tiles(blocks, out):
            self._decode(some, values)
            if self.rotation and not rotated:
                values.copy_(rot.unrotate(values, self.rotation))
        return out.view(*b.shape[:-1], n)

    def _check_multiple(self, n: int) -> None:
        if n % self.block_size:
            raise ValueError(f"{self.name} needs a multiple of {self.block_size} values, got {n}")

    def _tiles(self, blocks: Tensor, out: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Some blocks and their rows of `out` at a time."""
        n = blocks.shape[0]
        values = _CPU_TILE_VALUES if blocks.device.type == "cpu" else _GPU_TILE_VALUES
        step = max(1, values // self.block_size)
        if n <= step:
            return [(blocks, out)] if n else []
        return zip(blocks.split(step), out.split(step), strict=True)

    def _encode(self, blocks: Tensor) -> Tensor:
        """float32 [N, block_size] -> uint8 [N, block_bytes]"""
        raise NotImplementedError

    def _encode_few(self, blocks: np.ndarray) -> np.ndarray:
        """`_encode` for a single token: numpy, the same operations in the same order.

        float32 [N, block_size] -> uint8 [N, block_bytes], N <= few
        """
        raise NotImplementedError

    def _decode(self, blocks: Tensor, out: Tensor) -> None:
        """uint8 [N, block_bytes] -> written to out, float32 [N, block_size], rotated domain."""
        raise NotImplementedError


def serial_sum(columns: Tensor) -> Tensor:
    """Sum over axis 0 in index order, float32: [n, N] -> [N].

    Pairwise sums (torch's .sum) differ in the last bit and flip exact ties (spec formats 4.6).
    """
    if columns.device.type == "cpu":  # numpy adds whole rows in order along the outer axis
        rows = columns.contiguous().numpy()
        if rows.shape[1] == 1:  # ... but a lone column would be summed pairwise
            return torch.from_numpy(np.add.accumulate(rows, axis=0)[-1])
        return torch.from_numpy(np.add.reduce(rows, axis=0))
    total = columns[0].clone()
    for row in columns[1:]:
        total += row
    return total


def reciprocal(d: Tensor, floor: float = 0.0) -> Tensor:
    """1 / d where d > floor, else 0: the fork's guard for empty blocks."""
    return torch.where(d > floor, 1.0 / d, torch.zeros_like(d))


TINY = 1e-10  # shorter vectors are stored as zero


def directions(blocks: Tensor, length: float) -> tuple[Tensor, Tensor]:
    """Norms, and every vector as a column of norm `length`: float32 [N, n] -> [N], [n, N]."""
    columns = blocks.T.contiguous()
    norm = square_root(serial_sum(columns * columns))
    return norm, columns * (reciprocal(norm, TINY) * length)  # not in place: it may share blocks


def corrected(norm: Tensor, codes: Tensor) -> Tensor:
    """Norm correction, norm / |codes|: decoded vectors keep their length. [N], [n, N] -> [N]"""
    length = square_root(serial_sum(codes * codes))
    return torch.where(length > TINY, norm / length, norm)


def square_root(x: Tensor) -> Tensor:
    """Correctly rounded float32 square root: torch's own on a CPU is off by an ulp at 522."""
    return x.sqrt() if x.device.type == "mps" else x.double().sqrt().float()


def bucket(r: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """Index of each value: the number of thresholds <= value, int32, same shape.

    Compare-and-add: five times faster than torch.bucketize for up to 15 thresholds, and on a CPU
    twice as fast again in numpy, whose masks are single bytes.
    """
    if r.device.type == "cpu":
        return _bucket_bytes(r.numpy(), thresholds)
    index, reached = torch.zeros_like(r), torch.empty_like(r)
    for t in thresholds:
        index += torch.ge(r, t, out=reached)
    return index.int()


def _bucket_bytes(r: np.ndarray, thresholds: tuple[float, ...]) -> Tensor:
    reached = np.empty(r.shape, np.bool_)
    index = np.zeros(r.shape, np.uint8)
    for t in np.asarray(thresholds, np.float32):
        np.greater_equal(r, t, out=reached)
        np.add(index, reached.view(np.uint8), out=index)
    return torch.from_numpy(index.astype(np.int32))


def lookup(table: tuple[float, ...], index: Tensor) -> Tensor:
    """table[index]: int32 of any shape -> float32. index_select is torch's fastest CPU gather."""
    return _tensor(table, index.device).index_select(0, index.flatten()).view(index.shape)


@lru_cache(maxsize=64)
def _tensor(table: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(table, dtype=torch.float32, device=device)


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for rows of 2 or 4 values: float32 [n, w], int32 [...] -> [..., w].

    On a CPU a row is fetched as one wide number, four times faster than row by row.
    """
    if table.device.type != "cpu":
        return torch.nn.functional.embedding(index, table)
    wide = table.view(torch.float64 if table.shape[1] == 2 else torch.complex128).flatten()
    found = wide.index_select(0, index.flatten())
    return found.view(torch.float32).view(*index.shape, table.shape[1])


def half_bytes(x: Tensor) -> Tensor:
    """float32 [N] -> its IEEE half as little-endian uint8 [N, 2]."""
    return x.to(torch.float16).view(torch.uint8).view(-1, 2)


def bytes_half(b: Tensor) -> Tensor:
    """uint8 [N, 2] (a slice is fine) -> float32 [N, 1]."""
    return reinterpret(b, torch.float16).float()


def reinterpret(b: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as `dtype`: uint8 [..., n] -> [..., n / itemsize]; an unaligned slice is copied."""
    steps = (b.storage_offset(), *b.stride()[:-1])
    aligned = b.stride(-1) == 1 and not any(step % dtype.itemsize for step in steps)
    return (b if aligned else b.clone(memory_format=torch.contiguous_format)).view(dtype)
