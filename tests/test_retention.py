"""Retention: rings, shared layers and padded rows compose with every storage format."""

import pytest
import torch

from tqlab import formats
from tqlab.attention import attend
from tqlab.kvcache import KVCache, LayerShape

WINDOW, TOKENS, HEADS, DIM = 8, 30, 2, 64
SHAPES = [
    LayerShape(HEADS, DIM),
    LayerShape(HEADS, DIM, window=WINDOW),
    LayerShape(HEADS, DIM, donor=0),
    LayerShape(HEADS, DIM, window=WINDOW, donor=1),
]
SPLITS = {
    "whole": [30],
    "single": [1] * 30,
    "below": [5, 7, 6, 7, 5],
    "window": [8, 8, 8, 6],
    "above": [13, 1, 1, 9, 6],
    "ring+1": [9, 8, 1, 12],
}
KV_FORMATS = [name for name in formats.names() if formats.get(name).rotation != "wht32"]
PAIRS = [(name, name) for name in KV_FORMATS] + [("q8_0", "turbo4"), ("turbo3", "f16")]


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tokens():
    return random(0, 1, HEADS, TOKENS, DIM), random(1, 1, HEADS, TOKENS, DIM)


def steps(cache, k, v, split):
    """Run k and v through layers 0 and 1 in chunks, yielding (first position, length)."""
    for n in split:
        part = slice(cache.offset, cache.offset + n)
        for layer in (0, 1):
            cache.update_and_fetch(layer, k[:, :, part], v[:, :, part])
        yield cache.offset, n
        cache.advance(n)


