"""Gemma 3: tiny models against transformers, and the real 270M one against the fork."""

import pytest
import tiny
import torch
from tiny import FULL, SLIDING

import tqlab
from tqlab.gguf_file import GGUFFile
from tqlab.models.gemma3 import Gemma3
from tqlab.models.weights import Weights

TOLERANCE = 1e-3
VARIANTS = {
    "period 6 by default": {},
    "linear scaling": {"factor": 8.0},
    "window 3": {"sliding_window": 3, "num_key_value_heads": 1},
    "seven windows": {"layer_types": [SLIDING] * 7},
}


def build(path, mode="dense"):
    return Gemma3(Weights(GGUFFile(path), torch.device("cpu"), mode))


def written(tmp_path, edit=lambda file: None, **options):
    """(path, ids, transformers' logits) of a tiny model."""
    file, model = tiny.gemma3(**options)
    edit(file)
    ids = tiny.some_ids(2, 40)
    return file.write(tmp_path / "m.gguf"), ids, tiny.reference(model, ids)


def difference(found, split=None, mode="dense"):
    path, ids, logits = found
    model = build(path, mode)
    got = model(ids) if split is None else tiny.split_logits(model, ids, split)
    return float((got - logits).abs().max())


def key(file, name, kind, value):
    file.metadata = [*tiny.without(file.metadata, name), (f"gemma3.{name}", kind, value)]


@pytest.mark.parametrize("mode", ["dense", "packed"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits(tmp_path, options, mode):
    def edit(file):
        if "layer_types" in options:
            key(file, "attention.sliding_window_pattern", "[bool]", [True] * 7)

    found = written(tmp_path, edit, **options)
    for split in (None, 1, 9):
        assert difference(found, split, mode) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("attention.sliding_window_pattern", "u32", 5),
        ("attention.sliding_window", "u32", 9),
        ("rope.freq_base_swa", "f32", 2e4),
        ("rope.scaling.factor", "f32", 2.0),
        ("final_logit_softcapping", "f32", 3.0),
    ],
)
def test_every_key_counts(tmp_path, name, kind, value):
    assert difference(written(tmp_path, lambda file: key(file, name, kind, value))) > 5 * TOLERANCE


def test_pattern_by_period_and_by_array(tmp_path):
    kinds = [SLIDING, FULL] * 3 + [SLIDING]
    for kind, value in (("u32", 2), ("[bool]", [True, False] * 3 + [True])):
        name = "attention.sliding_window_pattern"

        def edit(file, kind=kind, value=value, name=name):
            key(file, name, kind, value)

        assert difference(written(tmp_path, edit, layer_types=kinds)) < TOLERANCE


def test_without_a_window_every_layer_sees_everything(tmp_path):
    def edit(file):
        file.metadata = tiny.without(file.metadata, "sliding_window")

    assert difference(written(tmp_path, edit, layer_types=[FULL] * 7)) < TOLERANCE


def test_62_layers_scale_by_the_width_of_the_model(tmp_path):
    """The 27B size: (n_embd / n_heads)^-0.5, here 16, not the head's 32."""
    kinds = [SLIDING if i % 6 < 5 else FULL for i in range(62)]
    options = {"num_hidden_layers": 62, "layer_types": kinds}
    assert difference(written(tmp_path, query_pre_attn_scalar=16, **options)) < 5 * TOLERANCE
    assert difference(written(tmp_path, query_pre_attn_scalar=32, **options)) > 20 * TOLERANCE


def test_cache_shapes(tmp_path):
    shapes = build(written(tmp_path)[0]).layer_shapes()
    assert [s.window for s in shapes] == [8, 8, 8, 8, 8, None, 8]
    assert {(s.n_kv_heads, s.head_dim, s.donor) for s in shapes} == {(2, 32, None)}


@pytest.fixture(scope="module")
def gemma3_270m(gemma3_path):
    return tqlab.load_model(gemma3_path, device="cpu", weights="dense")


def test_real_model_against_the_fork(gemma3_270m, reference_nll):
    """The fork rounds weights and activations to f16: single losses differ by some 1e-3."""
    ids = torch.from_numpy(reference_nll["gem/tokens"][0]).long()[None]
    ids[0, 0] = gemma3_270m.tokenizer.bos_id
    cache = gemma3_270m.new_cache("f16", "f16", 512)
    with torch.inference_mode():
        x = gemma3_270m.run(ids, cache)[:, 256:511]
        logprob = gemma3_270m.head(x).log_softmax(-1)[0]
    losses = -logprob.gather(1, ids[0, 257:, None])[:, 0]
    expected = torch.from_numpy(reference_nll["gem/nll"][0])
    assert float((losses - expected).square().mean().sqrt()) < 5e-3
    assert abs(float(losses.mean() - expected.mean())) < 1e-3
    top = torch.from_numpy(reference_nll["gem/top8_ids"][0]).long()
    gap = logprob.gather(1, top) - torch.from_numpy(reference_nll["gem/top8_logprob"][0])
    assert float(gap.square().mean().sqrt()) < 8e-3
    assert float((logprob.argmax(-1) == top[:, 0]).float().mean()) > 0.99


def test_real_tokenizer_round_trips(gemma3_270m, reference_nll):
    tokenizer = gemma3_270m.tokenizer
    assert tokenizer.stop_ids == {1, 106}
    ids = reference_nll["gem/tokens"].flatten().tolist()  # consecutive chunks of one text
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
