"""What each shader must compute, one module a shader: `CASES`, functions that raise on a mismatch.

A case calls the op on CPU tensors; the caller has chosen the engine (metal.simulate). Data is drawn
once per case from a fixed seed, and small: the simulator runs a few million lanes a second.
"""

import importlib
import importlib.util
from collections.abc import Callable

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def cases(shader: str) -> list[Callable[[], None]]:
    """The cases of one shader; none where there is no module for it."""
    found = importlib.util.find_spec(f"shader_cases.{shader}")
    return importlib.import_module(f"shader_cases.{shader}").CASES if found else []


def case(function: Callable, *args) -> Callable[[], None]:
    """`function(*args)` as a case, named for test reports."""

    def run() -> None:
        function(*args)

    run.__name__ = "-".join([function.__name__, *(str(a).removeprefix("torch.") for a in args)])
    return run


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal values, the same on every machine."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
