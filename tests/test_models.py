"""The llama architecture against transformers, on tiny random models built here."""

import numpy as np
import pytest
import tinyllama
import torch

import tqlab
from tqlab.gguf_file import GGUFError
from tqlab.models.matrices import Dense


def random_ids(batch, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(tinyllama.VOCAB, (batch, steps), generator=generator)


def reference(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def load(tmp_path):
    def build(file, device="cpu", **options):
        return tqlab.load_model(file.write(tmp_path / "tiny.gguf"), device=device, **options)

    return build


@pytest.fixture(scope="module")
def oracle():
    return tinyllama.oracle()


@pytest.fixture(scope="module")
def tiny(oracle, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return tqlab.load_model(tinyllama.gguf_file(oracle).write(path), device="cpu")


# ---- transformers as the oracle


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(6, 2, 20), (4, 4, 24), (3, 1, 96), (8, 2, 2), (6, 1, 50), (2, 2, 128)],
)
@pytest.mark.parametrize("tied", [True, False])
def test_equals_transformers(load, heads, kv_heads, head_dim, tied):
    """Grouped heads, head sizes that divide nothing, tied and free heads."""
    oracle = tinyllama.oracle(heads, kv_heads, head_dim, tied=tied, seed=head_dim)
    model = load(tinyllama.gguf_file(oracle))
    ids = random_ids(2, 40)
    expected = reference(oracle, ids)
    # Logits reach several units; float32 rounding through two layers.
    torch.testing.assert_close(
        model(ids), expected, rtol=0, atol=2e-5 * float(expected.abs().max())
    )
    assert expected.abs().max() > 1


def test_the_oracle_sees_the_row_order(load, oracle, monkeypatch):
    """Planted bug: q and k in transformers' order give other logits altogether."""
    ids = random_ids(1, 40)
    monkeypatch.setattr(tinyllama, "interleaved", lambda rows, n_heads: rows)
    wrong = load(tinyllama.gguf_file(oracle))(ids)
    assert (wrong - reference(oracle, ids)).abs().max() > 0.1


@pytest.mark.parametrize(
    "bug",
    [
        {"rope.freq_base": ("f32", 10000.0)},
        {"attention.layer_norm_rms_epsilon": ("f32", 1e-1)},
        {"rope.dimension_count": ("u32", 10)},
    ],
    ids=lambda bug: next(iter(bug)),
)
def test_every_hyper_parameter_is_read(load, oracle, bug):
    """A wrong value in the file moves the logits, so the right one was used before."""
    ids = random_ids(1, 40)
    wrong = load(tinyllama.gguf_file(oracle, **bug))(ids)
    assert (wrong - reference(oracle, ids)).abs().max() > 0.05


@pytest.mark.parametrize("optional", ["key_length", "value_length", "head_count_kv"])
def test_defaults(load, optional):
    """Absent: head size = width / heads, as many KV heads as heads, rope over the whole head."""
    oracle = tinyllama.oracle(heads=4, kv_heads=4, head_dim=24)
    absent = {f"attention.{optional}": None, "rope.dimension_count": None}
    model = load(tinyllama.gguf_file(oracle, **absent))
    ids = random_ids(1, 20)
    torch.testing.assert_close(model(ids), reference(oracle, ids), rtol=0, atol=1e-4)


def test_rope_factors_divide_the_frequencies(load, oracle):
    """rope_freqs.weight: all ones changes nothing, all huge turns rope off."""
    ids, n = random_ids(1, 30), oracle.config.head_dim // 2
    file = tinyllama.gguf_file(oracle)
    plain = load(file)(ids)
    file.tensors.append(tinyllama.tensor("rope_freqs.weight", np.ones(n)))
    assert torch.equal(load(file)(ids), plain)
    file.tensors[-1] = tinyllama.tensor("rope_freqs.weight", np.full(n, 1e30))
    off = load(file)(ids)
    assert (off - plain).abs().max() > 0.1
    torch.testing.assert_close(off[:, 0], plain[:, 0])  # position 0 is not rotated anyway


# ---- caches and splits


@pytest.mark.parametrize("split", [[1] * 40, [39, 1], [1, 39], [13, 20, 7]])
def test_any_split_of_a_prompt(tiny, oracle, split):
    """With an f32 cache: 1e-3 by contract, and measured here a hundred times better."""
    ids = random_ids(2, 40)
    cache = tiny.new_cache("f32", "f32", 40, batch=2)
    logits = torch.cat([tiny(part, cache) for part in ids.split(split, 1)], 1)
    assert cache.offset == 40
    torch.testing.assert_close(logits, reference(oracle, ids), rtol=0, atol=1e-4)


def test_last_only(tiny):
    ids = random_ids(2, 9)
    # Another shape of matrix product: equal to float32 rounding only.
    torch.testing.assert_close(tiny(ids, last_only=True), tiny(ids)[:, -1:], rtol=0, atol=1e-4)


def test_long_prompts_go_in_chunks(tiny, oracle, monkeypatch):
    monkeypatch.setattr(tqlab.models.base, "PREFILL_CHUNK", 16)
    ids = random_ids(1, 50)
    torch.testing.assert_close(tiny(ids), reference(oracle, ids), rtol=0, atol=1e-4)


def test_formats_are_really_in_the_way(tiny, oracle):
    """A packed cache moves the logits, the more the fewer its bits."""
    ids = random_ids(1, 60)
    exact = reference(oracle, ids)

    def error(*pair):
        return float((tiny(ids, tiny.new_cache(*pair, 60)) - exact).norm() / exact.norm())

    pairs = ["f16", "turbo4_lm", "turbo4", "turbo3", "turbo2"]
    both = [error(fmt, fmt) for fmt in pairs]
    assert both == sorted(both)
    assert both[0] < 1e-3 < both[1]
    for fmt in pairs[1:]:  # K and V each on its own, too
        assert error(fmt, "f32") > 1e-3
        assert error("f32", fmt) > 1e-3


# ---- packed weights


@pytest.mark.parametrize("fmt", ["f16", "q8_0", "q4_0", "tq3_1s", "tq4_1s"])
def test_packed_equals_dense(load, oracle, fmt, device):
    """Same numbers to 1e-4, from the bytes the file has."""
    oracle_64 = tinyllama.oracle(heads=4, kv_heads=2, head_dim=32)
    file = tinyllama.gguf_file(oracle_64, fmt)
    dense, packed = (load(file, device=str(device), weights=w) for w in ("dense", "packed"))
    assert (dense.weights_mode, packed.weights_mode) == ("dense", "packed")
    ids = random_ids(2, 20)
    # Relative to logits of several units: float32 sums in another order.
    torch.testing.assert_close(packed(ids), dense(ids), rtol=0, atol=1e-4)
    matrices = sum(len(t.data) for t in file.tensors if len(t.ne) == 2)
    vectors = sum(len(t.data) for t in file.tensors if len(t.ne) == 1)
    assert packed.nbytes == matrices + vectors
    assert dense.nbytes == vectors + 4 * sum(np.prod(t.ne) for t in file.tensors if len(t.ne) == 2)


# ---- what it refuses


@pytest.mark.parametrize("worst", [-1, tinyllama.VOCAB, 10**9])
def test_ids_outside_the_vocabulary(tiny, worst):
    ids = torch.tensor([[0, worst, 3]])
    with pytest.raises(ValueError, match=rf"token id {worst} is outside the vocabulary of 270$"):
        tiny(ids)


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(3, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 3)],
)
def test_ids_of_another_shape(tiny, ids):
    with pytest.raises(ValueError, match="ids must be int64"):
        tiny(ids)


