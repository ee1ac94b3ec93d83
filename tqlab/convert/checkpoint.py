"""A safetensors checkpoint directory: configuration, shards, tensors by name."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies: its file, safetensors' name of its type, its shape, its first byte."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class Checkpoint:
    """The files of one model.

    Fields: path; whole_config (config.json); config (its text part).
    Raises: FileNotFoundError naming missing files; ValueError for damaged ones.
    """

    def __init__(self, directory: str | Path):
        self.path = Path(directory)
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder")
        self.whole_config = self.json("config.json", needed=True)
        text = self.whole_config.get("text_config")
        self.config = text if isinstance(text, dict) else self.whole_config
        self._shards = self._open()

    def json(self, filename: str, needed: bool = False) -> dict:
        """A JSON object of the folder; {} when it is not there and not needed."""
        path = self.path / filename
        if not self.has_file(filename):
            if needed:
                raise FileNotFoundError(f"{self.path}: {filename} is missing")
            return {}
        try:
            value = json.loads(path.read_text("utf-8"))
        except ValueError as error:  # both bad UTF-8 and bad JSON
            raise ValueError(f"{path}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path}: a JSON object is expected, not {type(value).__name__}")
        return value

    def has_file(self, filename: str) -> bool:
        return (self.path / filename).is_file()

    def text(self, filename: str) -> str | None:
        """A text file of the folder, or None."""
        return (self.path / filename).read_text("utf-8") if self.has_file(filename) else None

    def need(self, key: str):
        """A value of the text configuration. Raises ValueError when it is missing or null."""
        value = self.config.get(key)
        if value is None:
            raise ValueError(f"{self.path / 'config.json'}: key {key!r} is missing")
        return value

    def names(self) -> list[str]:
        """Every tensor, in a stable order."""
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape; a scalar counts as one value."""
        return self._stored(name).shape

    def dtype(self, name: str) -> str:
        """safetensors' name of the type: F32, BF16, ..."""
        return self._stored(name).dtype

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries start .. stop of the first axis, read (not mapped: pages would add up)."""
        t = self._stored(name)
        start, stop, _ = slice(start, stop).indices(t.shape[0])
        block = torch.empty((stop - start, *t.shape[1:]), dtype=TYPES[t.dtype])
        with t.path.open("rb") as file:
            file.seek(t.start + start * math.prod(t.shape[1:]) * block.itemsize)
            if file.readinto(block.view(torch.uint8).numpy()) != block.nbytes:
                raise ValueError(f"{t.path}: tensor {name!r} ended early while it was read")
        return block

    def has(self, name: str) -> bool:
        return name in self._where

    def _stored(self, name: str) -> _Stored:
        if name not in self._where:
            raise ValueError(f"{self.path}: tensor {name!r} is missing")
        return self._where[name]

    def _open(self) -> list[dict[str, _Stored]]:
        missing = [f for f in self._files() if not self.has_file(f)]
        if missing:
            raise FileNotFoundError(f"{self.path}: missing shards: {', '.join(missing)}")
        return [self._shard(f) for f in self._files()]

    def _files(self) -> list[str]:
        if self.has_file(_INDEX):
            where = self.json(_INDEX).get("weight_map")
            if not isinstance(where, dict) or not where:
                raise ValueError(f"{self.path / _INDEX}: it has no weight_map")
            return sorted(set(map(str, where.values())))
        return [_SINGLE]

    def _shard(self, filename: str) -> dict[str, _Stored]:
        if Path(filename).name != filename:
            raise ValueError(f"{self.path / _INDEX}: shard {filename!r} lies outside the folder")
        try:
            with safe_open(self.path / filename, "pt"):
                return _header(self.path / filename)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path / filename}: damaged: {error}") from None

    @cached_property
    def _where(self) -> dict[str, _Stored]:
        """Tensor -> its place; what the index promises must be there."""
        found = {name: stored for shard in self._shards for name, stored in shard.items()}
        lost = sorted(set(self.json(_INDEX).get("weight_map", {})) - set(found))
        if lost:
            raise ValueError(f"{self.path}: tensor {lost[0]!r} is in the index, but in no shard")
        return {name: found[name] for name in sorted(found, key=_natural)}


def _header(path: Path) -> dict[str, _Stored]:
    """The tensors of a shard that the safetensors library has opened, and so has checked."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.tell()
    header.pop("__metadata__", None)
    return {
        name: _Stored(path, t["dtype"], tuple(t["shape"]) or (1,), data + t["data_offsets"][0])
        for name, t in header.items()
    }


def _natural(name: str) -> list:
    """Sort key with numbers as numbers: layers.2 before layers.10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split(".")]
