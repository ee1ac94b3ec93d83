"""Storage formats by name. To add one: a file here and a line in the registry."""

from .base import Format
from .floats import BF16, F16, F32
from .q4_0 import Q4_0
from .q8_0 import Q8_0
from .tq import TQ3_1S, TQ4_1S
from .trellis import TRELLIS, TRELLIS_64
from .turbo import TURBO2, TURBO2_H64, TURBO3, TURBO3_H64, TURBO4, TURBO4_LM, TURBO4_LM_H64

_FLOATS = (F32, F16, BF16)
_KV = (Q8_0, Q4_0, TURBO2, TURBO3, TURBO4, TURBO4_LM, *TRELLIS)
_KV_64 = (TURBO2_H64, TURBO3_H64, TURBO4_LM_H64, *TRELLIS_64)  # blocks of 64, for heads of 64
_REGISTRY = {f.name: f for f in (*_FLOATS, *_KV, *_KV_64, TQ3_1S, TQ4_1S)}


def names() -> tuple[str, ...]:
    """Every known format name, in registry order."""
    return tuple(_REGISTRY)


def get(name: str) -> Format:
    """The format called `name`. Raises ValueError listing the known names."""
    try:
        return _REGISTRY[name]
    except (KeyError, TypeError):
        raise ValueError(f"unknown format {name!r}; known: {', '.join(_REGISTRY)}") from None


__all__ = ["Format", "get", "names"]
