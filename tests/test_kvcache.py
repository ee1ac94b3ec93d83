"""The packed cache: bytes really held, splits, padding, and what it refuses (full retention)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tqlab import attention, formats, kvcache
from tqlab.kvcache import KVCache, LayerShape, padded_head_dim


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bits(fmt, head_dim):
    cache = KVCache([LayerShape(2, head_dim)] * 3, fmt, "f32", 7, 2)
    return cache.stored_bits()[0]


# ---- bytes


@pytest.mark.parametrize("name", formats.names())
def test_storage_is_what_the_format_says(name, device):
    """nbytes is measured from the tensors, and there is no other storage."""
    cache = KVCache([LayerShape(3, 256)] * 2, name, "f16", max_tokens=50, batch=2, device=device)
    values = 2 * 2 * 3 * 50 * 256
    assert cache.k_nbytes == values * formats.get(name).bits_per_value / 8
    assert cache.v_nbytes == values * 2
    assert cache.nbytes == cache.k_nbytes + cache.v_nbytes
    held = [t for layer in cache.layers for t in (layer.k.data, layer.v.data)]
    assert all(t.dtype == torch.uint8 and t.device.type == device.type for t in held)
    assert cache.nbytes == sum(t.untyped_storage().nbytes() for t in held)
    assert cache.stored_bits() == (formats.get(name).bits_per_value, 16)


@pytest.mark.parametrize(
    ("fmt", "head_dim", "stored"),
    [
        ("turbo4", 64, 8.5),  # 68 bytes for 64 values: padding doubles the bits
        ("turbo4", 128, 4.25),
        ("turbo4", 80, 6.8),
        ("turbo3", 64, 6.25),
        ("turbo3", 96, 8 * 50 / 96),
        ("turbo2", 64, 4.25),
        ("turbo3", 192, 8 * 100 / 192),
        ("turbo4_lm", 64, 8.25),
        ("turbo3_h64", 64, 3.25),  # one block, no padding
        ("turbo4_lm_h64", 64, 4.25),
        ("turbo3_h64", 256, 3.25),
        ("turbo3_h64", 96, 8 * 52 / 96),
        ("q8_0", 64, 8.5),
        ("q4_0", 96, 4.5),
        ("f16", 80, 16),
    ],
)
def test_stored_bits_count_the_padding(fmt, head_dim, stored):
    assert bits(fmt, head_dim) == pytest.approx(stored, abs=1e-12)


@pytest.mark.parametrize(
    ("head_dim", "padded"), [(64, 128), (96, 128), (128, 128), (192, 256), (512, 512), (576, 640)]
)
def test_padded_sizes_are_the_forks(head_dim, padded):
    assert padded_head_dim(formats.get("turbo3"), head_dim) == padded


@pytest.mark.parametrize("fmt", ["turbo2", "turbo3", "turbo4"])
@pytest.mark.parametrize("head_dim", [64, 80, 96])
def test_padding_is_zeros_behind_each_head(fmt, head_dim, device):
    """Each head alone, never two heads in one block: the bytes of the head followed by zeros."""
    k = gaussian(2, 3, 5, head_dim, seed=1)
    cache = KVCache([LayerShape(3, head_dim)], fmt, "f32", 8, 2, device)
    view = cache.update_and_fetch(0, k.to(device), k.to(device))
    padded = torch.zeros(2, 3, 5, 128)
    padded[..., :head_dim] = k
    assert torch.equal(view.k.data[:, :, :5].cpu(), formats.get(fmt).quantize(padded))
    assert (view.k.data[:, :, 5:] == 0).all()  # untouched slots


def test_k_and_v_are_stored_separately():
    k, v = gaussian(1, 1, 4, 128, seed=2), gaussian(1, 1, 4, 128, seed=3)
    view = KVCache([LayerShape(1, 128)], "q8_0", "turbo3", 4).update_and_fetch(0, k, v)
    assert torch.equal(view.k.data, formats.get("q8_0").quantize(k))
    assert torch.equal(view.v.data, formats.get("turbo3").quantize(v))


# ---- splits


@given(data=st.data())
def test_any_split_holds_the_same_bytes(data):
    """A token's bytes do not depend on the step it came in with."""
    cuts = sorted(data.draw(st.sets(st.integers(1, 29), max_size=6), "cuts"))
    pair = data.draw(st.sampled_from([("turbo3", "q8_0"), ("f32", "turbo4"), ("q4_0", "turbo2")]))
    k, v = gaussian(1, 2, 30, 64, seed=4), gaussian(1, 2, 30, 64, seed=5)
    whole = KVCache([LayerShape(2, 64)], *pair, max_tokens=30)
    whole.update_and_fetch(0, k, v)
    parts = KVCache([LayerShape(2, 64)], *pair, max_tokens=30)
    outputs, q = [], 3 * gaussian(1, 4, 30, 64, seed=6)
    for a, b in zip([0, *cuts], [*cuts, 30], strict=True):
        view = parts.update_and_fetch(0, k[:, :, a:b], v[:, :, a:b])
        assert view.n == b
        outputs.append(attention.attend(q[:, :, a:b], view, 0.125))
        parts.advance(b - a)
    assert torch.equal(parts.layers[0].k.data, whole.layers[0].k.data)
    assert torch.equal(parts.layers[0].v.data, whole.layers[0].v.data)
    expected = attention.attend(q, whole.layers[0].view(), 0.125)
    torch.testing.assert_close(torch.cat(outputs, 2), expected, rtol=0, atol=1e-5)


