"""Quantising a GGUF file tensor by tensor, in row blocks: memory stays small for any model."""

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import gguf
import numpy as np
import torch

from . import formats
from .gguf_file import GGUFError, GGUFFile, dequantize, type_layout
from .gguf_write import GGUFWriter, encode
from .policies import POLICIES, TYPES, Move, Row, format_table, plan, table
from .progress import Progress

_BLOCK_VALUES = 1 << 20  # values one worker expands at once: 4 MB of float32
_MOST_WORKERS = 16  # each holds about 30 MB, so that memory is bounded on any machine
_FLOATS = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Quantized:
    """What was written. Units: bytes, bits/weight, seconds, weights/s of the quantised tensors."""

    path: Path
    recipe: str
    file_type: int
    n_tensors: int
    n_quantized: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    seconds: float
    weights_per_s: float
    rows: list[Row] = field(repr=False)


def quantize_gguf(
    src: str | Path,
    dst: str | Path,
    type: str | None = None,
    policy: str | None = None,
    progress: bool = True,
) -> Quantized:
    """Write `dst`, the model of `src` with its matrices in another type, or by a policy.

    `type`: tq4_1s, tq3_1s, q8_0, q5_0, q4_0 or f16; `policy`: config-i, hybrid or premium.
    With `progress` the table of what goes where is printed, and a line on stderr counts tensors.
    Raises: ValueError (neither or both given, unknown name, src is dst), GGUFError naming a tensor
    that is damaged or holds NaN, OSError for the target. Nothing half-written is left.
    """
    recipe, file_type = _recipe(type, policy)
    file = GGUFFile(src)
    _refuse(file, Path(dst))
    moves = plan(file, type, policy)
    rows = table(moves)
    if progress:
        print(format_table(rows), flush=True)
    start = time.perf_counter()
    _write(file, Path(dst), moves, file_type, progress)
    return _summary(Path(dst), recipe, file_type, moves, rows, time.perf_counter() - start)


def _recipe(type: str | None, policy: str | None) -> tuple[str, int]:
    if (type is None) == (policy is None):
        raise ValueError("give a type or a policy: one of the two")
    if type is not None and type not in TYPES:
        raise ValueError(f"unknown type {type!r}; known: {', '.join(TYPES)}")
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    return type or policy, TYPES[type or "q8_0"]


def _refuse(file: GGUFFile, dst: Path) -> None:
    if dst.exists() and dst.samefile(file.path):
        raise ValueError(f"{dst}: source and target are the same file")
    if file.get("split.count", 1) > 1:
        raise GGUFError(f"{file.path}: one part of a split model; merge the parts first")


# ---- the work


def _write(file: GGUFFile, dst: Path, moves: list[Move], file_type: int, progress: bool) -> None:
    metadata = {key: file.encoded(key) for key in file.metadata}
    metadata["general.file_type"] = encode("u32", file_type)
    metadata["general.quantization_version"] = encode("u32", 2)
    bar = Progress("quantize", len(moves)) if progress else contextlib.nullcontext()
    with GGUFWriter(dst, metadata, [m.plan for m in moves]) as out, _workers() as pool, bar:
        for name, pieces in groupby(_converted(file, moves, pool), key=itemgetter(0)):
            for _, piece in pieces:
                out.write(name, piece)
            if progress:
                bar.step(name)


@contextlib.contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """One thread a core, each of which runs torch on itself alone."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(_cores(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _cores() -> int:
    """Cores this process may use, at most `_MOST_WORKERS`."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(known or 1, _MOST_WORKERS)


def _converted(
    file: GGUFFile, moves: list[Move], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and packed row blocks of all tensors in order; a few blocks are in work at once."""
    pending: deque = deque()
    for move in moves:
        for block in row_blocks(file, move.source.name):
            pending.append((move.source.name, pool.submit(_convert, file.path, move, block)))
            if len(pending) > 2 * _cores():
                name, done = pending.popleft()
                yield name, done.result()
    for name, done in pending:
        yield name, done.result()


def row_blocks(file: GGUFFile, name: str) -> Iterator[np.ndarray]:
    """A tensor's packed rows, uint8 [rows, bytes of a row], read (not mapped) block by block."""
    info = file.info(name)
    rows = math.prod(info.shape[:-1])
    step = max(1, _BLOCK_VALUES // info.shape[-1])
    with file.path.open("rb") as source:
        source.seek(info.offset)
        for start in range(0, rows, step):
            block = np.empty((min(step, rows - start), info.nbytes // rows), np.uint8)
            if source.readinto(block) != block.nbytes:
                raise GGUFError(f"{file.path}: tensor {name!r} ended early while it was read")
            yield block


def _convert(path: Path, move: Move, block: np.ndarray) -> np.ndarray:
    """One row block to its new type, checked for NaN and for scales that overflow."""
    if not move.quantized and move.source.type not in _FLOATS:
        return block
    values = dequantize(torch.from_numpy(block), move.source.type)
    if not bool(torch.isfinite(values).all()):
        raise GGUFError(f"{path}: tensor {move.source.name!r} holds NaN or infinite values")
    if not move.quantized:
        return block
    packed = pack(values, move.type)
    if _overflows(packed, move.type):
        raise GGUFError(
            f"{path}: tensor {move.source.name!r} reaches {float(values.abs().max()):.3g}, "
            f"too large for {move.type}"
        )
    return packed


def pack(values: torch.Tensor, type_name: str) -> np.ndarray:
    """float32 [rows, n] -> uint8 [rows, bytes]; our own formats, else gguf's."""
    if type_name in formats.names():
        return formats.get(type_name).quantize(values).numpy()
    with np.errstate(over="ignore"):  # what overflows is refused by name afterwards
        return gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[type_name.upper()])


def _overflows(packed: np.ndarray, type_name: str) -> bool:
    """Whether a half-precision value (f16) or scale (the block formats) became infinite."""
    block, size, _ = type_layout(type_name)
    scales = {"f16": 1, "tq3_1s": 2, "tq4_1s": 2}.get(type_name, 1)
    if type_name in ("f32", "bf16") or (block == 1 and type_name != "f16"):
        return False
    halves = np.ascontiguousarray(packed.reshape(-1, size)[:, : 2 * scales]).view(np.float16)
    return not bool(np.isfinite(halves).all())


def _summary(dst, recipe, file_type, moves, rows, seconds) -> Quantized:
    weights = sum(math.prod(m.source.shape) for m in moves if m.quantized)
    values = sum(math.prod(m.source.shape) for m in moves)
    after = sum(m.plan.nbytes for m in moves)
    return Quantized(
        path=dst,
        recipe=recipe,
        file_type=file_type,
        n_tensors=len(moves),
        n_quantized=sum(m.quantized for m in moves),
        bytes_before=sum(m.source.nbytes for m in moves),
        bytes_after=after,
        bits_per_weight=8 * after / values,
        seconds=seconds,
        weights_per_s=weights / seconds,
        rows=rows,
    )
