"""translate: a shader as text that another compiler can take."""

from __future__ import annotations

import shutil

from ._toolchain import CompilerNotFound, find_compiler, preprocess
from ._translate import cpu_program, cuda_program, translate_source

_PROGRAMS = {"cpu": cpu_program, "cuda": cuda_program}


def translate(source: str, backend: str = "cuda", name: str = "shader.metal") -> str:
    """C++ (cpu) or CUDA C++ (cuda) for `source`, to be compiled with metalsim's include folder.

    Any C preprocessor will do, so this works where only gcc is installed. The CUDA text can be
    kept and given to compile_shader(text, device="cuda") on a machine that has none.

    Raises:
        SyntaxError: when the shader is refused.
        CompilerNotFound: when there is no preprocessor.
        ValueError: for an unknown backend.
    """
    if backend not in _PROGRAMS:
        raise ValueError(f"backend is one of {', '.join(_PROGRAMS)}, not {backend!r}")
    text = preprocess(source, name, _preprocessor())
    return _PROGRAMS[backend](translate_source(text, backend))


def _preprocessor() -> list[str] | None:
    """The command of some preprocessor; None for the compiler that find_compiler finds."""
    try:
        find_compiler()
    except CompilerNotFound:
        for command in ("cc", "gcc", "cpp"):
            if path := shutil.which(command):
                return [path]
        raise
    return None
