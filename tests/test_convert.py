"""Converting checkpoints: transformers' own tiny models give the same logits from the GGUF file."""

import json
import shutil

import pytest
import tiny_checkpoints as tiny
import torch
from ggufwriter import GGUFFile
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from benchmarks.file_memory import measured, write_checkpoint
from tqlab import convert
from tqlab.convert import convert_hf
from tqlab.models import load_model

IDS = torch.randint(5, 300, (2, 40), generator=torch.Generator().manual_seed(3))
FORK = {"gemma4": "dense", "gemma4-e": "e2b", "gemma4-moe": "moe96"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """name -> (folder, model), each written once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / name
            made[name] = (folder, tiny.save(name, folder))
        return made[name]

    return get


@pytest.fixture
def copied(checkpoints, tmp_path):
    """A checkpoint of its own for tests that damage it."""

    def get(name):
        return shutil.copytree(checkpoints(name)[0], tmp_path / "checkpoint")

    return get


def edit_json(path, **changes):
    content = json.loads(path.read_text("utf-8"))
    for key, value in changes.items():
        content.pop(key, None) if value is None else content.update({key: value})
    path.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize("name", tiny.MODELS)
def test_logits_are_those_of_transformers(checkpoints, tmp_path, name):
    folder, model = checkpoints(name)
    done = convert_hf(folder, tmp_path / "m.gguf", progress=False)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    found = load_model(done.path, "cpu")(IDS)
    assert (found - expected).abs().max() < 1e-3
    assert done.nbytes == done.path.stat().st_size


@pytest.mark.parametrize("name", FORK)
def test_keys_and_tensors_are_those_of_the_forks_converter(checkpoints, tmp_path, name):
    """The fork's own files of the same variants: same names, same value and tensor types."""
    fork = GGUFFile(tiny.DATA / f"gemma4-{FORK[name]}.gguf")
    ours = GGUFFile(convert_hf(checkpoints(name)[0], tmp_path / "m.gguf", progress=False).path)
    assert set(ours.metadata) == set(fork.metadata) - {"general.size_label"}
    for key in ours.metadata:
        assert ours.encoded(key)[:4] == fork.encoded(key)[:4], key
        if isinstance(fork.metadata[key], list):
            assert ours.encoded(key)[4:8] == fork.encoded(key)[4:8], key

    def kinds(file):
        parts = (n.split(".", 2) if n.startswith("blk.") else ("", "", n) for n in file.tensors)
        ranks = ((len(t.shape), t.type) for t in file.tensors.values())
        return {(part, *rank) for (*_, part), rank in zip(parts, ranks, strict=True)}

    assert kinds(ours) == kinds(fork)
    assert torch.equal(ours.dequantize("rope_freqs.weight"), fork.dequantize("rope_freqs.weight"))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "gemma4"])
def test_texts_become_the_same_ids(checkpoints, tmp_path, name):
    folder, _ = checkpoints(name)
    theirs = AutoTokenizer.from_pretrained(folder)
    done = convert_hf(folder, tmp_path / "m.gguf", progress=False)
    ours = load_model(done.path, "cpu").tokenizer
    for text in ("the cat sat on 42 mats", "ünï code\n\nthe  end", " leading", "<|im_end|>the"):
        expected = theirs.encode(text.replace("<|im_end|>", ""), add_special_tokens=False)
        found = ours.encode(text.replace("<|im_end|>", ""), add_bos=False)
        assert found == expected, text
    assert ours.adds_bos == name.startswith("gemma")
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_id == theirs.eos_token_id
    assert ours.template == tiny.TEMPLATE


