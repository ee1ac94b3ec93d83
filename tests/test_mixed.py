"""Exact first and last tokens beside packed ones: against one plain softmax over what is seen."""

import pytest
import torch
from test_retention import SPLITS, random, steps

from tqlab import formats
from tqlab.attention import attend
from tqlab.kvcache import KVCache, LayerShape, Policy

TOKENS, HEADS, DIM, SINKS, WINDOW, FAR = 30, 2, 64, 3, 5, 12
SHAPES = [
    LayerShape(HEADS, DIM),
    LayerShape(HEADS, DIM, window=FAR),
    LayerShape(HEADS, DIM, donor=0),
    LayerShape(HEADS, DIM, window=FAR, donor=1),
]
POLICY = Policy(SINKS, WINDOW)


@pytest.fixture(scope="module")
def qkv():
    return (
        random(2, 1, 3 * HEADS, TOKENS, DIM),
        random(0, 1, HEADS, TOKENS, DIM),
        random(1, 1, HEADS, TOKENS, DIM),
    )


def attended(q, k, v, split, pair, policy, layer, pads=None, tile=None):
    """Outputs of all queries, fed in chunks; and the cache."""
    cache, parts = KVCache(SHAPES, *pair, TOKENS, len(q), pads=pads, policy=policy), []
    for offset, n in steps(cache, k, v, split):
        parts.append(attend(q[:, :, offset : offset + n], cache.fetch(layer), 0.3, tile))
    return torch.cat(parts, 2), cache


def packed(name: str, x):
    """x through f16, then through a format, heads padded."""
    fmt = formats.get(name)
    padded = torch.zeros(*x.shape[:-1], 128)
    padded[..., :DIM] = x.half().float()
    return fmt.dequantize(fmt.quantize(padded))[..., :DIM]


def one_softmax(q, k, v, name, sinks, window, far):
    """Every query by itself: its own exact and packed keys side by side."""
    groups, out = q.shape[1] // k.shape[1], torch.empty_like(q)
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    sides = [(x.half().float(), packed(name, x)) for x in (k, v)]
    for p in range(q.shape[2]):
        position = torch.arange(max(0, p - far + 1), p + 1)
        exact = ((position < sinks) | (position > p - window))[:, None]
        keys, values = (torch.where(exact, a[:, :, position], b[:, :, position]) for a, b in sides)
        weights = (0.3 * q[:, :, p : p + 1] @ keys.mT).softmax(-1)
        out[:, :, p : p + 1] = weights @ values
    return out


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_every_query_sees_its_own_last_tokens_exactly(qkv, split, layer):
    """A whole prompt, chunks of it, and one token at a time are the same softmax."""
    far = FAR if layer % 2 else TOKENS
    out, _ = attended(*qkv, split, ("turbo3", "turbo3"), POLICY, layer)
    expected = one_softmax(*qkv, "turbo3", SINKS, WINDOW, far)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("wrong", [(SINKS - 1, WINDOW), (SINKS, WINDOW - 1), (SINKS, WINDOW + 1)])
def test_one_exact_token_more_or_less_is_seen(qkv, layer, wrong):
    far = FAR if layer else TOKENS
    out, _ = attended(*qkv, [7, 1, 22], ("turbo3", "turbo3"), POLICY, layer)
    slipped = one_softmax(*qkv, "turbo3", *wrong, far)
    assert (out - slipped).abs().max() > 0.005


@pytest.mark.parametrize(
    "policy", [POLICY, Policy(4, 0), Policy(0, 6), Policy(0, 1), Policy(9, 40)]
)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("tile", [None, 3])
def test_f16_in_parts_is_the_f16_cache(qkv, policy, layer, tile):
    for split in SPLITS.values():
        whole, _ = attended(*qkv, split, ("f16", "f16"), None, layer, tile=tile)
        parts, _ = attended(*qkv, split, ("f16", "f16"), policy, layer, tile=tile)
        # a few float32 roundings of values up to 4: the sums run in another order
        torch.testing.assert_close(parts, whole, atol=5e-6, rtol=0)


