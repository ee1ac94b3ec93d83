"""Perplexity over many K/V pairs, as JSON Lines: appended, flushed, resumed, never recomputed.

A row holds everything needed to rerun it. Its `key` hashes the configuration, so a finished point
is skipped; rows of other texts or models may share a file, but they are never compared.
"""

import hashlib
import json
import os
import platform
import time
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path

import torch

from . import data, formats
from . import device as devices
from .metrics import Perplexity, ReferenceLog, cut, model_sha256, perplexity, tokens_sha256
from .models import Decoder
from .progress import Progress
from .version import VERSION

REFERENCE = ("f16", "f16")
# The fork's formats as measured in its own baselines, and our corrected turbo4_lm.
DEFAULT_PAIRS = (
    ("f16", "f16"),
    ("q8_0", "q8_0"),
    ("q8_0", "turbo4"),
    ("q8_0", "turbo3"),
    ("q8_0", "turbo2"),
    ("turbo4_lm", "turbo4_lm"),
    ("turbo4", "turbo4"),
    ("q4_0", "q4_0"),
    ("turbo3", "turbo3"),
    ("turbo2", "turbo2"),
)


def sweep(
    model: Decoder,
    tokens,
    pairs=DEFAULT_PAIRS,
    ctx: int = 512,
    chunks: int | None = None,
    out: str | Path | None = "results.jsonl",
    executor: Executor | None = None,
    text: data.Text | None = None,
    reference: tuple[str, str] = REFERENCE,
) -> list[dict]:
    """Measure every (k, v) pair and return one row (dict) each, in the order of `pairs`.

    Shapes: tokens: ints, list or 1-D tensor, of the whole text
    `out` is appended to (None: no file); `executor` runs points concurrently (threads: the model is
    shared); `text` names where the tokens come from, for the rows.
    Units: as in `metrics.Perplexity`; bits = mean of k_bits and v_bits; seconds of wall clock.
    Raises: ValueError for unknown formats, a damaged results file, or what `perplexity` raises;
    OSError when a row cannot be written (its values are in the message: nothing is lost).
    """
    pairs = [check_pair(pair) for pair in pairs]
    pieces = cut(tokens, ctx, chunks, model)
    for pair in dict.fromkeys(pairs):  # unfit heads are refused before any work starts
        model.new_cache(*pair, max_tokens=1)
    base = _configuration(model, pieces, text, reference)
    done = {row["key"]: row for row in read_rows(out)} if out is not None else {}
    wanted = {pair: _key(base, pair) for pair in pairs}
    if executor:  # once, before the points need it at the same time
        ReferenceLog(model, pieces, reference).complete()
    with Progress("sweep", len(wanted)) as progress:

        def measure(pair):
            if wanted[pair] not in done:
                start = base | {"key": wanted[pair], "k": pair[0], "v": pair[1]}
                result = perplexity(
                    model, pieces, ctx, None, *pair, reference, on_chunk=progress.show
                )
                done[wanted[pair]] = _row(start, result)
                append_row(out, done[wanted[pair]])
            progress.step("/".join(pair))

        list((executor.map if executor else map)(measure, wanted))
    return [done[wanted[pair]] for pair in pairs]


def check_pair(pair) -> tuple[str, str]:
    """A (k, v) pair of known formats. Raises ValueError naming what is wrong."""
    if isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"a pair is two format names (k, v), not {pair!r}")
    for name in pair:
        formats.get(name)
    return tuple(pair)


def _configuration(model: Decoder, pieces, text: data.Text | None, reference) -> dict:
    """Everything a point depends on except its formats."""
    return {
        "model": model.config.name,
        "model_file": model.path.name,
        "model_sha256": model_sha256(model),
        "weights": model.weights_mode,
        "text": text.name if text else None,
        "text_sha256": text.sha256 if text else None,
        "text_python": text.python if text else None,
        "tokens_sha256": tokens_sha256(pieces),
        "ctx": pieces.shape[1],
        "chunks": pieces.shape[0],
        "reference": "/".join(reference),
        "device": model.device.type,
        "tqlab": VERSION,
    }


# What decides whether two runs measure the same point. Labels and library versions do not.
_KEY_FIELDS = ("model_sha256", "weights", "tokens_sha256", "ctx", "chunks", "reference", "device")


def _key(base: dict, pair: tuple[str, str]) -> str:
    identity = [base[field] for field in (*_KEY_FIELDS, "tqlab")] + list(pair)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _row(start: dict, result: Perplexity) -> dict:
    return start | {
        **asdict(result),
        "bits": (result.k_bits + result.v_bits) / 2,
        "device_name": devices.describe(torch.device(start["device"])),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def append_row(out: str | Path | None, row: dict) -> None:
    """Add one line and force it to disk. Raises OSError carrying the row when that fails."""
    if out is None:
        return
    line = json.dumps(row) + "\n"
    size = None
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with Path(out).open("a", encoding="utf-8") as file:
            size = file.tell()
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if size is not None:
            _cut_back(Path(out), size)
        raise OSError(f"{out}: {error.strerror}; the row not written is {line.strip()}") from None


def _cut_back(path: Path, size: int) -> None:
    """Take half a line away again (shrinking works on a full disk too)."""
    with path.open("r+b") as file:
        file.truncate(size)


def read_rows(path: str | Path) -> list[dict]:
    """Rows of a results file; [] when there is none yet.

    A last line cut short by a kill is removed from the file: it will be measured again.
    Raises: ValueError naming the file and line when an earlier line is not a row.
    """
    path = Path(path)
    if not path.is_file():
        return []
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        _cut_back(path, whole)
    rows = []
    for number, line in enumerate(raw[:whole].splitlines(), 1):
        rows.append(_parse(path, number, line))
    return rows


def _parse(path: Path, number: int, line: bytes) -> dict:
    try:
        row = json.loads(line)
        row["key"], row["k"], row["v"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}, line {number}: not a row of a sweep; remove that line") from None
    return row
