"""Whole models through the shaders: the logits of torch, and the kernels that really ran."""

from collections import Counter

import pytest
import tiny
import torch
from planted import planted
from test_gemma4 import EXPERTS, build

from tqlab import attention, metal, ops
from tqlab.kvcache import KVCache, LayerShape
from tqlab.ops import marks

# One borderline index of a cached key or value, rounded the other way after sums in another order,
# moves the logits of a few tokens: one of five random models had one, worth 5e-3 (they reach 4).
USUAL, WORST = 1e-4, 2e-2
PADS, SPLIT = [0, 3], [12, 1, 1]
IDS = tiny.some_ids(2, sum(SPLIT))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """96 experts, windows of 8, everything that is not exact by nature in tq4_1s."""
    exact = ("norm", "scale", "gate_inp", "rope")

    def kind(name):
        return "f32" if any(part in name for part in exact) else "tq4_1s"

    file, _ = tiny.gemma4(types=kind, **EXPERTS, num_experts=96, top_k_experts=3)
    return file.write(tmp_path_factory.mktemp("shaders") / "m.gguf")


# Three layers, three steps: one of 24 tokens, then two of 2. The last layer's V is its K.
KERNELS = {
    "rows_tq4_1s_float": 3,
    "wht_float_32": 3 * (3 * 6 + 1),  # for q k v, output, gate up, down, experts' both; the head
    "tq_matmul_tq4_1s_float": 7 + 7 + 6 + 1,
    "tq_matvec_tq4_1s_float_2": 2 * (7 + 7 + 6 + 1),
    "tq_moe_matmul_tq4_1s_float": 3 * 2,
    "tq_moe_matvec_tq4_1s_float": 2 * 3 * 2,
    "quantize_q8_0_float": 3 * 3,
    "quantize_turbo4_float": 3 * 3,
    "kv_prefill": 3,
    "kv_decode_2": 2 * 2,  # two queries a KV head in sliding layers
    "kv_decode_4": 2 * 1,  # four in the last
    "kv_reduce": 2 * 3,
    "wht_inverse_float_128": 3 * 3,
}


def logits(path):
    """A padded batch: prefill beyond the window, then two tokens one by one."""
    model = build(path, "packed")
    cache = model.new_cache("q8_0", "turbo4", sum(SPLIT), 2, pads=PADS)
    return torch.cat([model(part, cache) for part in IDS.split(SPLIT, 1)], 1)


def apart(path):
    """Between torch and the shaders, each token's largest difference; padding is left out."""
    expected = logits(path)
    with metal.simulate("sim"):
        differences = (logits(path) - expected).abs().amax(-1)
    return torch.cat([row[pad:] for row, pad in zip(differences, PADS, strict=True)])


def test_packed_experts_and_attention_run_in_shaders(path, launches):
    differences = apart(path)
    assert differences.median() < USUAL
    assert differences.max() < WORST
    assert Counter(launches) == KERNELS


def test_a_batch_in_chunks_of_packed_embeddings(path):
    """Rows of ids that are not side by side in memory."""
    model = build(path, "packed")
    torch.testing.assert_close(tiny.split_logits(model, IDS, 5), model(IDS), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("tq_moe.metal", "expert = experts[i.y]", "expert = experts[i.y ^ 1]"),
        ("tq_moe.metal", "ulong(i.y / sizes[3])", "ulong(i.y / sizes[3] ^ 1)"),
        ("tq_moe.metal", "expert = tiles[3 * group.y];", "expert = tiles[3 * group.y] / 2 * 2;"),
        ("kv_decode.metal", "slot <= last_slot(s, row);", "slot < last_slot(s, row);"),
        ("kv_prefill.metal", "slot <= last_slot(s, row);", "slot < last_slot(s, row);"),
    ],
)
def test_a_wrong_kernel_shows_in_logits(path, tmp_path, file, before, after):
    with planted(tmp_path, file, before, after):
        assert apart(path).max() > 5 * WORST


# ---- attention: which path, and the same result on both


def sliding_view(k, v, steps, dim):
    """A batch of which row 1 is padded beyond the ring's first slot; the ring has gone round."""
    cache = KVCache([LayerShape(2, dim, window=8)], k, v, 32, batch=2, pads=[0, 13])
    x = torch.randn(2, 2, 2, 15 + steps, dim, generator=torch.Generator().manual_seed(steps))
    cache.update_and_fetch(0, *x[..., :15, :])
    cache.advance(15)
    return cache.update_and_fetch(0, *x[..., 15:, :])


def both(k, v, steps, dim):
    """(torch's output, what a device with shaders gives)."""
    q = torch.randn(2, 4, dim, steps, generator=torch.Generator().manual_seed(dim)).mT
    view = sliding_view(k, v, steps, dim)
    with metal.simulate("sim"):
        return attention.attend(q, view, 0.3, tile=512), attention.attend(q, view, 0.3)


@pytest.mark.parametrize(("k", "v", "dim"), [("q8_0", "turbo4", 32), ("turbo3", "f16", 64)])
@pytest.mark.parametrize("steps", [1, 9])
def test_positions_become_slots(k, v, dim, steps, launches):
    """Window, padding that ends inside the view, the first slot's position, strided queries."""
    expected, got = both(k, v, steps, dim)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert ("kv_prefill" if steps == 9 else "kv_reduce") in launches


UNFIT = [("f32", "f32", 64), ("q4_0", "turbo4", 64), ("f16", "f16", 80)]


@pytest.mark.parametrize(("k", "v", "dim"), UNFIT)
def test_what_the_kernels_cannot_take_goes_through_torch(k, v, dim, launches):
    expected, got = both(k, v, 1, dim)
    assert torch.equal(got, expected)
    assert not any(name.startswith("kv_") for name in launches)


@pytest.mark.parametrize("op", ["kv_attention", "tq_moe_linear"])
def test_a_marked_op_is_not_run_and_says_so(path, own_data, launches, op):
    """After a failed self-test: attention in torch's tiles, experts by the reference."""
    marks.update({marks.key(op, ops.OPS[op].shaders, "sim"): "planted"})
    kernels = {"kv_attention": ("kv_prefill", "kv_decode"), "tq_moe_linear": ("tq_moe",)}[op]
    with pytest.warns(RuntimeWarning, match=f"tqlab::{op} runs its torch reference on sim"):
        assert apart(path).median() < USUAL
    assert launches
    assert not any(name.startswith(kernels) for name in launches)
    marks._load.cache_clear()