@pytest.mark.parametrize(
    ("dtype", "type_name", "file_type"), [("float16", "f16", 1), ("bfloat16", "bf16", 32)]
)
def test_matrices_keep_their_type_and_vectors_become_f32(tmp_path, dtype, type_name, file_type):
    model = tiny.save("gemma4-moe", tmp_path / "c", getattr(torch, dtype))
    file = GGUFFile(convert_hf(tmp_path / "c", tmp_path / "m.gguf", progress=False).path)
    for name, tensor in file.tensors.items():
        small = len(tensor.shape) == 1 or name.endswith("ffn_gate_inp.weight")
        assert tensor.type == ("f32" if small else type_name), name
    assert file.metadata["general.file_type"] == file_type
    expected = model.state_dict()["model.layers.1.experts.gate_up_proj"]
    assert torch.equal(file.dequantize("blk.1.ffn_gate_up_exps.weight"), expected.float())


def test_row_blocks_change_nothing(checkpoints, tmp_path, monkeypatch):
    folder, _ = checkpoints("gemma4-moe")
    whole = convert_hf(folder, tmp_path / "a.gguf", progress=False).path.read_bytes()
    monkeypatch.setattr(convert, "_BLOCK_VALUES", 1000)
    assert convert_hf(folder, tmp_path / "b.gguf", progress=False).path.read_bytes() == whole


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """A sparse checkpoint of 270 MB: memory-mapped or with its largest tensor whole, it fails."""
    assert write_checkpoint(tmp_path / "c", experts=2) > 270e6
    before, after = measured("convert", tmp_path / "c", tmp_path / "m.gguf")
    assert after - before < 120e6


def test_gemma3_norms_carry_their_one(checkpoints, tmp_path):
    folder, model = checkpoints("gemma3")
    done = convert_hf(folder, tmp_path / "m.gguf", progress=False)
    file, state = GGUFFile(done.path), model.state_dict()
    norm = state["model.language_model.layers.3.self_attn.q_norm.weight"]
    assert torch.equal(file.dequantize("blk.3.attn_q_norm.weight"), norm + 1)
    assert done.n_skipped > 10  # the vision tower


def test_a_pruned_model_has_the_experts_of_its_tensors(copied, tmp_path):
    folder = copied("gemma4-moe")
    edit_json(folder / "config.json", num_experts=128)
    file = GGUFFile(convert_hf(folder, tmp_path / "m.gguf", progress=False).path)
    assert file.metadata["gemma4.expert_count"] == 12


def test_older_rope_settings_mean_the_same(copied, tmp_path):
    """rope_theta and rope_scaling, as config.json had them before rope_parameters."""
    folder = copied("llama")
    new = convert_hf(folder, tmp_path / "a.gguf", progress=False).path.read_bytes()
    given = json.loads((folder / "config.json").read_text())["rope_parameters"]
    theta = given.pop("rope_theta")
    old = {"rope_parameters": None, "rope_theta": theta, "rope_scaling": given}
    edit_json(folder / "config.json", **old)
    assert convert_hf(folder, tmp_path / "b.gguf", progress=False).path.read_bytes() == new


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json", None])
def test_the_template_is_found_wherever_it_is(copied, tmp_path, place):
    folder = copied("qwen2")
    (folder / "chat_template.jinja").unlink()
    if place:
        if not (folder / place).exists():
            (folder / place).write_text("{}")
        edit_json(folder / place, chat_template="mine")
    file = GGUFFile(convert_hf(folder, tmp_path / "m.gguf", progress=False).path)
    assert file.get("tokenizer.chat_template") == ("mine" if place else None)


def test_shards_are_read_and_missing_ones_named(tmp_path):
    tiny.save("llama", tmp_path / "whole")
    tiny.save("llama", tmp_path / "c", shard="100KB")
    shards = sorted((tmp_path / "c").glob("model-*.safetensors"))
    assert len(shards) > 3
    whole, parts = (
        GGUFFile(convert_hf(tmp_path / n, tmp_path / f"{n}.gguf", progress=False).path)
        for n in ("whole", "c")
    )
    assert parts.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(parts.raw(name), whole.raw(name)) for name in whole.tensors)
    for shard in shards[1:3]:
        shard.unlink()
    names = ", ".join(s.name for s in shards[1:3])
    with pytest.raises(FileNotFoundError, match=f"missing shards: {names}"):
        convert_hf(tmp_path / "c", tmp_path / "d.gguf", progress=False)
    assert not (tmp_path / "d.gguf").exists()


