"""Trains the model for a given time on a stream of ids, and says how well it predicts others."""

import math
import time

import numpy as np
import torch
from model import Gemma4, Shape
from torch import Tensor
from torch.nn.functional import cross_entropy

PEAK, WARMUP, DECAY = 2e-3, 0.02, 0.1  # learning rate; share of the time; weight decay
BALANCE = 0.01  # weight of the balance loss


def loss_of(model: Gemma4, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean nats a token of ids [B, T + 1], and the imbalance."""
    x, imbalance = model(ids[:, :-1])
    return cross_entropy(model.logits(x).flatten(0, 1), ids[:, 1:].flatten()), imbalance


def groups(model: Gemma4) -> list[dict]:
    """Matrices decay, vectors and the embedding do not."""
    heavy = [p for n, p in model.named_parameters() if p.dim() > 1 and n != "token_embd"]
    light = [p for n, p in model.named_parameters() if p.dim() < 2 or n == "token_embd"]
    return [{"params": heavy, "weight_decay": DECAY}, {"params": light, "weight_decay": 0.0}]


def rate(done: float) -> float:
    """Learning rate after a share `done` of the time: a short rise, then half a cosine."""
    if done < WARMUP:
        return PEAK * done / WARMUP
    return PEAK * (0.02 + 0.49 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))))


def train(
    stream: np.ndarray, held: np.ndarray, shape: Shape, rows: int, seconds: float, start: int
) -> Gemma4:
    """A model trained on rows of shape.context tokens drawn from `stream` at random places."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(start)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = Gemma4(shape, dtype).to(device)
    torch.set_float32_matmul_precision("high")
    step_loss = torch.compile(loss_of, dynamic=False) if device == "cuda" else loss_of
    adam = torch.optim.AdamW(groups(model), lr=0.0, betas=(0.9, 0.95), fused=device == "cuda")
    data = torch.from_numpy(stream.astype(np.int32)).to(device)
    steps, began = 0, None
    while began is None or (done := (time.time() - began) / seconds) < 1:
        for group in adam.param_groups:
            group["lr"] = rate(done) if began else 0.0
        places = torch.randint(len(data) - shape.context - 1, (rows, 1), device=device)
        ids = data[places + torch.arange(shape.context + 1, device=device)].long()
        loss, imbalance = step_loss(model, ids)
        (loss + BALANCE * imbalance).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        began = began or time.time()  # compiling does not count
        if steps % 100 == 0:
            tokens, spent = steps * ids[:, 1:].numel(), time.time() - began
            print(
                f"{spent:.0f} s, step {steps}, {tokens / 1e6:.0f} M tokens: "
                f"loss {loss:.4f}, imbalance {imbalance:.3f}, gradient {norm:.2f}"
                + (f", held out {held_out(model, held):.4f}" if steps % 500 == 0 else ""),
                flush=True,
            )
        steps += 1
    print(f"{steps} steps of {rows * shape.context} tokens; held out {held_out(model, held):.4f}")
    return model


@torch.no_grad()
def held_out(model: Gemma4, ids: np.ndarray) -> float:
    """Mean nats a token over whole rows of the context."""
    n = model.s.context
    rows = ids[: (len(ids) - 1) // n * n + 1]
    rows = torch.stack(
        [torch.from_numpy(rows[i : i + n + 1].astype(np.int64)) for i in range(0, len(rows) - 1, n)]
    )
    parts = [loss_of(model, part.to(model.token_embd.device))[0] for part in rows.split(16)]
    return float(torch.stack(parts).mean())
