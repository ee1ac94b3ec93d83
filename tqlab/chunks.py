"""A text as chunks of tokens, and the hashes that name what was measured."""

import hashlib

import torch
from torch import Tensor

from . import data


def cut(tokens, ctx: int, chunks: int | None, model) -> Tensor:
    """The chunks to score: int64 [n, ctx], BOS in front where the vocabulary asks for it."""
    tokens = torch.as_tensor(tokens).long().flatten()
    if ctx < 4 or ctx % 2:
        raise ValueError(f"ctx must be an even number of at least 4 tokens, not {ctx}")
    if ctx > model.config.context_length:
        raise ValueError(
            f"ctx {ctx} exceeds the context of {model.config.name}: {model.config.context_length}"
        )
    available = len(tokens) // ctx
    if available == 0:
        raise ValueError(f"the text has {len(tokens)} tokens; one chunk needs {ctx}: lower ctx")
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks must be at least 1, not {chunks}")
    n = available if chunks is None else min(chunks, available)
    pieces = tokens[: n * ctx].view(n, ctx).clone()
    if model.tokenizer is not None and model.tokenizer.adds_bos:
        pieces[:, 0] = model.tokenizer.bos_id
    return pieces


def tokens_sha256(tokens) -> str:
    """Hash of token ids, as little-endian int32."""
    ids = torch.as_tensor(tokens).flatten().to(torch.int32).numpy()
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()


def model_sha256(model) -> str:
    """Hash of the model's file (computed once a model)."""
    if not hasattr(model, "_sha256"):
        model._sha256 = data.file_sha256(model.path)
    return model._sha256
