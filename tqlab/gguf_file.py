"""Reading GGUF files, validated before anything is allocated.

Our own parser, because the gguf package refuses files with TurboQuant's type ids (spec formats 1);
names, sizes and dequantisers of ggml's own types come from that package.
"""

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from . import formats

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_TURBO_IDS = {
    f.ggml_type: f.name for f in map(formats.get, formats.names()) if f.ggml_type is not None
}
# Ids 44 and 45 meant TQ3_1S and TQ4_1S until April 2026; sizes decide (spec formats 1).
_CANDIDATES = {44: ("tq3_1s",), 45: ("tq3_1s", "tq4_1s"), 46: ("tq4_1s",)}
_FILE_TYPES = {"43": "tq3_1s", "44": "tq4_1s"}


class GGUFError(ValueError):
    """A file that cannot be read; the message names the file, the tensor or key, and the mend."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: shape in torch order (rows last), type name, place in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value, scales included."""
        return 8 * self.nbytes / max(1, math.prod(self.shape))


@dataclass(eq=False, repr=False)
class Header:
    """What a model's file says about itself, apart from its weights.

    Fields: path; metadata (dict by key); tensors (dict name -> TensorInfo).
    """

    path: Path
    metadata: dict
    tensors: dict[str, TensorInfo]

    def info(self, name: str) -> TensorInfo:
        """The tensor called `name`. Raises GGUFError when the file has none."""
        if name not in self.tensors:
            raise GGUFError(f"{self.path}: tensor {name!r} is missing")
        return self.tensors[name]

    def get(self, key: str, default=None):
        """The metadata value of `key`, or `default`."""
        return self.metadata.get(key, default)

    def need(self, key: str):
        """The metadata value of `key`. Raises GGUFError when the file has none."""
        if key not in self.metadata:
            raise GGUFError(f"{self.path}: metadata key {key!r} is missing")
        return self.metadata[key]


