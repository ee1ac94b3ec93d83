"""Perplexity over K/V pairs and recipes, as JSON Lines: appended, resumed, never recomputed.

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

from . import data, recipes
from . import device as devices
from .calibrate import parts
from .chunks import cut, model_sha256, tokens_sha256
from .metrics import Perplexity, ReferenceLog, perplexity
from .models import Decoder
from .progress import Progress
from .recipes import Recipe, Side, label, pair_label, side
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
    offset: int = 0,
) -> list[dict]:
    """Measure every (k, v) pair and return one row (dict) each, in the order of `pairs`.

    Shapes: tokens: ints, list or 1-D tensor, of the whole text
    A pair is two formats, or one recipe (or its name or file). `out` is appended to (None: no
    file); `executor` runs points concurrently (threads: the model is shared); `text` names where
    the tokens come from, for the rows; `offset` is added to all positions.
    Units: as in `metrics.Perplexity`; bits = mean of k_bits and v_bits; seconds of wall clock.
    Raises: ValueError for unknown formats, a damaged results file, or what `perplexity` raises;
    OSError when a row cannot be written (its values are in the message: nothing is lost).
    """
    pairs = [check_pair(pair) for pair in pairs]
    pieces = cut(tokens, ctx, chunks, model)
    base = _configuration(model, pieces, text, reference, offset)
    # Unfit heads and texts that recipes were calibrated on are refused before any work starts.
    starts = {pair: _start(base, model, pair, pieces) for pair in dict.fromkeys(pairs)}
    done = {row["key"]: row for row in read_rows(out)} if out is not None else {}
    if executor:  # once, before the points need it at the same time
        ReferenceLog(model, pieces, reference, offset).complete()
    with Progress("sweep", len(starts)) as progress:

        def measure(pair):
            start, show = starts[pair], progress.show
            if start["key"] not in done:
                result = perplexity(model, pieces, ctx, None, *pair, reference, show, offset)
                done[start["key"]] = _row(start, result)
                append_row(out, done[start["key"]])
            progress.step(pair_label(*pair))

        list((executor.map if executor else map)(measure, starts))
    return [done[starts[pair]["key"]] for pair in pairs]


def check_pair(pair) -> tuple[Side, Side]:
    """A (k, v) pair: of known formats, or one recipe twice. Raises ValueError naming the wrong.

    A text is a recipe's name or file, or "k/v".
    """
    if isinstance(pair, str):
        pair = recipes.get(pair) if recipes.names_one(pair) else tuple(pair.strip().split("/"))
    if isinstance(pair, Recipe):
        return pair, pair
    if len(pair) != 2:
        shown = "/".join(map(label, pair))
        raise ValueError(
            f"a pair is two format names (k, v), or one recipe: {', '.join(recipes.names())} or a "
            f".toml file; not {shown}"
        )
    return tuple(map(side, pair))


def pair_name(row: dict, between: str = "/") -> str:
    """A row's "k/v", or the name of its recipe."""
    k, v = row["k"], row["v"]
    return k if row.get("recipe") and k == v else f"{k}{between}{v}"


def _configuration(model: Decoder, pieces, text: data.Text | None, reference, offset) -> dict:
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
        "offset": offset,
        "device": model.device.type,
        "tqlab": VERSION,
    }


# What decides whether two runs measure the same point. Labels and library versions do not.
_KEY_FIELDS = ("model_sha256", "weights", "tokens_sha256", "ctx", "chunks", "reference", "device")


def _start(base: dict, model: Decoder, pair: tuple[Side, Side], pieces) -> dict:
    """A row before it is measured: its key, its sides, and a recipe's parts."""
    cache = model.new_cache(*pair, max_tokens=1, start=base["offset"])
    cache.refuse_text(pieces)
    names = {"k": label(pair[0]), "v": label(pair[1]), "recipe": parts(model, *pair)}
    return base | {"key": _key(base, pair, cache.policy), **names}


def _key(base: dict, pair: tuple[Side, Side], policy) -> str:
    sides = [asdict(x) if isinstance(x, Recipe) else x for x in pair]
    identity = [base[field] for field in (*_KEY_FIELDS, "tqlab")] + sides
    identity += [base["offset"]] if base["offset"] else []
    if policy is not None and policy.calibration is not None:
        identity.append(asdict(policy.calibration.origin))
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _row(start: dict, result: Perplexity) -> dict:
    return start | {
        **asdict(result),
        "bits": (result.k_bits + result.v_bits) / 2,
        **provenance(torch.device(start["device"])),
    }


def provenance(device: torch.device) -> dict:
    """Where and when a row was measured, and with what, now."""
    return {
        "device_name": devices.describe(device),
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
