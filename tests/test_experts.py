"""Routed experts: any types and counts, in one or two tensors, against one product a choice."""

import pytest
import torch

from tqlab import formats, metal, ops
from tqlab.models.matrices import Dense, GroupedExperts, Joined, Packed, PackedExperts

IN, OUT = 64, 6


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def experts(kind, n):
    """(what a model would take from a file, the same dense [n, out, in])."""
    w = gaussian(n, OUT, IN, seed=n)
    if kind == "f32":
        return GroupedExperts([Dense(each) for each in w]), w
    raw = formats.get(kind).quantize(w)
    made = PackedExperts(raw, kind)
    if kind == "q8_0":
        made = GroupedExperts([Packed(each, kind) for each in raw])
    return made, formats.get(kind).dequantize(raw)


def choices(tokens, n, k):
    source = torch.Generator().manual_seed(tokens)
    return torch.stack([torch.randperm(n, generator=source)[:k] for _ in range(tokens)])


def expected(x, w, chosen):
    """One product a token and slot, in float64."""
    x = x if x.dim() == 3 else x[:, None].expand(*chosen.shape, -1)
    return torch.einsum("tki,tkoi->tko", x.double(), w.double()[chosen]).float()


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input a choice"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3), (96, 8), (128, 2), (256, 6), (5, 5)])
@pytest.mark.parametrize("kind", ["f32", "q8_0", "tq3_1s", "tq4_1s"])
def test_every_choice_gets_its_expert(kind, n, k, shared):
    made, w = experts(kind, n)
    for tokens in (1, 2, 19):
        chosen = choices(tokens, n, k)
        x = gaussian(tokens, IN) if shared else gaussian(tokens, k, IN)
        torch.testing.assert_close(made(x, chosen), expected(x, w, chosen), rtol=0, atol=1e-4)
    assert made.nbytes == w.numel() * (4 if kind == "f32" else formats.get(kind).bits_per_value / 8)


def test_gate_and_up_of_different_types_share_the_rotation(monkeypatch):
    seen, turn = [], ops.wht
    monkeypatch.setattr(ops, "wht", lambda x, *r: (seen.append(tuple(x.shape)), turn(x, *r))[1])
    parts = [experts(kind, 9) for kind in ("tq4_1s", "q8_0", "tq3_1s")]
    x, chosen = gaussian(4, IN), choices(4, 9, 3)
    together = Joined([made for made, _ in parts])(x, chosen)
    assert seen == [(4, IN)]
    assert torch.equal(together, torch.cat([made(x, chosen) for made, _ in parts], -1))


@pytest.mark.parametrize("tokens", [3, 40])
def test_one_launch_for_all_tokens_and_slots(launches, tokens):
    made, w = experts("tq4_1s", 128)
    x, chosen = gaussian(tokens, IN), choices(tokens, 128, 4)
    with metal.simulate("sim"):
        y = made(x, chosen)
    kernel = "matvec" if tokens == 3 else "matmul"
    assert launches == ["wht_float_32", f"tq_moe_{kernel}_tq4_1s_float"]
    torch.testing.assert_close(y, expected(x, w, chosen), rtol=0, atol=1e-4)
