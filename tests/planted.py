"""Shaders with one place changed: planted bugs, for tests that they are noticed."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from shader_cases import cases

from tqlab import metal

BARRIER = re.compile(r"(?:threadgroup|simdgroup)_barrier\([^;]*\);")


def barriers(file: str) -> list[int]:
    """The numbers of a shader file's barriers."""
    return list(range(len(BARRIER.findall((metal.shader_dir() / file).read_text("ascii")))))


@contextlib.contextmanager
def planted(folder: Path, file: str, before: str, after: str) -> Iterator[None]:
    """Shaders as they are, but for `before`, which must occur exactly once in `file`."""
    text = (metal.shader_dir() / file).read_text("ascii")
    assert text.count(before) == 1, f"{before!r} occurs {text.count(before)} times in {file}"
    with _shaders(folder, file, text.replace(before, after)):
        yield


@contextlib.contextmanager
def without_barrier(folder: Path, file: str, number: int) -> Iterator[None]:
    """Shaders as they are, but for one barrier of `file`."""
    text = (metal.shader_dir() / file).read_text("ascii")
    at = [match.span() for match in BARRIER.finditer(text)][number]
    with _shaders(folder, file, text[: at[0]] + ";" + text[at[1] :]):
        yield


@contextlib.contextmanager
def _shaders(folder: Path, file: str, text: str) -> Iterator[None]:
    for path in metal.shader_dir().glob("*.*"):
        shutil.copy(path, folder)
    (folder / file).write_text(text, "ascii")
    with metal.shaders_from(folder):
        yield


def first_failure(shader: str, engine: str = "sim") -> Exception | None:
    """What the first case to notice raises."""
    for run in cases(shader):
        try:
            with metal.simulate(engine):
                run()
        except Exception as noticed:
            return noticed
    return None
