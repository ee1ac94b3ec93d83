"""KL with experts held to the reference's, against a router of this file's own; planted routers."""

import types

import pytest
import torch

import tqlab
from tqlab import measure
from tqlab.models import gemma4

CTX, TOKENS, PAIR = 32, list(range(5, 69)), ("turbo3", "turbo3")


def routed(model, monkeypatch, ids, pair, held=()):
    """(log-probabilities, experts chosen by layer) with our own router; `held`: these instead."""
    chosen, held = [], list(held)

    def route(moe, h):
        r = h / (h.square().mean(-1, keepdim=True) + moe.eps).sqrt() * moe.router_scale / 8
        shares = moe.router(r).softmax(-1)
        chosen.append(shares.argsort(-1, descending=True)[..., :8].sort().values)
        taken = held.pop(0) if held else chosen[-1]
        weights = torch.stack([shares[0, t, c] for t, c in enumerate(taken[0])])[None]
        return weights / weights.sum(-1, keepdim=True) * moe.expert_scale[taken], taken

    with monkeypatch.context() as patch:
        patch.setattr(gemma4.MoE, "route", route)
        logits = model(ids, model.new_cache(*pair, CTX))[0, CTX // 2 : -1]
    return logits.log_softmax(-1), chosen


def by_hand(model, monkeypatch):
    """(KL with experts held to f16's, share of other sets of them)."""
    kl, other = [], []
    for start in (0, CTX):
        ids = torch.tensor([TOKENS[start : start + CTX]])
        right, first = routed(model, monkeypatch, ids, ("f16", "f16"))
        held, _ = routed(model, monkeypatch, ids, PAIR, first)
        kl.append((right.exp() * (right - held)).sum(-1))
        _, own = routed(model, monkeypatch, ids, PAIR)
        other += [(a != b).any(-1) for a, b in zip(first, own, strict=True)]
    return float(torch.cat(kl).mean()), float(torch.cat(other, 1).double().mean())


def test_held_experts_against_a_router_of_our_own(moe, monkeypatch):
    held, changed = by_hand(moe, monkeypatch)
    same, row = measure.routing_rows(moe, TOKENS, [("f16", "f16"), PAIR], CTX, 2)
    assert row["name"] == "turbo3/turbo3"
    # the reference keeps log-probabilities in 16 bits, and sums run in another order
    assert row["held"] == pytest.approx(held, rel=0.01)
    assert row["changed"] == changed
    assert row["changed"] > 0.1
    assert abs(row["kld"] / row["held"] - 1) > 0.05
    (swept,) = tqlab.sweep(moe, TOKENS, [PAIR], CTX, 2, None)
    assert row["kld"] == swept["kld_mean"]
    assert same["changed"] == 0
    assert row["held_times"] == pytest.approx(same["held"] / row["held"])


def test_a_router_that_ignores_its_token_changes_nothing(moe):
    for layer in moe.layers:
        layer.moe.router = lambda r: torch.arange(96.0).expand(*r.shape[:-1], -1)
    (row,) = measure.routing_rows(moe, TOKENS, [PAIR], CTX, 2)
    assert row["changed"] == 0
    assert row["kld"] == row["held"] > 0
    assert row["times"] == 1
    assert all("choose" not in vars(layer.moe) for layer in moe.layers)


def test_calibrating_on_the_way_is_not_taken_for_reading_the_text(moe):
    ids = torch.randint(300, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    moe.make_tokenizer = lambda: types.SimpleNamespace(adds_bos=False, encode=lambda text: ids)
    first, again = (measure.routing_rows(moe, TOKENS, ["cw3"], CTX, 2) for _ in range(2))
    assert moe.calibration.origin.chunks == 1
    assert first == again
    with pytest.raises(ValueError, match="on which the recipe was calibrated"):
        measure.routing_rows(moe, ids, ["cw3"], CTX, 2)


def test_a_model_without_experts_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"tiny\.gguf has no routed experts"):
        measure.routing_rows(tiny_model, TOKENS, [PAIR], CTX)
