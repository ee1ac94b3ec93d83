"""metalsim: run Metal compute kernels without a Mac, and check what their threads do.

    lib = metalsim.compile_shader(source, check=True)
    lib.my_kernel(x, y, threads=x.numel(), group_size=64)

takes the place of torch.mps.compile_shader. README.md says what is faithful and what is not.
"""

from __future__ import annotations

from typing import Any

from ._cuda import CudaLibrary
from ._diagnostics import KINDS, Diagnostics, Finding
from ._frontend import translate
from ._library import CpuKernel, CpuLibrary
from ._strict import strict_check
from ._toolchain import CompilerNotFound, cache_directory, find_compiler

__all__ = [
    "KINDS",
    "CompilerNotFound",
    "CpuKernel",
    "CpuLibrary",
    "CudaLibrary",
    "Diagnostics",
    "Finding",
    "cache_directory",
    "compile_shader",
    "find_compiler",
    "strict_check",
    "translate",
]


def compile_shader(
    source: str,
    device: str = "cpu",
    check: bool = False,
    seed: int = 0,
    *,
    name: str = "shader.metal",
    strict: bool = False,
    timeout: float = 120.0,
    partial_collectives: tuple[str, ...] = (),
) -> Any:
    """A library whose attributes are the kernels of `source`, called as torch.mps's are.

    check: every launch looks for races, barrier and memory mistakes, and raises Diagnostics.
    seed: of the order in which simdgroups, lanes and threadgroups run.
    name: the file that messages name.
    strict: also refuse what Apple's compiler refuses about address spaces.
    timeout: seconds of processor time after which a launch is stopped.
    partial_collectives: kernels that may use collectives with some lanes inactive.

    Raises:
        SyntaxError: when the shader does not compile, or is not ASCII.
        CompilerNotFound: when there is no compiler for the CPU.
        ValueError: for an unknown device, or check=True on cuda.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is cpu or cuda, not {device!r}")
    if device == "cuda" and check:
        raise ValueError("check=True runs on the cpu")
    if not source.isascii():
        line = next(i for i, text in enumerate(source.split("\n"), 1) if not text.isascii())
        raise SyntaxError(f"{name}:{line}: error: the source is not ASCII")
    if strict and (errors := strict_check(source, name)):
        raise SyntaxError("\n".join(errors))
    if device == "cuda":
        return CudaLibrary(source, name)
    return CpuLibrary(source, name, check, seed, timeout, tuple(partial_collectives))
