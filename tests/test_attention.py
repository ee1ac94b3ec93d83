"""Attention over packed tiles: the fork's vectors, one full softmax, and planted bugs."""

import numpy as np
import pytest
import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from tqlab import attention, formats, kvcache, rotation

CASES = [
    "fa_turbo4_0_turbo4_0_d128_hq2_hk2_nq4_kv48",
    "fa_turbo3_0_turbo3_0_d128_hq4_hk2_nq4_kv48",
    "fa_q8_0_turbo3_0_d128_hq2_hk1_nq1_kv64",
]
PAIRS = [("f32", "f32"), ("f16", "bf16"), ("q8_0", "turbo4"), ("turbo3", "q4_0")]
PAIRS += [("turbo2", "turbo2"), ("turbo4_lm", "turbo4_lm"), ("tq4_1s", "tq3_1s")]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cache_of(k, v, pair, device="cpu"):
    """One layer's view over k, v [B, H_kv, T, D] packed as `pair`."""
    shape = kvcache.LayerShape(k.shape[1], k.shape[3])
    cache = kvcache.KVCache([shape], *pair, k.shape[2], k.shape[0], device)
    return cache.update_and_fetch(0, k.to(device), v.to(device))


def full(q, view):
    """The definition: un-rotate every key and value, mask, one softmax, all in float64."""
    k = view.k.format.dequantize(view.k.data)[:, :, : view.n, : q.shape[3]].double().cpu()
    v = view.v.format.dequantize(view.v.data)[:, :, : view.n, : q.shape[3]].double().cpu()
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    late = torch.ones(q.shape[2], view.n).triu(1 + view.n - q.shape[2]).bool()
    scores = (q.double().cpu() @ k.mT) * q.shape[3] ** -0.5
    return (scores.masked_fill(late, -torch.inf).softmax(-1) @ v).float()


def attend(q, view, tile=None):
    return attention.attend(q.to(view.k.data.device), view, q.shape[3] ** -0.5, tile).cpu()


# ---- golden vectors

GOLDEN_ATOL = 2e-6


@pytest.mark.parametrize("case", CASES)
def test_golden(golden, case, device):
    """Bytes of K and V to the bit, then the output before and after the inverse rotation."""
    arrays = {part: torch.from_numpy(golden[f"{case}/{part}"]) for part in ("q", "k", "v", "out")}
    q, k, v = (arrays[part][None] for part in "qkv")
    pair = case.split("_d128")[0].removeprefix("fa_").replace("q8_0", "q8").replace("_0", "")
    pair = [name.replace("q8", "q8_0") for name in pair.split("_")]
    view = cache_of(k, v, pair, device)
    for side, packed in (("k", view.k), ("v", view.v)):
        ours = packed.data.cpu().numpy().reshape(-1, packed.data.shape[-1])
        assert (ours == golden[f"{case}/{side}_bytes"]).all()
    if pair[0] == "q8_0":  # the fork's dot product rounds the query to the keys' format
        q = formats.get("q8_0").dequantize(formats.get("q8_0").quantize(q))
    out = attend(q, view)[0].transpose(0, 1)  # the fork: [queries, heads, D]
    # Outputs are about 0.3; float32 sums of 64 keys and a 128-point transform in another order.
    torch.testing.assert_close(out, arrays["out"], rtol=0, atol=GOLDEN_ATOL)
    raw = rotation.rotate(out, view.v.format.rotation)
    raw_expected = torch.from_numpy(golden[f"{case}/raw"])
    torch.testing.assert_close(raw, raw_expected, rtol=0, atol=GOLDEN_ATOL)


# ---- against the definition


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_equals_one_full_softmax(pair, steps, device):
    k, v = gaussian(2, 2, 40, 128, seed=1), gaussian(2, 2, 40, 128, seed=2)
    q = 2 * gaussian(2, 6, steps, 128, seed=3)
    view = cache_of(k, v, pair, device)
    torch.testing.assert_close(attend(q, view), full(q, view), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 16, 39, 40, 41, 1000])
@pytest.mark.parametrize("pair", [("f32", "f32"), ("turbo3", "turbo4")], ids="/".join)
def test_any_tile_gives_the_same(tile, pair):
    k, v = gaussian(1, 2, 40, 128, seed=4), gaussian(1, 2, 40, 128, seed=5)
    view = cache_of(k, v, pair)
    for steps in (1, 2, 13, 40):
        q = 2 * gaussian(1, 4, steps, 128, seed=6)
        expected = full(q, view)
        torch.testing.assert_close(attend(q, view, tile), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (9, 3), (8, 1)])
def test_grouped_heads_equal_torch(heads, device):
    """f32 cache against torch's own attention, GQA included: query head h reads head h // G."""
    n_heads, n_kv = heads
    q, k, v = (gaussian(2, h, 33, 24, seed=7 + h) for h in (n_heads, n_kv, n_kv))
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    view = cache_of(k, v, ("f32", "f32"), device)
    torch.testing.assert_close(attend(q, view), expected, rtol=0, atol=1e-5)
    if n_heads > n_kv > 1:  # planted bug: heads dealt out h % H_kv instead
        groups = n_heads // n_kv
        dealt = q.view(2, groups, n_kv, 33, 24).transpose(1, 2).reshape(q.shape)
        assert (attend(dealt, view) - expected).abs().max() > 0.1