def softmax_reference(q, k, v, window, hidden=0):
    """One plain softmax over all keys; rows 0 .. hidden of the keys are padding."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    distance = torch.arange(k.shape[2])[:, None] - torch.arange(k.shape[2])
    seen = (distance >= 0) & (distance < window)
    seen[:, :hidden] = False
    return ((q @ k.mT).masked_fill(~seen, -torch.inf)).softmax(-1) @ v


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize(("k_format", "v_format"), PAIRS)
def test_a_sliding_view_is_the_full_view_trimmed(tokens, k_format, v_format, split):
    cache = KVCache(SHAPES, k_format, v_format, TOKENS)
    for offset, n in steps(cache, *tokens, split):
        full, ring = cache.fetch(0), cache.fetch(1)
        assert ring.first == max(0, offset - WINDOW + 1)
        assert ring.first + ring.n == full.n == offset + n
        for side in ("k", "v"):
            every, kept = getattr(full, side).data, getattr(ring, side).data
            assert torch.equal(kept, every[:, :, ring.first : full.n])


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("tile", [None, 3, 8])
def test_attention_over_any_chunking_is_one_masked_softmax(tokens, split, layer, tile):
    q = random(2, 1, 3 * HEADS, TOKENS, DIM) / 4
    cache, parts = KVCache(SHAPES, "f32", "f32", TOKENS), []
    for offset, n in steps(cache, *tokens, split):
        part = q[:, :, offset : offset + n]
        parts.append(attend(part, cache.fetch(layer), 0.5, tile))
        assert torch.equal(attend(part, cache.fetch(layer + 2), 0.5, tile), parts[-1])
    window = WINDOW if layer else TOKENS
    expected = softmax_reference(q * 0.5, *tokens, window)
    torch.testing.assert_close(torch.cat(parts, 2), expected, atol=2e-5, rtol=0)
    if layer:  # one key more or less would be seen
        for wrong in (window - 1, window + 1):
            slipped = softmax_reference(q * 0.5, *tokens, wrong)
            assert (torch.cat(parts, 2) - slipped).abs().max() > 0.01


@pytest.mark.parametrize("head_dim", [256, 512])
@pytest.mark.parametrize(("k_format", "v_format"), [("q8_0", "turbo4"), ("turbo3", "turbo3")])
def test_wide_heads_and_unit_scale(head_dim, k_format, v_format):
    shape = LayerShape(1, head_dim, window=WINDOW)
    k, v = random(3, 2, 1, 20, head_dim), random(4, 2, 1, 20, head_dim)
    q = random(5, 2, 8, 20, head_dim) / head_dim**0.5
    cache = KVCache([shape], k_format, v_format, 20, batch=2)
    out = attend(q, cache.update_and_fetch(0, k, v), 1.0)
    packed = [
        formats.get(name).dequantize(formats.get(name).quantize(x))
        for name, x in ((k_format, k), (v_format, v))
    ]
    torch.testing.assert_close(out, softmax_reference(q, *packed, WINDOW), atol=2e-5, rtol=0)


def test_a_ring_holds_a_window_and_a_shared_layer_nothing():
    def nbytes(shape, k="f16", v="turbo4", max_tokens=1000):
        cache = KVCache([SHAPES[0], shape], k, v, max_tokens)
        assert cache.nbytes == cache.k_nbytes + cache.v_nbytes
        return cache.nbytes - KVCache(SHAPES[:1], k, v, max_tokens).nbytes

    per_token = HEADS * (2 * DIM + 68)  # f16, and one turbo4 block of 128 values
    assert nbytes(LayerShape(HEADS, DIM)) == 1000 * per_token
    assert nbytes(LayerShape(HEADS, DIM, window=WINDOW)) == WINDOW * per_token
    assert nbytes(LayerShape(HEADS, DIM, window=4000)) == 1000 * per_token
    assert nbytes(LayerShape(HEADS, DIM, donor=0)) == 0


def test_stored_bits_weigh_layers_by_what_they_hold():
    shapes = [LayerShape(2, 64), LayerShape(3, 128, window=8), LayerShape(2, 64, donor=0)]
    bits = KVCache(shapes, "q8_0", "turbo4", 100).stored_bits()
    values = 100 * 2 * 64 + 8 * 3 * 128
    assert bits[0] == 8.5
    assert bits[1] == pytest.approx(8 * 68 * (100 * 2 + 8 * 3) / values)


def test_an_interrupted_step_leaves_the_cache_as_it_was(tokens):
    k, v = tokens
    cache = KVCache(SHAPES, "q8_0", "turbo4", TOKENS)
    list(steps(cache, k, v, [12]))
    before = cache.layers[1].k.data.clone()
    cache.update_and_fetch(1, k[:, :, :7] + 1, v[:, :, :7] + 1)  # and no advance
    assert torch.equal(cache.layers[1].k.data, before)
    again = cache.update_and_fetch(1, k[:, :, 12:13], v[:, :, 12:13])
    whole = KVCache(SHAPES, "q8_0", "turbo4", TOKENS).update_and_fetch(0, k, v)
    assert torch.equal(again.k.data, whole.k.data[:, :, 5:13])


def test_a_reset_cache_starts_again(tokens):
    k, v = tokens
    cache = KVCache(SHAPES, "f32", "f32", TOKENS)
    list(steps(cache, k, v, [9, 9]))
    cache.reset()
    view = cache.update_and_fetch(1, k[:, :, :3], v[:, :, :3])
    assert (view.first, view.n) == (0, 3)
    assert torch.equal(view.k.read(0, 3), k[:, :, :3])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("split", [[30], [1] * 30, [3, 12, 1, 14]], ids=str)
def test_padded_rows_see_none_of_their_padding(tokens, layer, split):
    k, v = (x.repeat(3, 1, 1, 1) for x in tokens)
    q, pads = random(2, 3, HEADS, TOKENS, DIM) / 4, [0, 11, 4]
    cache, parts = KVCache(SHAPES, "f32", "f32", TOKENS, batch=3, pads=pads), []
    for offset, n in steps(cache, k, v, split):
        parts.append(attend(q[:, :, offset : offset + n], cache.fetch(layer), 1.0))
    out = torch.cat(parts, 2)
    assert bool(out.isfinite().all())
    for row, hidden in enumerate(pads):
        one = slice(row, row + 1)
        window = WINDOW if layer else TOKENS
        expected = softmax_reference(q[one], k[one], v[one], window, hidden)
        torch.testing.assert_close(out[one, :, hidden:], expected[:, :, hidden:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("pads", [[1], [0, -1], [0, 30]])
def test_absurd_padding_is_refused(pads):
    with pytest.raises(ValueError, match="pads"):
        KVCache(SHAPES, "f32", "f32", TOKENS, batch=2, pads=pads)