def test_no_exact_tokens_is_the_plain_cache(qkv):
    whole, plain = attended(*qkv, [11, 1, 18], ("turbo3", "q8_0"), None, 0)
    parts, mixed = attended(*qkv, [11, 1, 18], ("turbo3", "q8_0"), Policy(), 0)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    assert mixed.nbytes == plain.nbytes


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_any_split_holds_the_same_bytes(qkv, split):
    """What left the window is in f16 first, and packed once: no byte depends on the steps."""
    _, whole = attended(*qkv, [TOKENS], ("turbo3", "turbo4_lm"), POLICY, 0)
    _, parts = attended(*qkv, split, ("turbo3", "turbo4_lm"), POLICY, 0)
    for a, b in zip(whole.layers[:2], parts.layers[:2], strict=True):
        for side in "kv":
            for x, y in zip(a.storage(side), b.storage(side), strict=True):
                assert torch.equal(x.data, y.data)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("split", [[30], [1] * 30, [3, 12, 1, 14]], ids=str)
def test_the_first_tokens_of_padded_rows_are_their_own(qkv, layer, split):
    pads = [0, 11, 2]
    q, k, v = (x.repeat(3, 1, 1, 1) for x in qkv)
    out, _ = attended(q, k, v, split, ("turbo3", "turbo3"), POLICY, layer, pads)
    assert bool(out.isfinite().all())
    for row, pad in enumerate(pads):
        own = [x[:1, :, pad:] for x in qkv]
        expected = one_softmax(*own, "turbo3", SINKS, WINDOW, FAR if layer else TOKENS)
        torch.testing.assert_close(out[row : row + 1, :, pad:], expected, atol=2e-5, rtol=0)


def test_bytes_are_those_of_the_parts():
    """f16 for the first and last tokens, the format for the rest, one of them packed ahead."""
    cache = KVCache(SHAPES[:1], "turbo3", "f16", 100, policy=POLICY)
    packed_tokens = 100 - SINKS - WINDOW + 1
    held = HEADS * (2 * DIM * (SINKS + WINDOW) + 50 * packed_tokens)
    assert cache.k_nbytes == held
    assert cache.v_nbytes == HEADS * 2 * DIM * 101
    assert cache.stored_bits()[0] == pytest.approx(8 * held / (100 * HEADS * DIM))
    tensors = [p.data for side in "kv" for p in cache.layers[0].storage(side)]
    assert cache.nbytes == sum(x.untyped_storage().nbytes() for x in tensors)


def test_a_layer_that_sees_no_further_than_the_window_packs_nothing():
    cache = KVCache([LayerShape(HEADS, DIM, window=4)], "turbo3", "turbo3", 100, policy=POLICY)
    assert cache.nbytes == 2 * HEADS * 2 * DIM * (SINKS + WINDOW)


def test_an_interrupted_step_can_be_repeated(qkv):
    q, k, v = qkv
    cache = KVCache(SHAPES, "turbo3", "turbo3", TOKENS, policy=POLICY)
    list(steps(cache, k, v, [12]))
    for layer in (0, 1):
        cache.update_and_fetch(layer, k[:, :, :7] + 1, v[:, :, :7] + 1)  # and no advance
        view = cache.update_and_fetch(layer, k[:, :, 12:13], v[:, :, 12:13])
        expected = one_softmax(*qkv, "turbo3", SINKS, WINDOW, FAR if layer else TOKENS)
        out = attend(q[:, :, 12:13], view, 0.3)
        torch.testing.assert_close(out, expected[:, :, 12:13], atol=2e-5, rtol=0)


def test_a_reset_cache_starts_again(qkv):
    first, cache = attended(*qkv, [9, 9, 12], ("turbo3", "turbo3"), POLICY, 1)
    cache.reset()
    again = [
        attend(qkv[0][:, :, offset : offset + n], cache.fetch(1), 0.3)
        for offset, n in steps(cache, *qkv[1:], [4, 26])
    ]
    torch.testing.assert_close(torch.cat(again, 2), first, atol=2e-5, rtol=0)
