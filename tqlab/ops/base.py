"""What every op shares: registration, the choice between shader and reference, argument checks.

An op is one block: a torch reference (its signature is the op's schema), a fake (shapes only, with
all argument checks), and a function that launches the shader. Which of them runs is decided here.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import metal
from . import marks

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_forced: ContextVar[bool] = ContextVar("reference", default=False)


@dataclass(frozen=True)
class Op:
    """A registered op: its name, shader files, torch reference and shader launcher."""

    name: str
    shaders: tuple[str, ...]
    reference: Callable
    shader: Callable


OPS: dict[str, Op] = {}


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Every op takes its torch reference inside a with block, whatever the device."""
    token = _forced.set(True)
    try:
        yield
    finally:
        _forced.reset(token)


def define(reference: Callable, *, fake: Callable, shader: Callable, shaders: tuple[str, ...]):
    """Register `tqlab::<reference.__name__>` and return the function to call.

    `fake(*args)` checks the arguments and returns empty results; it runs before either path.
    `shader(results, *args)` fills them. `shaders`: the files it launches from.
    """
    op = Op(reference.__name__, shaders, reference, shader)

    def run(*args, **kwargs):
        results = fake(*args, **kwargs)
        device = next(a.device for a in args if isinstance(a, Tensor))
        if not runs_shader(op.name, device):
            return op.reference(*args, **kwargs)
        op.shader(results, *args, **kwargs)
        return results

    schema = torch.library.infer_schema(reference, mutates_args=())
    made = torch.library.custom_op(f"tqlab::{op.name}", run, mutates_args=(), schema=schema)
    made.register_fake(fake)
    made.register_kernel("mps")(run)
    made.__doc__ = reference.__doc__
    OPS[op.name] = op
    return made


def runs_shader(name: str, device: torch.device) -> bool:
    """Whether that op on tensors of `device` launches its shader now."""
    if _forced.get() or (engine := metal.engine(device)) is None:
        return False
    return not marks.failed(name, OPS[name].shaders, engine)


# ---- checks: every message names the argument


def check(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless `condition`."""
    if not condition:
        raise ValueError(message)


def check_tensor(name: str, x: Tensor, dtypes, like: Tensor | None = None) -> None:
    """Raises ValueError naming `name` for another dtype, a stride, or a device unlike `like`'s."""
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    wanted = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
    check(x.dtype in dtypes, f"{name} must be {wanted}, not {str(x.dtype).removeprefix('torch.')}")
    check(x.is_contiguous(), f"{name} must be contiguous, not strided {tuple(x.stride())}")
    check(x.numel() < 2**31, f"{name} has {x.numel()} elements; at most 2**31 - 1 are handled")
    if like is not None:
        check(
            x.device == like.device,
            f"{name} is on {x.device}, the other arguments on {like.device}",
        )
