"""Which experts a router chooses over a text."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..chunks import cut

Row = dict


@torch.inference_mode()
def expert_loads(model, tokens, ctx: int = 512, chunks: int | None = None) -> list[Row]:
    """How often every expert of every layer is chosen, over a text's chunks as `sweep` cuts them.

    Row: layer, expert, count (of tokens that chose it), share (of all tokens read), uniform (the
    share of each if all were alike: experts a token over experts).
    Raises: ValueError for a model without routed experts.
    """
    moes = {i: moe for i, x in enumerate(model.layers) if (moe := getattr(x, "moe", None))}
    if not moes:
        raise ValueError(f"{model.path.name} has no routed experts")
    pieces = cut(tokens, ctx, chunks, model)
    with contextlib.ExitStack() as stack:
        chosen = {i: stack.enter_context(_choices(moe)) for i, moe in moes.items()}
        for piece in pieces:
            model.run(piece[None], model.new_cache("f16", "f16", ctx))
    return [row for i, moe in moes.items() for row in _layer(i, moe, torch.cat(chosen[i]))]


@contextlib.contextmanager
def _choices(moe) -> Iterator[list[Tensor]]:
    """Keeps what a router chooses: a list of int64 [tokens, k], one for each call."""
    kept, route = [], moe.route

    def watched(h: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = route(h)
        kept.append(chosen.flatten(0, -2).cpu())
        return weights, chosen

    moe.route = watched
    try:
        yield kept
    finally:
        del moe.route  # the class's own is seen again


def _layer(layer: int, moe, chosen: Tensor) -> list[Row]:
    n = moe.n_experts
    counts = chosen.flatten().bincount(minlength=n).tolist()
    same = {"layer": layer, "uniform": moe.top_k / n}
    return [
        same | {"expert": e, "count": count, "share": count / len(chosen)}
        for e, count in enumerate(counts)
    ]
