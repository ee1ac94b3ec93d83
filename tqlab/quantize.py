"""Quantising a GGUF file tensor by tensor, in row blocks: memory stays small for any model.

Which tensors keep their type follows llama-quantize; the mixed policies are those of the weight
compression study (spec results 8).
"""

import contextlib
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch

from . import formats
from .gguf_file import GGUFError, GGUFFile, TensorInfo, dequantize, type_layout
from .gguf_write import GGUFWriter, TensorPlan, encode
from .progress import Progress

# type -> GGUF's general.file_type
TYPES = {"tq4_1s": 44, "tq3_1s": 43, "q8_0": 7, "q5_0": 8, "q4_0": 2, "f16": 1}
_BLOCK_VALUES = 1 << 20  # values one worker expands at once: 4 MB of float32
_FLOATS = ("f32", "f16", "bf16")
_INTEGERS = ("i8", "i16", "i32", "i64", "f64")

# Tensors llama-quantize leaves alone whatever their rank, and other modalities' tensors.
_KEPT = re.compile(r"_norm|ffn_gate_inp|per_layer_model_proj|altup|laurel|^rope_|^(v|a|mm)\.")
_ROLE = re.compile(r"blk\.(\d+)\.(attn|ffn)_(q|k|v|qkv|output|gate|up|gate_up|down)(_exps|_shexp)?")
# No library writes K-quants in Python: the nearest type it does write.
_SUBSTITUTES = {"q4_k": "q5_0", "q5_k": "q5_0", "q6_k": "q8_0"}


@dataclass(frozen=True)
class Policy:
    """A mixed recipe: `boundary` layers at each end stay Q8_0, and so does what is not listed."""

    boundary: int
    attention: str
    gate_up: str
    down: str

    def type_of(self, name: str, n_layers: int) -> tuple[str, str]:
        """(type wanted, note) for a tensor."""
        match = _ROLE.match(name)
        if not match:
            return "q8_0", ""
        if not self.boundary <= int(match[1]) < n_layers - self.boundary:
            return "q8_0", f"first and last {self.boundary} layers"
        if match[2] == "attn":
            return self.attention, ""
        return (self.down if match[3] == "down" else self.gate_up), ""


POLICIES = {
    "config-i": Policy(2, attention="tq4_1s", gate_up="tq4_1s", down="q4_k"),
    "hybrid": Policy(2, attention="tq4_1s", gate_up="q4_k", down="q4_k"),
    "premium": Policy(4, attention="tq4_1s", gate_up="q5_k", down="q6_k"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: tensors of one role that go the same way."""

    role: str
    count: int
    source: str
    target: str
    bytes_before: int
    bytes_after: int
    note: str


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


@dataclass(frozen=True)
class Move:
    """One tensor's way: where it comes from, the type it goes to, and why if not as asked."""

    source: TensorInfo
    type: str
    note: str = ""

    @property
    def plan(self) -> TensorPlan:
        return TensorPlan(self.source.name, self.source.shape, self.type)

    @property
    def quantized(self) -> bool:
        return self.type != self.source.type


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


# ---- what goes where


def plan(file: GGUFFile, type: str | None = None, policy: str | None = None) -> list[Move]:
    """The type every tensor gets, in file order."""
    n_layers = file.get(f"{file.need('general.architecture')}.block_count", 0)
    tied = "output.weight" not in file.tensors

    def wanted(name: str) -> tuple[str, str]:
        if policy:
            return POLICIES[policy].type_of(name, n_layers)
        head = name == "output.weight" or (tied and name == "token_embd.weight")
        if head and type not in ("q8_0", "f16"):
            return "q8_0", "the output head stays in q8_0"
        return type, ""

    return [_move(info, wanted) for info in file.tensors.values()]


def _move(info: TensorInfo, wanted: Callable[[str], tuple[str, str]]) -> Move:
    if _stays(info):
        return Move(info, info.type)
    asked, note = wanted(info.name)
    target = _SUBSTITUTES.get(asked, asked)
    if target != asked:
        note = f"for {asked}, which is not written here"
    if info.shape[-1] % type_layout(target)[0]:
        target, note = "f16", f"rows of {info.shape[-1]} do not fit {target}"
    return Move(info, target, note)


def _stays(info: TensorInfo) -> bool:
    """llama-quantize's rules: vectors, norms, scales, routers and small projections stay."""
    vector = math.prod(info.shape[:-1]) == 1
    named = not info.name.endswith(".weight") or _KEPT.search(info.name)
    return bool(vector or named or info.type in _INTEGERS)


def table(moves: list[Move]) -> list[Row]:
    """Tensors of the same role, types and note counted together, in file order."""
    groups: dict[tuple, list[Move]] = {}
    for m in moves:
        role = re.sub(r"^blk\.\d+\.", "blk.*.", m.source.name.removesuffix(".weight"))
        groups.setdefault((role, m.source.type, m.type, m.note), []).append(m)

    def total(of, group):
        return sum(of(m) for m in group)

    return [
        Row(
            *(role, len(group), source, target),
            total(lambda m: m.source.nbytes, group),
            total(lambda m: m.plan.nbytes, group),
            note,
        )
        for (role, source, target, note), group in groups.items()
    ]


def format_table(rows: list[Row]) -> str:
    """The table as text, sizes in MB."""
    head = ("tensors", "count", "from", "to", "MB", "-> MB", "note")
    lines = [head] + [
        (
            *(r.role, str(r.count), r.source, r.target),
            *(f"{r.bytes_before / 1e6:.2f}", f"{r.bytes_after / 1e6:.2f}", r.note),
        )
        for r in rows
    ]
    before, after = sum(r.bytes_before for r in rows), sum(r.bytes_after for r in rows)
    total = (f"{before / 1e6:.2f}", f"{after / 1e6:.2f}")
    lines.append(("total", str(sum(r.count for r in rows)), "", "", *total, ""))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = (1, 4, 5)
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# ---- the work


def _write(file: GGUFFile, dst: Path, moves: list[Move], file_type: int, progress: bool) -> None:
    metadata = {key: file.encoded(key) for key in file.metadata}
    metadata["general.file_type"] = encode("u32", file_type)
    metadata["general.quantization_version"] = encode("u32", 2)
    bar = Progress("quantize", len(moves)) if progress else contextlib.nullcontext()
    with GGUFWriter(dst, metadata, [m.plan for m in moves]) as out, _workers() as pool, bar:
        for move in moves:
            for piece in _converted(file, move, pool):
                out.write(move.source.name, piece)
            if progress:
                bar.step(move.source.name)


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
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _converted(file: GGUFFile, move: Move, pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
    """The packed row blocks of one tensor in order; a few are in work at once."""
    pending: deque = deque()
    for block in row_blocks(file, move.source.name):
        pending.append(pool.submit(_convert, file.path, move, block))
        if len(pending) > 2 * _cores():
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


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
