"""Bytes of files, caches and whole journeys, counted by the code that writes and stores them."""

import math
from pathlib import Path

from ..calibrate import plan as plan_cache
from ..gguf_file import GGUFFile
from ..kvcache import KVCache
from ..policies import Move, plan
from ..recipes import pair_label
from ..sweep import check_pair
from .described import describe

Row = dict
_ROLES = {  # the first name part that matches decides
    "per_layer_token_embd": "per-layer embeddings",
    "token_embd": "embedding and head",
    "_exps": "experts",
    "norm": "norms and small parts",
    "attn_": "attention",
    "ffn_gate_inp": "norms and small parts",
    "ffn_": "feed-forward",
    "output.": "embedding and head",
}


def role_rows(file, type: str | None = None, policy: str | None = None) -> list[Row]:
    """Bytes by the tensors' role, before and after quantising `file` as quantize_gguf would.

    `file`: a GGUF file's path, or a `Described` model.
    Row: role, when ("before" | "after"), type, count (tensors), bytes; roles by size.
    """
    totals: dict[tuple, list[int]] = {}
    for move in _moves(file, type, policy):
        role = role_of(move.source.name)
        for key, nbytes in (
            ((role, "before", move.source.type), move.source.nbytes),
            ((role, "after", move.type), move.plan.nbytes),
        ):
            entry = totals.setdefault(key, [0, 0])
            entry[0] += 1
            entry[1] += nbytes
    rows = [dict(zip(("role", "when", "type"), k, strict=True)) for k in totals]
    rows = [r | {"count": n, "bytes": b} for r, (n, b) in zip(rows, totals.values(), strict=True)]
    size = {r["role"]: 0 for r in rows}
    for row in rows:
        size[row["role"]] += row["bytes"] * (row["when"] == "before")
    return sorted(rows, key=lambda row: -size[row["role"]])


def recipe_rows(file, types=(), policies=()) -> list[Row]:
    """What a file would take in other types, and by policies: nothing is quantised for that.

    `file`: a GGUF file's path, or a `Described` model. Row: recipe, bytes, bits (a weight).
    """
    plans = {name: _moves(file, type=name) for name in types}
    plans |= {name: _moves(file, policy=name) for name in policies}
    rows = []
    for name, moves in plans.items():
        nbytes = sum(move.plan.nbytes for move in moves)
        values = sum(math.prod(move.source.shape) for move in moves)
        rows.append({"recipe": name, "bytes": nbytes, "bits": 8 * nbytes / values})
    return rows


def _moves(file, type: str | None = None, policy: str | None = None) -> list[Move]:
    return plan(GGUFFile(file) if isinstance(file, str | Path) else file, type, policy)


def role_of(name: str) -> str:
    """What a tensor is for, from its GGUF name."""
    found = (role for part, role in _ROLES.items() if part in name)
    return next(found, "norms and small parts")


def cache_rows(names, pairs, contexts) -> list[Row]:
    """Cache bytes of described Gemma 4 models: a `KVCache` is built, on torch's meta device.

    Row: model, k, v, context (tokens), bytes, ring (of them in sliding layers).
    """
    rows = []
    for name in names:
        shapes = describe(name).layer_shapes()
        for k, v in pairs:
            for context in contexts:
                cache = KVCache(shapes, k, v, context, device="meta")
                row = {"model": name, "k": k, "v": v, "context": context, "bytes": cache.nbytes}
                rows.append(row | {"ring": _ring(cache)})
    return rows


def context_rows(model, pairs, contexts) -> list[Row]:
    """Stored bits of a model's cache by context, exact tokens counted: built on the meta device.

    `pairs` as in `sweep`. Row: name, context (tokens), k_bits, v_bits, bits (their mean), bytes,
    shared (bytes of key transforms, one copy a model).
    """
    rows = []
    for pair in map(check_pair, pairs):
        for context in contexts:
            k, v, policy = plan_cache(model, *pair, context)
            cache = KVCache(model.layer_shapes(), k, v, context, device="meta", policy=policy)
            bits = cache.stored_bits()
            row = {"name": pair_label(*pair), "context": context, "bits": sum(bits) / 2}
            row |= dict(zip(("k_bits", "v_bits"), bits, strict=True))
            rows.append(row | {"bytes": cache.nbytes, "shared": cache.shared_nbytes})
    return rows


def _ring(cache: KVCache) -> int:
    layers = zip(cache.shapes, cache.layers, strict=True)
    rings = [x for shape, x in layers if shape.donor is None and shape.window is not None]
    return sum(x.k.nbytes + x.v.nbytes for x in rings)


def journey_rows(
    names, weights_per_s: float, type: str = "tq4_1s", pair=("q8_0", "turbo4"), context: int = 32768
) -> list[Row]:
    """What the way from a BF16 checkpoint to text takes, for described Gemma 4 models.

    Row: model, weights; bytes: checkpoint (text part, and so the converted file), quantized, cache
    (at `context`), disk (checkpoint, converted and quantised file all kept), memory (weights and
    cache); hours (of quantising, extrapolated from `weights_per_s`).
    """
    rows = []
    for name in names:
        model = describe(name)
        moves = plan(model, type)
        after = sum(move.plan.nbytes for move in moves)
        work = sum(math.prod(move.source.shape) for move in moves if move.quantized)
        cache = cache_rows([name], [pair], [context])[0]["bytes"]
        row = {"model": name, "weights": model.n_weights, "checkpoint": model.nbytes}
        row |= {"quantized": after, "disk": 2 * model.nbytes + after}
        row |= {"cache": cache, "memory": after + cache}
        rows.append(row | {"hours": work / weights_per_s / 3600})
    return rows