def test_large_scores_do_not_overflow():
    """Scores of +-1e4: exp overflows at 88, so the running maximum must carry them."""
    k, v = gaussian(1, 1, 64, 16, seed=8), gaussian(1, 1, 64, 16, seed=9)
    q = 1e4 * gaussian(1, 1, 8, 16, seed=10)
    view = cache_of(k, v, ("f32", "f32"))
    for tile in (1, 7, 64):
        out = attend(q, view, tile)
        torch.testing.assert_close(out, full(q, view), rtol=0, atol=1e-3)  # scores' rounding


def test_a_query_never_sees_later_keys():
    k, v = gaussian(1, 1, 40, 128, seed=11), gaussian(1, 1, 40, 128, seed=12)
    q = gaussian(1, 2, 40, 128, seed=13)
    before = attend(q, cache_of(k, v, ("turbo4", "turbo4")), 8)
    k[:, :, 25:], v[:, :, 25:] = -k[:, :, 25:], -50
    after = attend(q, cache_of(k, v, ("turbo4", "turbo4")), 8)
    assert torch.equal(before[:, :, :25], after[:, :, :25])
    assert (before[:, :, 25:] - after[:, :, 25:]).norm(dim=-1).min() > 1  # and does see its own


# ---- heads that need padding


@pytest.mark.parametrize("dim", [1, 20, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("pair", [("turbo3", "turbo3"), ("turbo4", "f16"), ("f16", "turbo2")])
def test_padded_heads(pair, dim, device):
    k, v = gaussian(1, 2, 30, dim, seed=14), gaussian(1, 2, 30, dim, seed=15)
    q = gaussian(1, 4, 9, dim, seed=16)
    view = cache_of(k, v, pair, device)
    out = attend(q, view)
    assert out.shape == (1, 4, 9, dim)
    torch.testing.assert_close(out, full(q, view), rtol=0, atol=1e-5)


def test_padding_keeps_inner_products():
    """<R q, R k> of zero-padded heads is <q, k> of the heads."""
    q, k = gaussian(50, 80, seed=17), gaussian(50, 80, seed=18)
    turned = [rotation.rotate(pad(x, (0, 48)), "wht128") for x in (q, k)]
    torch.testing.assert_close((turned[0] * turned[1]).sum(1), (q * k).sum(1), atol=2e-5, rtol=0)


# ---- planted bugs: each rotation happens exactly once


@pytest.mark.parametrize(
    ("bug", "pair"),
    [
        ("query not rotated", ("turbo4", "q8_0")),
        ("query rotated twice", ("turbo4", "q8_0")),
        ("query rotated for plain keys", ("q8_0", "turbo4")),
        ("output not un-rotated", ("q8_0", "turbo4")),
        ("output un-rotated twice", ("q8_0", "turbo4")),
        ("output un-rotated for plain values", ("turbo4", "q8_0")),
    ],
)
def test_planted_bugs_explode(monkeypatch, bug, pair):
    k, v = gaussian(1, 2, 32, 128, seed=19), gaussian(1, 2, 32, 128, seed=20)
    q = 3 * gaussian(1, 4, 32, 128, seed=21)
    view = cache_of(k, v, pair)
    expected = full(q, view)
    sound = (attend(q, view) - expected).abs().max()
    rotate, unrotate = attention.rotate_product, attention.unrotate_product
    planted = {
        "query not rotated": ("rotate_product", lambda x, name: x),
        "query rotated twice": ("rotate_product", lambda x, name: rotate(rotate(x, name), name)),
        "query rotated for plain keys": ("rotate_product", lambda x, name: rotate(x, "wht128")),
        "output not un-rotated": ("unrotate_product", lambda x, name: x),
        "output un-rotated twice": (
            "unrotate_product",
            lambda x, name: unrotate(unrotate(x, name), name),
        ),
        "output un-rotated for plain values": (
            "unrotate_product",
            lambda x, n: unrotate(x, "wht128"),
        ),
    }
    monkeypatch.setattr(attention, *planted[bug])
    assert (attend(q, view) - expected).abs().max() > 1e5 * sound
    assert (attend(q, view) - expected).norm() > 0.5 * expected.norm()


def test_each_rotation_is_called_once(monkeypatch):
    """However many tiles: the cache is never un-rotated."""
    calls = []
    for name in ("rotate_product", "unrotate_product"):
        real = getattr(attention, name)
        monkeypatch.setattr(
            attention, name, lambda x, r, name=name, real=real: calls.append(name) or real(x, r)
        )
    monkeypatch.setattr(formats.base.rot, "unrotate", lambda *_: calls.append("cache"))
    k = gaussian(1, 1, 64, 128)
    attend(gaussian(1, 1, 5, 128), cache_of(k, k, ("turbo4", "turbo3")), 4)
    assert calls == ["rotate_product", "unrotate_product"]


def test_the_error_of_a_format_reaches_the_output():
    """More stored bits, less error in the output: the formats are really what is read."""
    k, v = gaussian(1, 2, 64, 128, seed=22), gaussian(1, 2, 64, 128, seed=23)
    q = gaussian(1, 4, 64, 128, seed=24)
    exact = attend(q, cache_of(k, v, ("f32", "f32")))
    ladder = ["turbo2", "turbo3", "turbo4", "turbo4_lm", "q8_0", "f16"]
    errors = [float((attend(q, cache_of(k, v, (f, f))) - exact).norm()) for f in ladder]
    assert errors == sorted(errors, reverse=True)
    assert np.all(np.array(errors) > 0)
