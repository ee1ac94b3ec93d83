"""A GGUF writer for tests: valid files in a few lines, and every kind of invalid one."""

import struct
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tqlab import formats
from tqlab.gguf_file import GGUFError, GGUFFile

KINDS = {
    "u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"),
    "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"),
    "f64": (12, "d"),
}  # fmt: skip


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: str, content) -> bytes:
    """A typed value: kind "u32", "str", or "[u32]" / "[str]" for arrays."""
    if kind == "str":
        return struct.pack("<I", 8) + string(content)
    if kind.startswith("["):
        inner = kind[1:-1]
        items = [value(inner, item)[4:] for item in content]
        code = {"str": 8}.get(inner, 9 if inner.startswith("[") else None)
        code = KINDS[inner][0] if code is None else code
        return struct.pack("<IIQ", 9, code, len(items)) + b"".join(items)
    code, letter = KINDS[kind]
    return struct.pack("<I" + letter, code, content)


@dataclass
class Tensor:
    """`ne` is in file order (rows first); `offset` None means: where it belongs."""

    name: str | bytes
    ne: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None

    @classmethod
    def f32(cls, name: str, array) -> "Tensor":
        array = np.asarray(array, np.float32)
        return cls(name, array.shape[::-1], 0, array.tobytes())


@dataclass
class File:
    """Fields set otherwise than by default make the file invalid in that one place."""

    metadata: list[tuple] = field(default_factory=list)  # (key, kind, content)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32
    pad_end: bool = True

    def pad(self, n: int) -> int:
        return -n % self.alignment

    def sections(self) -> list[bytes]:
        """Magic, version, counts, one entry a key, one a tensor, padding, data of each."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.metadata) if self.n_keys is None else self.n_keys
        parts = [self.magic, struct.pack("<I", self.version), struct.pack("<QQ", n_tensors, n_keys)]
        parts += [string(key) + value(kind, content) for key, kind, content in self.metadata]
        offset = 0
        for t in self.tensors:
            at = offset if t.offset is None else t.offset
            head = string(t.name) + struct.pack("<I", len(t.ne))
            parts.append(head + struct.pack(f"<{len(t.ne)}QIQ", *t.ne, t.type, at))
            offset += len(t.data) + self.pad(len(t.data))
        parts.append(bytes(self.pad(sum(map(len, parts)))))
        for t in self.tensors:
            last = t is self.tensors[-1] and not self.pad_end
            parts.append(t.data + bytes(0 if last else self.pad(len(t.data))))
        return parts

    def write(self, path):
        """Write the file and return its path."""
        path.write_bytes(b"".join(self.sections()))
        return path


ROWS = np.arange(8 * 64, dtype=np.float32).reshape(8, 64) / 100


def small(**changes) -> File:
    """A valid file with every kind of metadata and two tensors."""
    metadata = [
        ("general.architecture", "str", "llama"),
        ("a.count", "u32", 7),
        ("a.ratio", "f32", 0.5),
        ("a.flag", "bool", True),
        ("a.big", "u64", 2**63),
        ("a.words", "[str]", ["one", "zwei", "três"]),
        ("a.numbers", "[i32]", [1, -2, 3]),
        ("a.nested", "[[u8]]", [[1, 2], [], [3]]),
    ]
    q8 = formats.get("q8_0").quantize(torch.from_numpy(ROWS)).numpy().tobytes()
    tensors = [Tensor.f32("plain", ROWS[:3, :5]), Tensor("packed", (64, 8), 8, q8)]
    return File(**{"metadata": metadata, "tensors": tensors, **changes})


def refuses(path, *words):
    """The file is refused with a GGUFError of one line that names it and says these words."""
    with pytest.raises(GGUFError) as caught:
        GGUFFile(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    for word in words:
        assert word in text
    return text
