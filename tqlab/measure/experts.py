"""Which experts a router chooses over a text, and what it costs when a cache makes it change."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..chunks import cut
from ..metrics import perplexity
from ..recipes import pair_label
from ..sweep import REFERENCE, check_pair

Row = dict
Choices = dict[int, list[Tensor]]  # layer -> int64 [B, T, k], one for each call


@torch.inference_mode()
def expert_loads(model, tokens, ctx: int = 512, chunks: int | None = None) -> list[Row]:
    """How often every expert of every layer is chosen, over a text's chunks as `sweep` cuts them.

    Row: layer, expert, count (of tokens that chose it), share (of all tokens read), uniform (the
    share of each if all were alike: experts a token over experts).
    Raises: ValueError for a model without routed experts.
    """
    moes, pieces = _moes(model), cut(tokens, ctx, chunks, model)
    with _choices(moes) as chosen:
        for piece in pieces:
            model.run(piece[None], model.new_cache("f16", "f16", ctx))
    return [row for i, moe in moes.items() for row in _layer(i, moe, torch.cat(chosen[i], 1)[0])]


def routing_rows(model, tokens, pairs, ctx: int = 512, chunks: int | None = 1) -> list[Row]:
    """KL divergence of caches with the experts that tokens choose, and with those of the f16 cache.

    Choosing is a jump: an error of any size may change the last expert chosen. Held to the choices
    made with the f16 cache, the same errors only act through smooth functions.
    `pairs` as in `sweep`. Row: name; changed (share of choices, over layers and tokens, that are
    not f16's set); kld, kld_se, held, held_se (nats a token, from f16/f16); times, held_times (the
    first pair's over this one's; None for a KL of 0).
    Raises: ValueError for a model without routed experts; what `perplexity` raises.
    """
    moes, pieces = _moes(model), cut(tokens, ctx, chunks, model)
    pairs = [check_pair(pair) for pair in pairs]
    for pair in pairs:  # a calibration, where one is needed, is no part of what is watched
        model.new_cache(*pair, max_tokens=1).refuse_text(pieces)

    def measured(pair, held: Choices | None = None):
        with _choices(moes, held) as seen:
            return perplexity(model, pieces, ctx, None, *pair, reference=REFERENCE), seen

    _, right = measured(REFERENCE)
    rows: list[Row] = []
    for pair in pairs:
        (own, seen), (held, _) = measured(pair), measured(pair, right)
        row = {"name": pair_label(*pair), "changed": _changed(right, seen)}
        row |= {"kld": own.kld_mean, "kld_se": own.kld_se}
        rows.append(row | {"held": held.kld_mean, "held_se": held.kld_se})
    return [
        r | {"times": _times(rows, r, "kld"), "held_times": _times(rows, r, "held")} for r in rows
    ]


def _times(rows: list[Row], row: Row, key: str) -> float | None:
    return rows[0][key] / row[key] if row[key] else None


def _moes(model) -> dict:
    """Routed experts by layer."""
    moes = {i: moe for i, x in enumerate(model.layers) if (moe := getattr(x, "moe", None))}
    if not moes:
        raise ValueError(f"{model.path.name} has no routed experts")
    return moes


@contextlib.contextmanager
def _choices(moes: dict, held: Choices | None = None) -> Iterator[Choices]:
    """Keep what routers choose, call by call; `held`: what they get instead, in the same order."""
    seen: Choices = {i: [] for i in moes}
    for i, moe in moes.items():
        moe.choose = _watched(moe.choose, seen[i], held and iter(held[i]))
    try:
        yield seen
    finally:
        for moe in moes.values():
            del moe.choose  # the class's own is seen again


def _watched(choose, seen: list[Tensor], held: Iterator[Tensor] | None):
    def watched(shares: Tensor) -> Tensor:
        seen.append(choose(shares))
        return next(held) if held else seen[-1]

    return watched


def _changed(right: Choices, seen: Choices) -> float:
    """The share of choices that are another set of experts."""
    pairs = [pair for i in right for pair in zip(right[i], seen[i], strict=True)]
    other = [(a.sort().values != b.sort().values).any(-1).flatten() for a, b in pairs]
    return float(torch.cat(other).double().mean())


def _layer(layer: int, moe, chosen: Tensor) -> list[Row]:
    n = moe.n_experts
    counts = chosen.flatten().bincount(minlength=n).tolist()
    same = {"layer": layer, "uniform": moe.top_k / n}
    return [
        same | {"expert": e, "count": count, "share": count / len(chosen)}
        for e, count in enumerate(counts)
    ]
