"""Qwen 2: tiny models against transformers."""

import pytest
import tiny
import torch

from tqlab.gguf_file import GGUFFile
from tqlab.models.qwen2 import Qwen2
from tqlab.models.weights import Weights

TOLERANCE = 1e-3


def build(path, mode="dense"):
    return Qwen2(Weights(GGUFFile(path), torch.device("cpu"), mode))


@pytest.mark.parametrize("mode", ["dense", "packed"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits(tmp_path, tied, mode):
    file, oracle = tiny.qwen2(tie_word_embeddings=tied)
    ids = tiny.some_ids(2, 30)
    logits = tiny.reference(oracle, ids)
    model = build(file.write(tmp_path / "m.gguf"), mode)
    assert float((model(ids) - logits).abs().max()) < TOLERANCE
    for split in (1, 9):
        got = tiny.split_logits(model, ids, split)
        assert float((got - logits).abs().max()) < TOLERANCE


@pytest.mark.parametrize("part", ["attn_q", "attn_k", "attn_v"])
def test_every_bias_counts(tmp_path, part):
    """Keys' biases move all scores of a query alike, but for rope: their effect is the smallest."""
    file, oracle = tiny.qwen2()
    file.tensors = [t for t in file.tensors if t.name != f"blk.1.{part}.bias"]
    ids = tiny.some_ids(1, 30)
    got = build(file.write(tmp_path / "m.gguf"))(ids)
    assert float((got - tiny.reference(oracle, ids)).abs().max()) > 5 * TOLERANCE


def test_a_bias_of_another_size_is_refused(tmp_path):
    file, _ = tiny.qwen2()
    file.tensors = [t for t in file.tensors if t.name != "blk.1.attn_k.bias"]
    file.tensors.append(tiny.packed("blk.1.attn_k.bias", torch.zeros(16)))
    with pytest.raises(ValueError, match=r"blk\.1\.attn_k\.bias"):
        build(file.write(tmp_path / "m.gguf"))


def test_rope_scaling_that_is_not_read_is_refused(tmp_path):
    file, _ = tiny.qwen2()
    file.metadata.append(("qwen2.rope.scaling.type", "str", "yarn"))
    with pytest.raises(ValueError, match="yarn"):
        build(file.write(tmp_path / "m.gguf"))
