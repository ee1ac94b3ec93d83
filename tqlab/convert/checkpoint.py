"""A safetensors checkpoint directory: configuration, shards, tensors by name."""

import json
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


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
        if not path.is_file():
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

    def text(self, filename: str) -> str | None:
        """A text file of the folder, or None."""
        path = self.path / filename
        return path.read_text("utf-8") if path.is_file() else None

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
        return tuple(self._slice(name).get_shape()) or (1,)

    def dtype(self, name: str) -> str:
        """safetensors' name of the type: F32, BF16, ..."""
        return self._slice(name).get_dtype()

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries start .. stop of the first axis."""
        found = self._slice(name)
        return found[start:stop] if found.get_shape() else self._where[name].get_tensor(name)[None]

    def has(self, name: str) -> bool:
        return name in self._where

    def _slice(self, name: str):
        if name not in self._where:
            raise ValueError(f"{self.path}: tensor {name!r} is missing")
        return self._where[name].get_slice(name)

    def _open(self) -> list:
        missing = [f for f in self._files() if not (self.path / f).is_file()]
        if missing:
            raise FileNotFoundError(f"{self.path}: missing shards: {', '.join(missing)}")
        return [self._shard(f) for f in self._files()]

    def _files(self) -> list[str]:
        if (self.path / _INDEX).is_file():
            where = self.json(_INDEX).get("weight_map")
            if not isinstance(where, dict) or not where:
                raise ValueError(f"{self.path / _INDEX}: it has no weight_map")
            return sorted(set(map(str, where.values())))
        return [_SINGLE]

    def _shard(self, filename: str):
        if Path(filename).name != filename:
            raise ValueError(f"{self.path / _INDEX}: shard {filename!r} lies outside the folder")
        try:
            return safe_open(self.path / filename, "pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path / filename}: damaged: {error}") from None

    @cached_property
    def _where(self) -> dict:
        """Tensor -> its open shard; what the index promises must be there."""
        found = {name: shard for shard in self._shards for name in shard.keys()}  # noqa: SIM118
        lost = sorted(set(self.json(_INDEX).get("weight_map", {})) - set(found))
        if lost:
            raise ValueError(f"{self.path}: tensor {lost[0]!r} is in the index, but in no shard")
        return {name: found[name] for name in sorted(found, key=_natural)}


def _natural(name: str) -> list:
    """Sort key with numbers as numbers: layers.2 before layers.10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split(".")]
