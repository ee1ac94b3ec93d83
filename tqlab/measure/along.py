"""KL divergence along one text, token by token, and a bug planted on purpose."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import attention

Row = dict
_ROWS = 16  # positions whose probabilities are compared at once


@contextlib.contextmanager
def unrotated_queries() -> Iterator[None]:
    """A planted bug: keys are stored rotated, and queries are compared with them as they are.

    For contrast only. Formats that do not rotate are unharmed.
    """
    right = attention.rotate_product
    attention.rotate_product = lambda x, rotation: x
    try:
        yield
    finally:
        attention.rotate_product = right


@torch.inference_mode()
def kl_along(model, prompt, tokens, k: str, v: str, other=None) -> Row:
    """How far the predictions of a cache (k, v) lie from those of f16/f16, for every token.

    `prompt`, `tokens`: lists of ids, the text read; the prediction of each of `tokens` is compared,
    so the last of them is not read. `other`: the model that is judged where it is not `model`.
    Row: k, v, pieces (the tokens as text), kld (list, nats), kld_mean, same_top (a fraction).
    """
    judged = other or model
    ours = states(judged, prompt, tokens, k, v)
    theirs = states(model, prompt, tokens)
    kld, same = [], []
    for x, y in zip(ours.split(_ROWS), theirs.split(_ROWS), strict=True):
        log_q, log_p = (m.head(h).log_softmax(-1) for m, h in ((judged, x), (model, y)))
        kld += (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0).tolist()
        same += (log_p.argmax(-1) == log_q.argmax(-1)).tolist()
    pieces = [model.tokenizer.decode([t], special=True) for t in tokens]
    row = {"k": k, "v": v, "pieces": pieces, "kld": kld}
    return row | {"kld_mean": sum(kld) / len(kld), "same_top": sum(same) / len(same)}


def along_rows(model, prompt, tokens, pairs, bug=("turbo4", "turbo4")) -> list[Row]:
    """`kl_along` of every pair; the last row is `bug` once more, with its queries not rotated.

    The last row has a label, and no format (None), beside the others' columns.
    """
    rows = [kl_along(model, prompt, tokens, *pair) for pair in pairs]
    with unrotated_queries():
        planted = kl_along(model, prompt, tokens, *bug)
    label = f"{'/'.join(bug)}, queries not rotated"
    return [*rows, planted | {"label": label, "format": None}]


@torch.inference_mode()
def states(model, prompt, tokens, k: str = "f16", v: str = "f16") -> Tensor:
    """Last hidden states before each of `tokens`, read through a cache: [len(tokens), n_embd]."""
    ids = torch.tensor([[*prompt, *tokens][:-1]])
    cache = model.new_cache(k, v, ids.shape[1])
    return model.run(ids, cache)[0, len(prompt) - 1 :]
