"""Writing GGUF files: the header first, then every tensor streamed piece by piece, then a rename.

The data goes to a temporary file beside the target, so that a file of that name is always whole:
an error, Ctrl-C or a full disk leaves the folder as it was.
"""

import contextlib
import errno
import math
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .gguf_file import GGUFError, type_layout

_ALIGNMENT = 32
_VERSION = 3
# Names of GGUF's value types -> (id, struct code); "str" and arrays have their own layout.
_KINDS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "str": (8, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
_ARRAY = 9


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written: its name, shape in torch order (rows last) and type name."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int:
        """Bytes of its data. Raises GGUFError when the rows do not fit the type's block."""
        block, size, _ = type_layout(self.type)
        if self.shape[-1] % block:
            raise GGUFError(
                f"tensor {self.name!r} has rows of {self.shape[-1]}; {self.type} packs {block}"
            )
        return math.prod(self.shape) // block * size


def encode(kind: str, value) -> bytes:
    """A metadata value with its type id in front.

    `kind`: u8 ... f64, bool, str, or "array of" one of them: "[i32]".
    Raises: KeyError for an unknown kind; struct.error for a value out of range.
    """
    if kind.startswith("["):
        element = kind[1:-1]
        head = struct.pack("<IIQ", _ARRAY, _KINDS[element][0], len(value))
        return head + b"".join(_payload(element, v) for v in value)
    return struct.pack("<I", _KINDS[kind][0]) + _payload(kind, value)


def _payload(kind: str, value) -> bytes:
    return _string(value) if kind == "str" else struct.pack("<" + _KINDS[kind][1], value)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


class GGUFWriter:
    """`with GGUFWriter(path, metadata, tensors) as out:` then `out.write(name, piece)` in order.

    `metadata`: key -> bytes as `encode` or `GGUFFile.encoded` gives them; `tensors` in file order.
    Leaving the block normally checks that every byte came, syncs and renames; by an error, it
    removes what was written.
    Raises: OSError naming the target (no such folder, disk full); GGUFError for misplaced data.
    """

    def __init__(
        self, path: str | Path, metadata: Mapping[str, bytes], tensors: Iterable[TensorPlan]
    ):
        self.path, self.tensors = Path(path), list(tensors)
        self._metadata = {k: v for k, v in metadata.items() if k != "general.alignment"}
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._next, self._missing = 0, 0  # the tensor being written, and its bytes to come

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return len(self._header()) + sum(_padded(t.nbytes) for t in self.tensors)

    def __enter__(self) -> "GGUFWriter":
        self._check_target(self.nbytes)
        self._file = self._part.open("wb")
        try:
            self._guarded(self._file.write, self._header())
        except BaseException:
            self._discard()
            raise
        self._begin()
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses again
            self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, name: str, piece: np.ndarray) -> None:
        """The next bytes (uint8, any shape) of tensor `name`, which must be the one due."""
        if self._next == len(self.tensors) or self.tensors[self._next].name != name:
            due = self.tensors[self._next].name if self._next < len(self.tensors) else "nothing"
            raise GGUFError(f"{self.path}: data for {name!r} came, but {due!r} is due")
        if piece.nbytes > self._missing:
            raise GGUFError(f"{self.path}: {piece.nbytes} bytes for {name!r}, {self._missing} left")
        self._guarded(self._file.write, np.ascontiguousarray(piece).data)
        self._missing -= piece.nbytes
        if not self._missing:
            self._pad(self.tensors[self._next].nbytes)
            self._next += 1
            self._begin()

    def _begin(self) -> None:
        if self._next < len(self.tensors):
            self._missing = self.tensors[self._next].nbytes

    def _pad(self, nbytes: int) -> None:
        self._guarded(self._file.write, bytes(_padded(nbytes) - nbytes))

    def _finish(self) -> None:
        if self._next < len(self.tensors):
            name = self.tensors[self._next].name
            raise GGUFError(f"{self.path}: {self._missing} bytes of tensor {name!r} never came")
        self._guarded(self._file.flush)
        self._guarded(os.fsync, self._file.fileno())
        self._file.close()
        self._part.replace(self.path)
        _sync_folder(self.path.parent)

    def _guarded(self, call, *arguments) -> None:
        """Run one file operation; an OSError gains the target's name, which write's lacks."""
        try:
            call(*arguments)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def _check_target(self, nbytes: int) -> None:
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(self.path))
        if not self.path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(self.path.parent))
        free = shutil.disk_usage(self.path.parent).free
        if nbytes > free:
            need = f"{nbytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
            raise OSError(errno.ENOSPC, need, str(self.path))

    def _header(self) -> bytes:
        counts = struct.pack("<4sIQQ", b"GGUF", _VERSION, len(self.tensors), len(self._metadata))
        keys = b"".join(_string(key) + value for key, value in self._metadata.items())
        head = counts + keys + self._table()
        return head.ljust(_padded(len(head)), b"\0")

    def _table(self) -> bytes:
        parts, offset = [], 0
        for t in self.tensors:
            ne, (*_, type_id) = tuple(reversed(t.shape)), type_layout(t.type)
            parts.append(_string(t.name) + struct.pack(f"<I{len(ne)}Q", len(ne), *ne))
            parts.append(struct.pack("<IQ", type_id, offset))
            offset += _padded(t.nbytes)
        return b"".join(parts)


def _padded(n: int) -> int:
    return -(-n // _ALIGNMENT) * _ALIGNMENT


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
