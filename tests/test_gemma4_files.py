"""Gemma 4 files: keys left out, shapes that differ from the keys, tensors that mean nothing."""

import pytest
import tiny
import torch
from test_gemma4 import E_MODEL, EXPERTS, TOLERANCE, build, difference
from tiny import FULL, SLIDING

from tqlab.gguf_file import GGUFError
from tqlab.models import load_model


def changed(tmp_path, edit=None, name="m.gguf", **options):
    """A tiny model's file after `edit`, and transformers' logits of it."""
    file, model = tiny.gemma4(**options)
    if edit:
        edit(file)
    ids = tiny.some_ids(1, 20)
    return file.write(tmp_path / name), ids, tiny.reference(model, ids)


def replace(file, key, kind, value):
    file.metadata = [*tiny.without(file.metadata, key), (f"gemma4.{key}", kind, value)]


def test_missing_keys_mean_their_defaults(tmp_path):
    def edit(file):
        keys = ("final_logit_softcapping", "freq_base_swa", "embedding_length_per_layer_input")
        keys += ("shared_kv_layers", "dimension_count", "dimension_count_swa", "value_length")
        file.metadata = tiny.without(file.metadata, *keys)

    found = changed(tmp_path, edit, final_logit_softcapping=30.0)
    assert difference(build(found[0]), *found[1:]) < TOLERANCE


def test_a_zero_softcap_means_none(tmp_path):
    path, *_ = changed(tmp_path, lambda file: replace(file, "final_logit_softcapping", "f32", 0.0))
    _, ids, logits = changed(tmp_path, name="capped.gguf")
    torch.testing.assert_close(5 * (build(path)(ids) / 5).tanh(), logits, atol=1e-3, rtol=0)


def test_a_pattern_may_be_a_period(tmp_path):
    kinds = [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL]

    def edit(file):
        replace(file, "attention.sliding_window_pattern", "u32", 3)

    found = changed(tmp_path, edit, layer_types=kinds)
    assert difference(build(found[0]), *found[1:]) < TOLERANCE


def test_dead_weights_and_other_modalities_are_ignored(tmp_path):
    def edit(file):
        for i in (3, 4, 5):
            for part in ("attn_k", "attn_v"):
                file.tensors.append(tiny.packed(f"blk.{i}.{part}.weight", torch.ones(9, 9)))
            file.tensors.append(tiny.packed(f"blk.{i}.attn_k_norm.weight", torch.ones(9)))
        file.tensors.append(tiny.packed("v.blk.0.attn_q.weight", torch.ones(3, 5)))
        file.tensors.append(tiny.packed("mm.input_projection.weight", torch.ones(3, 5)))
        file.metadata.append(("gemma4.vision.block_count", "u32", 16))

    found = changed(tmp_path, edit, **E_MODEL)
    assert difference(build(found[0]), *found[1:]) < TOLERANCE


def test_widths_are_those_of_the_tensors(tmp_path):
    """Repackers pad feed-forward widths with zeros and leave the keys."""
    found = changed(tmp_path, pad_widths, **{**EXPERTS, "num_experts": 5, "top_k_experts": 2})
    assert difference(build(found[0]), *found[1:]) < TOLERANCE


def pad_widths(file):
    for i, t in enumerate(file.tensors):
        shape = tuple(reversed(t.ne))
        value = torch.frombuffer(bytearray(t.data), dtype=torch.float32).view(shape)
        if t.name.endswith(("ffn_gate.weight", "ffn_up.weight")):
            value = torch.cat([value, torch.zeros(32, shape[1])])
        elif t.name.endswith(("ffn_down.weight", "ffn_down_exps.weight")):
            value = torch.nn.functional.pad(value, (0, 32))
        elif t.name.endswith("ffn_gate_up_exps.weight"):
            halves = [torch.nn.functional.pad(h, (0, 0, 0, 32)) for h in value.chunk(2, 1)]
            value = torch.cat(halves, 1)
        file.tensors[i] = tiny.packed(t.name, value)


@pytest.mark.parametrize("mode", ["dense", "packed"])
def test_a_scale_beside_a_projection_multiplies_it(tmp_path, mode):
    def edit(file):
        for i, t in enumerate(file.tensors):
            if t.name in ("blk.0.attn_k.weight", "blk.1.ffn_down.weight"):
                value = torch.frombuffer(bytearray(t.data), dtype=torch.float32)
                file.tensors[i] = tiny.packed(t.name, value.view(*reversed(t.ne)) / 3)
        for name in ("blk.0.attn_k.scale", "blk.1.ffn_down.scale"):
            file.tensors.append(tiny.packed(name, torch.tensor([3.0])))

    found = changed(tmp_path, edit)
    assert difference(build(found[0], mode), *found[1:]) < TOLERANCE


@pytest.mark.parametrize(
    ("key", "kind", "value", "word"),
    [
        ("attention.sliding_window_pattern", "[bool]", [True, False], "3 booleans"),
        ("attention.sliding_window_pattern", "u32", 0, "whole number from 1"),
        ("attention.sliding_window", "u32", 0, "whole number from 1"),
        ("attention.shared_kv_layers", "u32", 3, "an own layer for layer 0"),
        ("attention.shared_kv_layers", "u32", 99, "shared_kv_layers"),
        ("attention.head_count_kv", "[i32]", [2, 2], "3 positive whole numbers"),
        ("attention.head_count_kv", "[i32]", [2, 2, 3], "4 query heads do not share 3"),
        ("attention.value_length_swa", "u32", 48, "length of keys, 32"),
        ("rope.dimension_count", "u32", 66, "even number up to the head's 64"),
        ("rope.scaling.type", "str", "yarn", "none or linear"),
        ("block_count", "u32", 10**9, "tensors"),
        ("embedding_length", "u32", 32, "token_embd.weight"),
    ],
)
def test_absurd_metadata_is_refused(tmp_path, key, kind, value, word):
    path, *_ = changed(tmp_path, lambda file: replace(file, key, kind, value))
    with pytest.raises(ValueError, match=word):
        build(path)


def test_a_tokeniser_that_is_not_known_stops_text_only(tmp_path):
    def edit(file):
        file.metadata = tiny.without(file.metadata, "ggml.model")
        file.metadata.append(("tokenizer.ggml.model", "str", "none"))

    path, ids, logits = changed(tmp_path, edit)
    model = load_model(path, device="cpu")
    assert difference(model, ids, logits) < TOLERANCE
    with pytest.raises(GGUFError, match="tokenizer model 'none' is not known"):
        model.tokenizer  # noqa: B018


def test_more_experts_used_than_there_are_is_refused(tmp_path):
    options = {**EXPERTS, "num_experts": 5, "top_k_experts": 2}
    path, *_ = changed(tmp_path, lambda f: replace(f, "expert_used_count", "u32", 6), **options)
    with pytest.raises(GGUFError, match="no more than the 5 experts"):
        build(path)
