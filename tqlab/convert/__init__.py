"""Hugging Face safetensors checkpoints to GGUF, streamed: `convert_hf`.

config.json is read as it is (transformers' own classes rewrite Gemma 4's), shapes come from the
tensors, and nothing of the checkpoint is ever in memory as a whole. Source: spec gemma4 3 and 4.
"""

import contextlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..formats import get as get_format
from ..gguf_write import GGUFWriter, TensorPlan
from ..progress import Progress
from . import names, vocabulary
from .checkpoint import Checkpoint
from .hyperparameters import ARCHITECTURES, hyperparameters, rope_factors

_BLOCK_VALUES = 1 << 22  # values copied at once
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}


@dataclass(frozen=True)
class Converted:
    """What was written. Units: bytes, seconds."""

    path: Path
    architecture: str
    type: str
    n_tensors: int
    n_skipped: int
    n_vocab: int
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class _Item:
    """A tensor to write: its plan, and the checkpoint's name for it (None: `values` made here)."""

    plan: TensorPlan
    source: str | None
    values: torch.Tensor | None = None


def convert_hf(directory: str | Path, dst: str | Path, progress: bool = True) -> Converted:
    """Write the checkpoint in `directory` (gemma4, gemma3, llama, qwen2) as one GGUF file.

    Matrices keep the checkpoint's own type (F32, F16, BF16); vectors become F32.
    Raises: ValueError naming the file, key or tensor that is missing, unknown or holds NaN;
    FileNotFoundError; OSError for the target. Nothing half-written is left.
    """
    start = time.perf_counter()
    checkpoint = Checkpoint(directory)
    with _one_line(checkpoint):
        arch = architecture(checkpoint)
        items, skipped = _items(checkpoint, arch)
        main_type = next(i.plan.type for i in items if i.plan.name == "token_embd.weight")
        n_vocab = checkpoint.shape(names.embedding(checkpoint))[0]
        metadata = hyperparameters(checkpoint, arch, _FILE_TYPES[main_type])
        metadata |= vocabulary.metadata(checkpoint, arch, n_vocab)
    bar = Progress("convert", len(items)) if progress else contextlib.nullcontext()
    with GGUFWriter(dst, metadata, [i.plan for i in items]) as out, bar:
        for item in items:
            for piece in _pieces(checkpoint, arch, item):
                out.write(item.plan.name, piece)
            if progress:
                bar.step(item.plan.name)
    seconds = time.perf_counter() - start
    return Converted(Path(dst), arch, main_type, len(items), skipped, n_vocab, out.nbytes, seconds)


@contextlib.contextmanager
def _one_line(checkpoint: Checkpoint) -> Iterator[None]:
    """Values of a wrong kind in the JSON files become a ValueError that says where to look."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, struct.error) as error:
        raise ValueError(
            f"{checkpoint.path}: config.json or tokenizer.json has a value of the wrong kind: "
            f"{type(error).__name__}: {error}"
        ) from None


def architecture(checkpoint: Checkpoint) -> str:
    """GGUF's name for the checkpoint's model_type. Raises ValueError listing the known ones."""
    kind = str(checkpoint.config.get("model_type"))
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise ValueError(f"{checkpoint.path}: model_type {kind!r} is not known; known: {known}")
    if "quantization_config" in checkpoint.whole_config:
        raise ValueError(
            f"{checkpoint.path}: the checkpoint is quantised already; use the original"
        )
    return ARCHITECTURES[kind]


def _items(checkpoint: Checkpoint, arch: str) -> tuple[list[_Item], int]:
    """Every tensor to write in the checkpoint's order, and how many were left out."""
    items, skipped = [], 0
    factors = rope_factors(checkpoint, arch)
    if factors is not None:
        items.append(
            _Item(TensorPlan("rope_freqs.weight", tuple(factors.shape), "f32"), None, factors)
        )
    for source in checkpoint.names():
        name = names.to_gguf(checkpoint, arch, source)
        if name is None:
            skipped += 1
            continue
        shape = checkpoint.shape(source)
        items.append(_Item(TensorPlan(name, shape, _type(checkpoint, source, name, shape)), source))
    names.check_complete(checkpoint, [i.plan.name for i in items])
    return items, skipped


def _type(checkpoint: Checkpoint, source: str, name: str, shape: tuple[int, ...]) -> str:
    stored = checkpoint.dtype(source)
    if stored not in _TYPES:
        raise ValueError(
            f"{checkpoint.path}: tensor {source!r} is {stored}; F32, F16 and BF16 are read"
        )
    kept = len(shape) > 1 and not name.endswith("ffn_gate_inp.weight")
    return _TYPES[stored] if kept else "f32"


def _pieces(checkpoint: Checkpoint, arch: str, item: _Item) -> Iterator[np.ndarray]:
    """The bytes of one tensor, block by block."""
    for block in _blocks(checkpoint, arch, item):
        if not bool(torch.isfinite(block).all()):
            raise ValueError(
                f"{checkpoint.path}: tensor {item.source!r} holds NaN or infinite values"
            )
        yield get_format(item.plan.type).quantize(block).numpy()


def _blocks(checkpoint: Checkpoint, arch: str, item: _Item) -> Iterator[torch.Tensor]:
    if item.source is None:
        yield item.values
        return
    change = names.transform(checkpoint, arch, item.plan.name)
    if change is not None:
        yield change(checkpoint.rows(item.source))
        return
    shape = item.plan.shape
    step = max(1, _BLOCK_VALUES // max(1, item.plan.nbytes // shape[0]))
    for first in range(0, shape[0], step):
        yield checkpoint.rows(item.source, first, first + step)