class GGUFFile(Header):
    """A memory-mapped GGUF file.

    Raises: GGUFError for anything malformed, FileNotFoundError for a missing file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        self._size = self.path.stat().st_size
        with self.path.open("rb") as file:
            reader = _Reader(file, self._size, self.path)
            self.metadata, raw = reader.header()
            self._spans = reader.spans
            data_start = reader.aligned(self._alignment())
        self.tensors = _place(self, raw, data_start)

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 65536 or alignment % 8:
            raise GGUFError(f"{self.path}: general.alignment is {alignment!r}, not a multiple of 8")
        return alignment

    @cached_property
    def _bytes(self) -> Tensor:
        return torch.from_file(str(self.path), shared=False, size=self._size, dtype=torch.uint8)

    def raw(self, name: str) -> Tensor:
        """The packed rows, memory-mapped: uint8 [..., bytes of one row]."""
        t = self.info(name)
        return self._bytes[t.offset : t.offset + t.nbytes].view(*t.shape[:-1], -1)

    def dequantize(self, name: str) -> Tensor:
        """The tensor in float32, original domain.

        Raises: GGUFError when it holds a NaN or an infinity, or is of no type for weights.
        """
        t = self.info(name)
        try:
            values = dequantize(self.raw(name), t.type).view(t.shape)
        except NotImplementedError:
            raise GGUFError(f"{self.path}: tensor {name!r}: nothing unpacks {t.type}") from None
        # A finite sum has finite terms; only another sum is worth a look at every value.
        if not (values.sum().isfinite() or torch.isfinite(values).all()):
            raise GGUFError(f"{self.path}: tensor {name!r} holds NaN or infinite values")
        return values

    def encoded(self, key: str) -> bytes:
        """The metadata value of `key` as the file has it: its value type and its bytes."""
        start, stop = self._spans[key]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


def type_layout(type_name: str) -> tuple[int, int, int]:
    """Values a block, bytes a block, and the current type id, of any type a file may hold."""
    if type_name in formats.names():
        f = formats.get(type_name)
        return f.block_size, f.block_bytes, f.ggml_type
    qtype = gguf.GGMLQuantizationType[type_name.upper()]
    return *gguf.GGML_QUANT_SIZES[qtype], qtype.value


def dequantize(raw: Tensor, type_name: str) -> Tensor:
    """Packed rows of any readable type to float32: uint8 [..., bytes] -> [..., n]."""
    if type_name in formats.names():
        return formats.get(type_name).dequantize(raw)
    qtype = gguf.GGMLQuantizationType[type_name.upper()]
    return torch.from_numpy(gguf.quants.dequantize(np.asarray(raw), qtype))


class _Reader:
    """Sequential reads, each checked against the size of the file."""

    def __init__(self, file, size: int, path: Path):
        self.file, self.size, self.path = file, size, path
        self.spans: dict[str, tuple[int, int]] = {}  # where each metadata value lies

    def fail(self, message: str):
        raise GGUFError(f"{self.path}: {message}")

    def take(self, n: int) -> bytes:
        if n > self.size - self.file.tell():
            self.fail(f"truncated: {n} bytes wanted at {self.file.tell()} of {self.size}")
        return self.file.read(n)

    def scalar(self, code: str):
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        try:
            return self.take(self.scalar("Q")).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"a string before byte {self.file.tell()} is not UTF-8")

    def count(self, what: str, least_bytes: int) -> int:
        """A count of things of at least `least_bytes`, refused when the file cannot hold them."""
        n = self.scalar("Q")
        if n * least_bytes > self.size - self.file.tell():
            self.fail(f"{what} {n} is more than a file of {self.size} bytes can hold")
        return n

    def header(self):
        magic = self.file.read(4)
        if magic != b"GGUF":
            self.fail(f"not a GGUF file: it starts with {magic!r}, not b'GGUF'")
        version = self.scalar("I")
        if version not in (2, 3):
            self.fail(f"GGUF version {version}; 2 and 3 are read")
        n_tensors = self.count("tensor count", 24)
        n_keys = self.count("metadata count", 13)
        metadata = {}
        for _ in range(n_keys):
            key, start = self.string(), self.file.tell()
            if key in metadata:
                self.fail(f"metadata key {key!r} appears twice")
            metadata[key] = self.value(key, self.scalar("I"))
            self.spans[key] = (start, self.file.tell())
        return metadata, [self.tensor() for _ in range(n_tensors)]

    def value(self, key: str, kind: int, depth: int = 0):
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and depth < 2:
            return self.array(key, depth)
        if kind not in _SCALARS:
            self.fail(f"metadata key {key!r} has unknown value type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self, key: str, depth: int):
        kind = self.scalar("I")
        if kind in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[kind])
            n = self.count(f"length of array {key!r}", width)
            return list(struct.unpack(f"<{n}{_SCALARS[kind]}", self.take(n * width)))
        n = self.count(f"length of array {key!r}", 8)
        return [self.value(key, kind, depth + 1) for _ in range(n)]

    def tensor(self):
        name, n_dims = self.string(), self.scalar("I")
        if not 1 <= n_dims <= _MAX_DIMS:
            self.fail(f"tensor {name!r} has {n_dims} dimensions; 1 to {_MAX_DIMS} are read")
        ne = [self.scalar("Q") for _ in range(n_dims)]
        if 0 in ne:
            self.fail(f"tensor {name!r} has an empty dimension: {ne}")
        return name, tuple(reversed(ne)), self.scalar("I"), self.scalar("Q")

    def aligned(self, alignment: int) -> int:
        return -(-self.file.tell() // alignment) * alignment


def _place(file: GGUFFile, raw, data_start: int) -> dict[str, TensorInfo]:
    """Resolve types and check that every tensor lies inside the file."""
    spans = _spans(file, [offset for *_, offset in raw], data_start)
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in raw:
        if name in tensors:
            raise GGUFError(f"{file.path}: tensor {name!r} appears twice")
        if offset % file._alignment():
            raise GGUFError(f"{file.path}: tensor {name!r} starts at unaligned offset {offset}")
        type_name = _resolve_type(file, name, shape, kind, spans.get(offset, 0))
        nbytes = _row_bytes(file, name, type_name, shape[-1]) * math.prod(shape[:-1])
        if nbytes > spans.get(offset, 0):
            raise GGUFError(
                f"{file.path}: tensor {name!r} needs {nbytes} bytes at {data_start + offset}, "
                f"but {max(0, spans.get(offset, 0))} are there: truncated or damaged"
            )
        tensors[name] = TensorInfo(name, shape, type_name, data_start + offset, nbytes)
    return tensors


def _spans(file: GGUFFile, offsets: list[int], data_start: int) -> dict[int, int]:
    """Bytes from each offset to the next tensor, or to the end of the file."""
    ends = [*sorted(set(offsets)), file._size - data_start]
    return {a: b - a for a, b in pairwise(ends)}


def _row_bytes(file: GGUFFile, name: str, type_name: str, n: int) -> int:
    block, size, _ = type_layout(type_name)
    if n % block:
        raise GGUFError(
            f"{file.path}: tensor {name!r} has rows of {n} values; {type_name} packs {block}"
        )
    return n // block * size


def _resolve_type(file: GGUFFile, name: str, shape, kind: int, span: int) -> str:
    if kind in _CANDIDATES:
        return _resolve_tq(file, name, shape, kind, span)
    if kind in _TURBO_IDS:
        return _TURBO_IDS[kind]
    try:
        return gguf.GGMLQuantizationType(kind).name.lower()
    except ValueError:
        raise GGUFError(f"{file.path}: tensor {name!r} has unknown type id {kind}") from None


def _resolve_tq(file: GGUFFile, name: str, shape, kind: int, span: int) -> str:
    """Decide between the old and the new meaning of an id by the bytes the tensor occupies."""
    candidates, alignment = _CANDIDATES[kind], file._alignment()
    if len(candidates) == 1:
        return candidates[0]

    def fits(type_name):
        nbytes = _row_bytes(file, name, type_name, shape[-1]) * math.prod(shape[:-1])
        return nbytes <= span < nbytes + alignment

    fitting = [c for c in candidates if fits(c)]
    if len(fitting) == 1:
        return fitting[0]
    stated = _FILE_TYPES.get(str(file.get("general.file_type")))
    if stated in fitting:
        return stated
    raise GGUFError(
        f"{file.path}: tensor {name!r} of type id {kind} fills {span} bytes, which fits "
        f"{' and '.join(fitting) or 'neither tq3_1s nor tq4_1s'}; quantise the file again"
    )