def test_context_beyond_the_model(tiny):
    for refused in (
        lambda: tiny.new_cache(max_tokens=129),
        lambda: tiny(random_ids(1, 129)),
    ):
        with pytest.raises(ValueError, match=r"129 tokens exceed the context of tiny: 128$"):
            refused()
    assert tiny.new_cache("f16", "f16", 128).max_tokens == 128


def test_a_full_cache_is_left_alone(tiny):
    cache = tiny.new_cache("f32", "f32", 10)
    tiny(random_ids(1, 8), cache)
    held = [layer.k.data.clone() for layer in cache.layers]
    with pytest.raises(ValueError, match="3 more tokens do not fit"):
        tiny(random_ids(1, 3), cache)
    assert cache.offset == 8
    assert all(torch.equal(a, b.k.data) for a, b in zip(held, cache.layers, strict=True))


def test_a_cache_of_another_batch(tiny):
    for held, given in ((1, 2), (2, 1)):
        cache = tiny.new_cache("f32", "f32", 10, batch=held)
        with pytest.raises(ValueError, match=f"{given} rows do not match"):
            tiny(random_ids(given, 3), cache)
        assert cache.offset == 0


@pytest.mark.parametrize("weights", ["dense", "packed"])
@pytest.mark.parametrize("missing", ["token_embd", "output_norm", "blk.1.attn_k", "blk.0.ffn_norm"])
def test_missing_tensors(load, oracle, missing, weights):
    file = tinyllama.gguf_file(oracle)
    file.tensors = [t for t in file.tensors if t.name != f"{missing}.weight"]
    with pytest.raises(GGUFError, match=rf"tensor '{missing}.weight' is missing$"):
        load(file, weights=weights)