def damaged(folder, key, value=None):
    """Take one tensor out of the checkpoint, or replace it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(key) if value is None else tensors.update({key: value})
    save_file(tensors, path)


def test_nan_is_refused_by_name(copied, tmp_path):
    folder, key = copied("llama"), "model.layers.1.mlp.up_proj.weight"
    with safe_open(folder / "model.safetensors", "pt") as file:
        value = file.get_tensor(key)
    value[5, 7] = torch.nan
    damaged(folder, key, value)
    with pytest.raises(ValueError, match=f"'{key}' holds NaN"):
        convert_hf(folder, tmp_path / "m.gguf", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_missing_and_an_unknown_tensor_are_named(copied, tmp_path):
    folder = copied("llama")
    damaged(folder, "model.layers.1.extra.weight", torch.ones(4))
    with pytest.raises(ValueError, match=r"'model.layers.1.extra.weight' is not known in llama"):
        convert_hf(folder, tmp_path / "m.gguf")
    damaged(folder, "model.layers.1.extra.weight")
    damaged(folder, "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ValueError, match=r"nothing .* becomes 'blk.1.ffn_up.weight'"):
        convert_hf(folder, tmp_path / "m.gguf")


def test_an_interruption_leaves_no_file(checkpoints, tmp_path, monkeypatch):
    plain, calls = convert._blocks, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(convert, "_blocks", failing)
    with pytest.raises(KeyboardInterrupt):
        convert_hf(checkpoints("llama")[0], tmp_path / "m.gguf", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("filename", "changes", "message"),
    [
        ("config.json", {"model_type": "mamba"}, "'mamba' is not known; known: gemma3, gemma4"),
        ("config.json", {"quantization_config": {}}, "quantised already"),
        ("config.json", {"num_attention_heads": None}, "'num_attention_heads' is missing"),
        ("config.json", {"num_hidden_layers": "two"}, "value of the wrong kind"),
        ("config.json", {"rope_parameters": {"rope_type": "yarn"}}, "'yarn', which is not read"),
        ("config.json", {"rope_parameters": {"type": "dynamic"}}, "'dynamic', which is not"),
        ("config.json", {"rope_parameters": {"rope_type": "longrope"}}, "default, linear, llama3"),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, "'Unigram', not BPE"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel2"}}, "none of gpt-2, smollm"),
    ],
)
def test_what_is_not_read_is_said(copied, tmp_path, filename, changes, message):
    folder = copied("llama")
    edit_json(folder / filename, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        convert_hf(folder, tmp_path / "m.gguf", progress=False)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("filename", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files_are_named(copied, tmp_path, filename):
    folder = copied("llama")
    (folder / filename).unlink()
    with pytest.raises(FileNotFoundError, match=filename):
        convert_hf(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("older", ["tokenizer.model", "vocab.json"])
def test_an_older_tokeniser_file_is_refused_with_the_way_to_a_new_one(copied, tmp_path, older):
    folder = copied("llama")
    (folder / "tokenizer.json").rename(folder / older)
    with pytest.raises(FileNotFoundError, match=f"make it from {older}: pip install") as caught:
        convert_hf(folder, tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)
    assert f"from_pretrained('{folder}').save_pretrained('{folder}')" in str(caught.value)


def test_damaged_files_are_named(copied, tmp_path):
    folder = copied("llama")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match="safetensors: damaged"):
        convert_hf(folder, tmp_path / "m.gguf")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="json: not JSON"):
        convert_hf(folder, tmp_path / "m.gguf")