def test_tiles_cover_every_token_once():
    k = gaussian(1, 1, 37, 128, seed=7)
    view = KVCache([LayerShape(1, 128)], "f32", "f32", 100).update_and_fetch(0, k, k)
    for size in (1, 5, 37, 64):
        tiles = list(view.tiles(size))
        assert torch.equal(torch.cat([t[0] for t in tiles], 2), k)
        assert [t[2] for t in tiles] == list(range(0, 37, size))
        assert all(t[0].shape[2] <= size for t in tiles)


def test_reading_decodes_one_tile_at_a_time(monkeypatch):
    """Peak extra memory is one tile: nothing longer is ever unpacked."""
    seen, real = [], kvcache.PackedHeads.read
    monkeypatch.setattr(
        kvcache.PackedHeads, "read", lambda s, a, b: seen.append(b - a) or real(s, a, b)
    )
    k = gaussian(1, 1, 500, 128, seed=8)
    view = KVCache([LayerShape(1, 128)], "turbo4", "turbo4", 500).update_and_fetch(0, k, k)
    attention.attend(gaussian(1, 1, 1, 128), view, 0.1, tile=64)
    assert max(seen) == 64
    assert sum(seen) == 2 * 500


# ---- what it refuses


@pytest.mark.parametrize("fmt", ["q8_0", "q4_0"])
@pytest.mark.parametrize("head_dim", [80, 20, 1])
def test_blocks_that_do_not_pad_refuse_odd_heads(fmt, head_dim):
    with pytest.raises(ValueError, match=rf"{fmt} packs 32 values.*heads of {head_dim}") as caught:
        KVCache([LayerShape(1, head_dim)], "f16", fmt)
    assert "\n" not in str(caught.value)
    assert "turbo" in str(caught.value)  # what to do instead


@pytest.mark.parametrize("head_dim", [0, -64])
def test_absurd_heads_are_refused(head_dim):
    with pytest.raises(ValueError, match=rf"positive, not {head_dim}$"):
        KVCache([LayerShape(1, head_dim)], "f16", "f16")


@pytest.mark.parametrize("pair", [("turbo9", "f16"), ("f16", "q9_9")])
def test_unknown_formats_are_refused(pair):
    with pytest.raises(ValueError, match=r"unknown format '(turbo9|q9_9)'; known: f32"):
        KVCache([LayerShape(1, 64)], *pair)


@pytest.mark.parametrize("max_tokens", [0, -5])
def test_an_empty_cache_is_refused(max_tokens):
    with pytest.raises(ValueError, match=rf"positive, not {max_tokens}$"):
        KVCache([LayerShape(1, 64)], max_tokens=max_tokens)


def test_overflow_is_refused_before_writing():
    cache = KVCache([LayerShape(1, 128)], "turbo3", "q8_0", max_tokens=10)
    k = gaussian(1, 1, 8, 128, seed=9)
    cache.update_and_fetch(0, k, k)
    cache.advance(8)
    before = cache.layers[0].k.data.clone(), cache.layers[0].v.data.clone()
    for refused in (lambda: cache.reserve(3), lambda: cache.update_and_fetch(0, k, k)):
        with pytest.raises(ValueError, match=r"more tokens do not fit: the cache has 8 of 10$"):
            refused()
    assert torch.equal(cache.layers[0].k.data, before[0])
    assert torch.equal(cache.layers[0].v.data, before[1])
    assert cache.offset == 8
    cache.reserve(2)  # and what fits still fits


@pytest.mark.parametrize("batches", [(1, 2), (2, 1), (3, 2)])
def test_another_batch_is_refused(batches):
    """A batch of 1 would broadcast over the rows of a larger cache, silently."""
    held, given_ = batches
    cache = KVCache([LayerShape(2, 64)], "f32", "f32", 10, batch=held)
    k = gaussian(given_, 2, 3, 64)
    with pytest.raises(ValueError, match=rf"{given_} rows.*cache.*{held}$"):
        cache.update_and_fetch(0, k, k)
    assert (cache.layers[0].k.data == 0).all()


def test_reset_starts_over():
    cache = KVCache([LayerShape(1, 128)], "turbo4", "turbo4", max_tokens=6)
    k, q = gaussian(1, 1, 6, 128, seed=10), gaussian(1, 1, 6, 128, seed=11)
    first = attention.attend(q, cache.update_and_fetch(0, k, k), 0.1)
    cache.advance(6)
    with pytest.raises(ValueError, match="do not fit"):
        cache.reserve(1)
    held = cache.nbytes
    cache.reset()
    assert (cache.offset, cache.nbytes) == (0, held)
    assert torch.equal(attention.attend(q, cache.update_and_fetch(0, k, k), 0.1), first)
