"""Ops whose shader failed the self-test on this machine: remembered, so that nobody gets garbage.

A mark is keyed by op, engine, device, torch version and the text of the op's shaders, so an update
of any of them gives the shader another chance.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

import torch

from .. import data, device, metal

_ignored: ContextVar[bool] = ContextVar("ignore marks", default=False)


def path() -> Path:
    """The file the marks live in."""
    return data.data_dir() / "cache" / "selftest-failed.json"


def key(op: str, shaders: tuple[str, ...], engine: str) -> str:
    """What a mark depends on, as text."""
    where = device.describe(torch.device(engine)) if engine == "mps" else engine
    texts = "+".join(metal.digest(name) for name in shaders)
    return f"{op} | {where} | torch {torch.__version__} | {texts}"


@lru_cache(maxsize=1024)
def _key(folder: Path, op: str, shaders: tuple[str, ...], engine: str) -> str:
    return key(op, shaders, engine)


@lru_cache(maxsize=4)
def _load(file: Path) -> dict[str, str]:
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def failed(op: str, shaders: tuple[str, ...], engine: str) -> bool:
    """Whether the self-test has marked this op; says so, once, in a warning."""
    marks = {} if _ignored.get() else _load(path())
    if not marks or (found := _key(metal.shader_dir(), op, shaders, engine)) not in marks:
        return False
    _warn(op, engine, marks[found])
    return True


@lru_cache(maxsize=256)
def _warn(op: str, engine: str, why: str) -> None:
    text = f"tqlab::{op} runs its torch reference on {engine}: its shader failed tqlab selftest"
    warnings.warn(f"{text} ({why})", RuntimeWarning, stacklevel=2)


def update(results: dict[str, str | None]) -> None:
    """Set (a reason) or clear (None) marks by key, keeping the others."""
    kept = {k: v for k, v in _load(path()).items() if k not in results}
    kept |= {k: v for k, v in results.items() if v is not None}
    path().parent.mkdir(parents=True, exist_ok=True)
    path().write_text(json.dumps(kept, indent=1), "utf-8")
    _load.cache_clear()
    _warn.cache_clear()


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Run shaders whether marked or not inside a with block: the self-test itself."""
    token = _ignored.set(True)
    try:
        yield
    finally:
        _ignored.reset(token)
