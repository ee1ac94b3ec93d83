"""Metal shaders: where they lie, their text, and running them.

One source, three engines behind the call convention of torch.mps.compile_shader: an Apple GPU for
MPS tensors; for CPU tensors metalsim, which executes the shader lane by lane ("sim", or
"sim-checked" with race and memory checks); for CUDA tensors NVRTC ("nvrtc"). The last three run
only when asked for, by TQLAB_METAL or `simulate`.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_ENGINES = {"sim": "cpu", "sim-checked": "cpu", "nvrtc": "cuda"}
_chosen: ContextVar[str | None] = ContextVar("engine", default=None)
_folder: ContextVar[Path | None] = ContextVar("shader folder", default=None)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"[^\n]*$', re.M)
GROUP = 128  # threads a threadgroup where a kernel does not care: four simdgroups
LANES = 32  # threads a simdgroup


# ---- which engine


@contextlib.contextmanager
def simulate(engine: str = "sim-checked") -> Iterator[None]:
    """Run shaders on CPU (or, "nvrtc", CUDA) tensors inside a with block.

    Raises: ValueError for an unknown engine.
    """
    token = _chosen.set(_known(engine, "engine"))
    try:
        yield
    finally:
        _chosen.reset(token)


def engine(device: torch.device) -> str | None:
    """What runs shaders on tensors of `device` now: mps, sim, sim-checked, nvrtc; None: nothing.

    Raises: ValueError when TQLAB_METAL names no engine.
    """
    if device.type == "mps":
        return "mps"
    wanted = _chosen.get()
    if wanted is None:
        wanted = os.environ.get("TQLAB_METAL", "")
    return wanted if wanted and _ENGINES[_known(wanted, "TQLAB_METAL")] == device.type else None


def _known(engine: str, source: str) -> str:
    if engine not in _ENGINES:
        raise ValueError(f"{source} is one of {', '.join(_ENGINES)}; not {engine!r}")
    return engine


# ---- source


def shader_dir() -> Path:
    """The folder of the .metal files: beside this module when installed, else the checkout's."""
    if override := _folder.get():
        return override
    here = Path(__file__).resolve().parent
    return here / "shaders" if (here / "shaders").is_dir() else here.parent / "shaders"


@contextlib.contextmanager
def shaders_from(folder: Path) -> Iterator[None]:
    """Take shaders from another folder inside a with block (tests, mutants)."""
    token = _folder.set(Path(folder))
    try:
        yield
    finally:
        _folder.reset(token)


def names() -> list[str]:
    """Every shader, by the stem of its file."""
    return sorted(path.stem for path in shader_dir().glob("*.metal"))


def source(name: str, marked: bool = True) -> str:
    """The text of a shader, each of our own headers in place of its first #include.

    `marked`: #line directives keep the files' own names and line numbers in messages.
    Raises: FileNotFoundError for a missing shader or header.
    """
    return _inlined(shader_dir(), f"{name}.metal", marked, set())


def _inlined(folder: Path, file: str, marked: bool, seen: set[str]) -> str:
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(f"shader file {file} is missing from {folder}")
    text = path.read_text("ascii")

    def replace(match: re.Match) -> str:
        header, line = match[1], text.count("\n", 0, match.start()) + 2
        if header in seen:
            return ""
        seen.add(header)
        body = _inlined(folder, header, marked, seen)
        return f'#line 1 "{header}"\n{body}#line {line} "{file}"' if marked else body

    return _INCLUDE.sub(replace, text)


def digest(name: str) -> str:
    """sha256 of a shader's whole text, 16 hex digits."""
    return hashlib.sha256(source(name, marked=False).encode()).hexdigest()[:16]


# ---- libraries and launches


def library(name: str, engine: str, defines: tuple[tuple[str, object], ...] = ()):
    """The compiled library of a shader, one object a (shader, engine, defines).

    The object is kept: pipelines live in it. `defines`: (name, value) pairs put in front of the
    source. For want of function constants they specialise a kernel; only what is used is compiled.
    Raises: FileNotFoundError; SyntaxError when it does not compile; ValueError: unknown engine.
    """
    return _library(shader_dir(), name, engine, defines)


def defined(text: str, name: str, defines: tuple[tuple[str, object], ...]) -> str:
    """A shader's text behind #defines; messages still name its own lines."""
    head = "".join(f"#define {key} {value}\n" for key, value in defines)
    return f'{head}#line 1 "{name}.metal"\n{text}' if defines else text


@lru_cache(maxsize=256)
def _library(folder: Path, name: str, engine: str, defines: tuple[tuple[str, object], ...]):
    text = defined(_inlined(folder, f"{name}.metal", True, set()), name, defines)
    if engine == "mps":
        return torch.mps.compile_shader(text)
    import metalsim  # only where it is asked for: it needs a compiler

    device = _ENGINES[_known(engine, "engine")]
    check = engine == "sim-checked"
    return metalsim.compile_shader(text, device=device, check=check, name=f"{name}.metal")


def launch(shader: str, kernel: str, *args, threads, group_size=GROUP, defines=()) -> None:
    """Run one kernel; argument i is its buffer i, the first tensor's device decides the engine.

    Shapes: threads in all (not threadgroups), 1 to 3 numbers; group_size alike
    `defines`: (name, value) pairs, see library.
    Integers always reach the shader as int32: uncast they would arrive as pairs of words.
    Raises: ValueError when a tensor is not contiguous, on another device, or an int too large.
    """
    device = next(a.device for a in args if isinstance(a, Tensor))
    casts = {i: "int32" for i, a in enumerate(args) if _is_ints(a)}
    for i, a in enumerate(args):
        if isinstance(a, Tensor) and not (a.is_contiguous() and a.device == device):
            raise ValueError(f"{kernel}: buffer {i} must be contiguous and on {device}")
        if i in casts and not all(-(2**31) <= v < 2**31 for v in _as_list(a)):
            raise ValueError(f"{kernel}: buffer {i} holds an integer beyond 32 bits: {a}")
    run = getattr(library(shader, engine(device), tuple(defines)), kernel)
    run(*args, threads=threads, group_size=group_size, arg_casts=casts or None)


def _as_list(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_ints(value) -> bool:
    return not isinstance(value, Tensor) and all(isinstance(v, int) for v in _as_list(value))


def dtype_name(dtype: torch.dtype) -> str:
    """How a kernel's host name spells an activation type. Raises ValueError for any other."""
    return {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}[dtype]
