"""The call convention of torch.mps.compile_shader: what its binding accepts, and its traps."""

from __future__ import annotations

import ctypes
import operator
import struct
from dataclasses import dataclass
from typing import Any

_INTEGERS = {"int32": 4, "int16": 2, "int8": 1, "uint8": 1}
_CASTS = ("fp16", "bf16", *_INTEGERS)


@dataclass
class Span:
    """The memory of one tensor argument: from its first element to just past its last."""

    address: int
    nbytes: int
    numel: int
    device: str
    owner: Any


def is_tensor(value: Any) -> bool:
    """A torch tensor or a numpy array, told without importing either."""
    return hasattr(value, "data_ptr") or type(value).__name__ == "ndarray"


def span_of(value: Any) -> Span:
    """Where the elements of a tensor lie. As on MPS, strides are the caller's business.

    Raises:
        RuntimeError: for a numpy array that is not contiguous.
    """
    if hasattr(value, "data_ptr"):
        size = value.element_size()
        last = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        nbytes = (last + 1) * size if value.numel() else 0
        return Span(value.data_ptr(), nbytes, value.numel(), value.device.type, value)
    if not value.flags.c_contiguous:
        raise RuntimeError("a numpy array argument must be contiguous")
    return Span(value.ctypes.data, value.nbytes, value.size, "cpu", value)


# ---- values: setBytes --------------------------------------------------------------------------
def encode_value(value: Any, index: int, arg_casts: Any) -> bytes:
    """The bytes that an int, float or list of them becomes: int64 and float32 unless cast.

    Raises:
        RuntimeError: for an empty list, an unsupported type or an unknown cast.
    """
    cast = _cast_of(index, arg_casts)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items:
        raise RuntimeError("Empty list/tuple can not be an argument to metal kernel")
    if isinstance(items[0], int):
        return b"".join(_encode_int(_integer(v), cast) for v in items)
    if isinstance(items[0], float):
        return b"".join(_encode_float(_real(v), cast) for v in items)
    raise RuntimeError(f"Unsupported argument type: {type(items[0]).__name__}")


def check_casts(arg_casts: Any) -> None:
    """Raises:
    RuntimeError: unless `arg_casts` is None, a string or a dict.
    """
    if arg_casts is not None and not isinstance(arg_casts, (str, dict)):
        raise RuntimeError(f"Unexpected caster arg type {type(arg_casts).__name__}")


def _cast_of(index: int, arg_casts: Any) -> str:
    cast = arg_casts.get(index, "") if isinstance(arg_casts, dict) else arg_casts or ""
    if cast and cast not in _CASTS:
        raise RuntimeError(f"Unsupported cast instruction {cast}")
    return cast


def _integer(value: Any) -> int:
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise RuntimeError(f"Unable to cast {value!r} to int64")
    return int(value)


def _real(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise RuntimeError(f"Unable to cast {value!r} to float")
    return ctypes.c_float(value).value


def _encode_int(value: int, cast: str) -> bytes:
    if cast in ("fp16", "bf16"):
        return _encode_float(float(value), cast)
    size = _INTEGERS.get(cast, 8)
    return (value % 256**size).to_bytes(size, "little")


def _encode_float(value: float, cast: str) -> bytes:
    if cast in _INTEGERS:
        return _encode_int(int(value), cast)
    if cast == "fp16":
        return _half(value)
    bits = struct.pack("<f", ctypes.c_float(value).value)
    if cast != "bf16":
        return bits
    word = int.from_bytes(bits, "little")
    rounded = word + 0x7FFF + (word >> 16 & 1) if value == value else word | 0x400000
    return (rounded >> 16 & 0xFFFF).to_bytes(2, "little")


def _half(value: float) -> bytes:
    try:
        return struct.pack("<e", value)
    except OverflowError:
        return struct.pack("<e", float("inf") if value > 0 else float("-inf"))


# ---- the grid ----------------------------------------------------------------------------------
def grid_of(
    threads: Any, group_size: Any, default: int | None, limit: int
) -> tuple[list[int], list[int]]:
    """Threads and threads per threadgroup in three dimensions.

    Raises:
        RuntimeError: when there is no thread count, or the two differ in length.
        ValueError: when the group has more than `limit` threads.
    """
    total = _dimensions(threads) or ([default] if default is not None else None)
    if total is None:
        raise RuntimeError("Number of threads is undefined or has wrong dimension")
    group = _dimensions(group_size)
    if group is None:
        group = [min(total[0], limit)] if len(total) == 1 else [limit, 1, 1][: len(total)]
    if len(group) != len(total):
        raise RuntimeError(f"threads {total} and group_size {group} must have the same length")
    total, group = total + [1] * (3 - len(total)), group + [1] * (3 - len(group))
    if group[0] * group[1] * group[2] > limit:
        raise ValueError(f"Threadgroup size exceeds {limit} limit: {group}")
    if 0 not in total and 0 in group:
        raise RuntimeError(f"group_size {group} has a zero")
    return total, group


def _dimensions(value: Any) -> list[int] | None:
    if value is None:
        return None
    try:
        sizes = [value] if isinstance(value, int) else [operator.index(v) for v in value]
    except TypeError:
        raise RuntimeError(f"threads and group_size are ints or lists of ints: {value!r}") from None
    if not 0 < len(sizes) < 4 or any(not 0 <= s < 2**32 for s in sizes):
        raise RuntimeError(f"threads and group_size have 1 to 3 sizes below 2**32: {value!r}")
    return sizes