@pytest.mark.parametrize("weights", ["dense", "packed"])
@pytest.mark.parametrize("name", ["blk.0.attn_q", "blk.1.attn_norm", "blk.0.ffn_down", "output"])
def test_wrong_shapes(load, oracle, name, weights):
    file = tinyllama.gguf_file(oracle)
    i = next(i for i, t in enumerate(file.tensors) if t.name == f"{name}.weight")
    shape = file.tensors[i].ne[::-1]
    file.tensors[i] = tinyllama.tensor(f"{name}.weight", np.zeros((*shape[:-1], shape[-1] + 32)))
    with pytest.raises(ValueError, match=rf"{name}.weight.*expected") as caught:
        load(file, weights=weights)
    assert "\n" not in str(caught.value)


def test_swapped_shapes(load, oracle):
    """q with k's rows and k with q's: the sum is right, each alone is wrong."""
    file = tinyllama.gguf_file(oracle)
    names = [t.name for t in file.tensors]
    q, k = (file.tensors[names.index(f"blk.0.attn_{x}.weight")] for x in "qk")
    q.name, k.name = k.name, q.name
    with pytest.raises(ValueError, match=r"attn_q.weight.*expected"):
        load(file)


@pytest.mark.parametrize("weights", ["dense", "packed"])
@pytest.mark.parametrize("name", ["token_embd", "blk.1.attn_k", "blk.0.attn_norm"])
def test_nan_weights(load, oracle, name, weights):
    file = tinyllama.gguf_file(oracle)
    tensor = next(t for t in file.tensors if t.name == f"{name}.weight")
    tensor.data = np.float32(np.nan).tobytes() + tensor.data[4:]
    with pytest.raises(GGUFError, match=rf"tensor '{name}.weight' holds NaN or infinite values"):
        load(file, weights=weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, r"'llama.block_count' is missing"),
        ({"block_count": ("u32", 2**31 - 1)}, r"llama.block_count is 2147483647"),
        ({"block_count": ("f32", 1.5)}, r"llama.block_count is 1.5"),
        ({"attention.head_count": ("u32", 0)}, r"llama.attention.head_count is 0"),
        ({"attention.head_count_kv": ("u32", 4)}, r"6 query heads do not share 4 KV heads"),
        ({"attention.key_length": ("u32", 21), "rope.dimension_count": None}, r"is None|21|even"),
        ({"attention.layer_norm_rms_epsilon": ("f32", float("nan"))}, r"rms_epsilon is nan"),
        ({"rope.freq_base": ("str", "big")}, r"rope.freq_base is 'big'"),
        ({"context_length": None}, r"'llama.context_length' is missing"),
    ],
)
def test_bad_hyper_parameters(load, oracle, changes, message):
    with pytest.raises(GGUFError, match=message) as caught:
        load(tinyllama.gguf_file(oracle, **changes))
    assert "\n" not in str(caught.value)


def test_unknown_architecture_and_options(load, oracle):
    file = tinyllama.gguf_file(oracle)
    file.metadata[0] = ("general.architecture", "str", "mamba")
    with pytest.raises(GGUFError, match=r"architecture 'mamba' is not known; known: .*llama"):
        load(file)
    with pytest.raises(ValueError, match=r"unknown weights mode 'sparse'; known: auto, packed"):
        load(tinyllama.gguf_file(oracle), weights="sparse")
    with pytest.raises(ValueError, match="unknown name 'no-such-model'"):
        tqlab.load_model("no-such-model", device="cpu")


# ---- dense products


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (7, 5)])
@pytest.mark.parametrize("rows", [(), (1,), (1, 1), (2, 1), (3,)])
def test_dense_products(threads, shape, rows):
    """Blocks of rows on several threads, or one product: the same, whatever lies contiguous."""
    source = torch.Generator().manual_seed(threads)
    sizes = shape, (*rows, shape[1])
    w, x = (torch.randn(*s, dtype=torch.float64, generator=source) for s in sizes)
    for weight in (w.float(), w.float().mT.contiguous().mT):
        found = Dense(weight)(x.float())
        torch.testing.assert_close(found, (x @ w.T).float(), rtol=1e-5, atol=1e-5)
        across = torch.stack([x.float()] * 2, -1)[..., 0]  # values that are not neighbours
        assert torch.equal(Dense(weight)(across), found)
