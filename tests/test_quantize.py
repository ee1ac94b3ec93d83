"""Quantising files: the right bytes, the right types for the right tensors, bounded memory."""

import itertools
import struct

import gguf
import numpy as np
import pytest
import tinyllama
import torch
from ggufwriter import File, Tensor

from benchmarks.file_memory import measured
from tqlab import formats, quantize
from tqlab.gguf_file import GGUFError, GGUFFile
from tqlab.models import load_model
from tqlab.policies import POLICIES, TYPES, plan
from tqlab.quantize import quantize_gguf

D, FF = 64, 96
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FFN = ("ffn_gate", "ffn_up", "ffn_down")


def eight_layers(moe=False, tied=True, width=D, seed=0):
    """An 8-layer file with every role: norms, matrices, and with `moe` experts and a router."""
    rng = np.random.default_rng(seed)

    def made(name, *shape):
        return Tensor.f32(name, rng.standard_normal(shape))

    tensors = [made("token_embd.weight", 40, width), made("output_norm.weight", width)]
    tensors += [] if tied else [made("output.weight", 40, width)]
    for i in range(8):
        tensors += [made(f"blk.{i}.{part}.weight", 32, width) for part in ATTENTION]
        tensors += [made(f"blk.{i}.{part}.weight", FF, width) for part in FFN]
        tensors.append(made(f"blk.{i}.attn_norm.weight", width))
        if moe:
            tensors.append(made(f"blk.{i}.ffn_gate_inp.weight", 4, width))
            tensors.append(made(f"blk.{i}.ffn_gate_inp.scale", width))
            tensors.append(made(f"blk.{i}.ffn_gate_up_exps.weight", 4, 48, width))
            tensors.append(made(f"blk.{i}.ffn_down_exps.weight", 4, 32, width))
            tensors.append(made(f"blk.{i}.inp_gate.weight", 32, width))
    tensors += [made("per_layer_model_proj.weight", 32, D), made("rope_freqs.weight", 2, D)]
    keys = [("general.architecture", "str", "x"), ("x.block_count", "u32", 8)]
    return File([*keys, ("general.file_type", "u32", 0), ("x.odd", "i8", -5)], tensors)


@pytest.fixture
def source(tmp_path):
    return eight_layers(moe=True).write(tmp_path / "in.gguf")


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_holds_the_quantisers_bytes(tmp_path, source, type_name):
    done = quantize_gguf(source, tmp_path / "out.gguf", type_name, progress=False)
    before, after = GGUFFile(source), GGUFFile(done.path)
    for name in ("blk.3.ffn_up.weight", "blk.0.ffn_gate_up_exps.weight"):
        values = before.dequantize(name)
        if type_name in formats.names():
            expected = formats.get(type_name).quantize(values).numpy()
        else:
            kind = gguf.GGMLQuantizationType[type_name.upper()]
            expected = gguf.quants.quantize(values.numpy(), kind)
        assert np.array_equal(after.raw(name).numpy(), expected), name
        assert after.info(name).shape == before.info(name).shape


def test_golden_blocks_of_the_fork(tmp_path, golden):
    """Weights whose packed bytes the fork itself wrote come out byte for byte."""
    for type_name in ("tq4_1s", "tq3_1s"):
        sets = [key.split("/")[1] for key in golden if key.startswith(f"{type_name}/")]
        for name in sorted(set(sets)):
            x, expected = golden[f"x/{name}"], golden[f"{type_name}/{name}/bytes"]
            tensors = [Tensor.f32("blk.0.ffn_up.weight", x.reshape(-1, 32))]
            keys = [("general.architecture", "str", "x"), ("x.block_count", "u32", 1)]
            if tensors[0].ne[1] == 1:
                continue
            path = File(keys, tensors).write(tmp_path / "in.gguf")
            quantize_gguf(path, tmp_path / "out.gguf", type_name, progress=False)
            found = GGUFFile(tmp_path / "out.gguf").raw("blk.0.ffn_up.weight")
            assert np.array_equal(found.numpy().ravel(), expected.ravel()), (type_name, name)


def test_small_row_blocks_and_threads_change_nothing(tmp_path, source, monkeypatch):
    whole = quantize_gguf(source, tmp_path / "a.gguf", "tq4_1s", progress=False).path
    monkeypatch.setattr(quantize, "_BLOCK_VALUES", 23 * D)
    monkeypatch.setattr(quantize, "_cores", lambda: 5)
    pieces = quantize_gguf(source, tmp_path / "b.gguf", "tq4_1s", progress=False).path
    assert whole.read_bytes() == pieces.read_bytes()


def test_memory_is_bounded_on_machines_of_many_cores(monkeypatch):
    monkeypatch.setattr(quantize.os, "sched_getaffinity", lambda _: range(200), raising=False)
    assert quantize._cores() == 16


@pytest.mark.parametrize(
    ("type_name", "type_id", "file_type"),
    [("tq4_1s", 46, 44), ("tq3_1s", 45, 43), ("q8_0", 8, 7), ("q5_0", 6, 8), ("f16", 1, 1)],
)
def test_ids_and_file_types(tmp_path, source, type_name, type_id, file_type):
    done = quantize_gguf(source, tmp_path / "out.gguf", type_name, progress=False)
    raw, name = done.path.read_bytes(), b"blk.3.ffn_up.weight"
    at = raw.index(name) + len(name)
    n_dims, *ne, found = struct.unpack("<IQQI", raw[at : at + 24])
    assert (n_dims, ne, found) == (2, [D, FF], type_id)
    file = GGUFFile(done.path)
    assert file.metadata["general.file_type"] == done.file_type == file_type
    assert file.metadata["general.quantization_version"] == 2
    assert file.encoded("x.odd") == GGUFFile(source).encoded("x.odd")


def test_what_is_never_quantised(tmp_path, source):
    done = quantize_gguf(source, tmp_path / "out.gguf", "tq4_1s", progress=False)
    after, before = GGUFFile(done.path), GGUFFile(source)
    kept = {n for n, t in after.tensors.items() if t.type == "f32"}
    fixed = {"output_norm.weight", "per_layer_model_proj.weight", "rope_freqs.weight"}
    layer = ("attn_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp.scale")
    assert kept == fixed | {f"blk.{i}.{part}" for i in range(8) for part in layer}
    for name in kept:
        assert torch.equal(after.raw(name), before.raw(name))
    assert after.info("token_embd.weight").type == "q8_0"  # tied: it is the head
    assert after.info("blk.0.inp_gate.weight").type == "tq4_1s"


def test_an_untied_embedding_follows_the_type(tmp_path):
    source = eight_layers(tied=False).write(tmp_path / "in.gguf")
    types = {m.source.name: m.type for m in plan(GGUFFile(source), "tq3_1s")}
    assert types["token_embd.weight"] == "tq3_1s"
    assert types["output.weight"] == "q8_0"


def kinds(source, policy):
    """(layer, part) -> type, and part -> type outside the layers."""
    moves = plan(GGUFFile(source), policy=policy)
    return {m.source.name.removesuffix(".weight"): m.type for m in moves if m.type != "f32"}


@pytest.mark.parametrize(
    ("policy", "boundary", "attention", "gate_up", "down"),
    [
        ("config-i", 2, "tq4_1s", "tq4_1s", "q5_0"),
        ("hybrid", 2, "tq4_1s", "q5_0", "q5_0"),
        ("premium", 4, None, None, None),  # 4 + 4 of 8 layers: nothing is left in between
    ],
)
def test_policies(source, policy, boundary, attention, gate_up, down):
    found = kinds(source, policy)
    assert found.pop("token_embd") == "q8_0"
    for i in range(8):
        inner = boundary <= i < 8 - boundary
        for part in ATTENTION:
            assert found.pop(f"blk.{i}.{part}") == (attention if inner else "q8_0")
        for part in ("ffn_gate", "ffn_up", "ffn_gate_up_exps"):
            assert found.pop(f"blk.{i}.{part}") == (gate_up if inner else "q8_0")
        for part in ("ffn_down", "ffn_down_exps"):
            assert found.pop(f"blk.{i}.{part}") == (down if inner else "q8_0")
        assert found.pop(f"blk.{i}.inp_gate") == "q8_0"
    assert not found


def test_premium_between_its_boundaries():
    asked = {n: POLICIES["premium"].type_of(f"blk.{n}.ffn_down.weight", 10) for n in (3, 4, 5, 6)}
    assert [t for t, _ in asked.values()] == ["q8_0", "q6_k", "q6_k", "q8_0"]
    assert POLICIES["premium"].type_of("blk.5.ffn_up.weight", 10)[0] == "q5_k"
    assert POLICIES["premium"].type_of("blk.5.attn_k.weight", 10)[0] == "tq4_1s"


def test_the_table_says_what_was_substituted(tmp_path, source, capsys):
    done = quantize_gguf(source, tmp_path / "out.gguf", policy="config-i")
    printed = capsys.readouterr().out
    row = next(r for r in done.rows if r.role == "blk.*.ffn_down" and r.target == "q5_0")
    assert (row.count, row.source, row.note) == (4, "f32", "for q4_k, which is not written here")
    roles = [r.role for r in done.rows]
    assert len(roles) > len(set(roles)) == len(list(itertools.groupby(roles))), "alike side by side"
    assert row.bytes_before == 4 * FF * D * 4
    assert row.bytes_after == 4 * FF * D * 22 // 32
    line = next(x for x in printed.splitlines() if "for q4_k" in x and "ffn_down " in x)
    assert line.split()[:4] == ["blk.*.ffn_down", "4", "f32", "q5_0"]
    assert printed.splitlines()[-1].split()[0] == "total"
    assert done.bytes_after == sum(t.nbytes for t in GGUFFile(done.path).tensors.values())
    assert done.file_type == TYPES["q8_0"]


def test_rows_that_do_not_fit_stay_in_half_precision(tmp_path):
    source = eight_layers(width=40).write(tmp_path / "in.gguf")
    done = quantize_gguf(source, tmp_path / "out.gguf", "tq4_1s", progress=False)
    assert GGUFFile(done.path).info("blk.1.attn_q.weight").type == "f16"
    assert any(r.note == "rows of 40 do not fit tq4_1s" for r in done.rows)


def test_quantised_sources_are_read(tmp_path, source):
    """tq4_1s -> q8_0 equals quantising what tq4_1s decodes to; a K-quant source works too."""
    middle = quantize_gguf(source, tmp_path / "a.gguf", "tq4_1s", progress=False).path
    last = quantize_gguf(middle, tmp_path / "b.gguf", "q8_0", progress=False).path
    name = "blk.2.ffn_gate.weight"
    expected = formats.get("q8_0").quantize(GGUFFile(middle).dequantize(name))
    assert torch.equal(GGUFFile(last).raw(name), expected)
    raw = np.random.default_rng(1).integers(0, 64, (3, 144), dtype=np.uint8)  # q4_k, 256 a block
    keys = [("general.architecture", "str", "x"), ("x.block_count", "u32", 1)]
    k_quant = File(keys, [Tensor("blk.0.ffn_up.weight", (256, 3), 12, raw.tobytes())])
    k_path = k_quant.write(tmp_path / "k.gguf")
    done = quantize_gguf(k_path, tmp_path / "c.gguf", "tq4_1s", progress=False)
    values = torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_K))
    found = GGUFFile(done.path).raw("blk.0.ffn_up.weight")
    assert torch.equal(found, formats.get("tq4_1s").quantize(values))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.6.ffn_up.weight", "blk.6.attn_norm.weight"])
def test_nan_is_refused_by_name(tmp_path, name, value):
    file = eight_layers()
    tensor = next(t for t in file.tensors if t.name == name)
    tensor.data = np.float32(value).tobytes() + tensor.data[4:]
    source = file.write(tmp_path / "in.gguf")
    with pytest.raises(GGUFError, match=f"tensor '{name}' holds NaN or infinite"):
        quantize_gguf(source, tmp_path / "out.gguf", "tq4_1s", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.parametrize("type_name", ["tq4_1s", "q5_0", "f16"])
def test_values_beyond_half_precision_are_refused(tmp_path, type_name):
    file = eight_layers()
    tensor = next(t for t in file.tensors if t.name == "blk.6.ffn_up.weight")
    tensor.data = np.full(FF * D, 3e7, np.float32).tobytes()
    source = file.write(tmp_path / "in.gguf")
    with pytest.raises(GGUFError, match=f"'blk.6.ffn_up.weight' reaches 3e.07, .* {type_name}"):
        quantize_gguf(source, tmp_path / "out.gguf", type_name, progress=False)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_no_file(tmp_path, source, monkeypatch, error):
    plain, calls = quantize._convert, []

    def failing(path, move, block):
        calls.append(move)
        if len(calls) == 30:
            raise error
        return plain(path, move, block)

    threads = torch.get_num_threads()
    monkeypatch.setattr(quantize, "_convert", failing)
    with pytest.raises(error):
        quantize_gguf(source, tmp_path / "out.gguf", "tq4_1s", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("type_name", "policy", "message"),
    [
        (None, None, "give a type or a policy"),
        ("q8_0", "hybrid", "give a type or a policy"),
        ("q4_k", None, "unknown type 'q4_k'; known: tq4_1s"),
        (None, "best", "unknown policy 'best'; known: config-i"),
    ],
)
def test_wrong_arguments(tmp_path, source, type_name, policy, message):
    with pytest.raises(ValueError, match=message):
        quantize_gguf(source, tmp_path / "out.gguf", type_name, policy)


def test_source_and_target_must_differ(tmp_path, source):
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    before = source.read_bytes()
    for target in (source, link):
        with pytest.raises(ValueError, match="same file"):
            quantize_gguf(source, target, "q8_0")
    assert source.read_bytes() == before


def test_a_part_of_a_split_model_is_refused(tmp_path):
    file = eight_layers()
    file.metadata.append(("split.count", "u16", 3))
    with pytest.raises(GGUFError, match="split model"):
        quantize_gguf(file.write(tmp_path / "in.gguf"), tmp_path / "out.gguf", "q8_0")


def test_a_quantised_model_runs_as_its_decoded_weights_do(tmp_path):
    source = tinyllama.gguf_file(tinyllama.oracle()).write(tmp_path / "in.gguf")
    done = quantize_gguf(source, tmp_path / "out.gguf", "q8_0", progress=False)
    ids = torch.arange(20)[None] % 30
    exact, packed = (load_model(p, "cpu", "dense")(ids) for p in (source, done.path))
    assert 0 < (exact - packed).abs().max() < 0.05 * exact.abs().max()


def test_memory_does_not_grow_with_the_tensor(tmp_path):
    """410 MB of f32 in one tensor (a sparse file): beside the imports, a third of it is enough."""
    rows, n = 3, 1 << 7
    tensors = [Tensor("blk.0.ffn_up.weight", (n, rows), 0, bytes(4 * n * rows))]
    keys = [("general.architecture", "str", "x"), ("x.block_count", "u32", 1)]
    path = File(keys, tensors).write(tmp_path / "big.gguf")
    raw = bytearray(path.read_bytes())
    rows = 800_000
    name = b"blk.0.ffn_up.weight"
    at = raw.index(name) + len(name)
    raw[at + 4 : at + 20] = struct.pack("<QQ", n, rows)
    path.write_bytes(raw)
    with path.open("r+b") as file:
        file.truncate(len(raw) + 4 * n * rows)
    before, after = measured("q8_0", path, tmp_path / "out.gguf")
    assert after - before < 150e6
    assert GGUFFile(tmp_path / "out.gguf").info("blk.0.ffn_up.weight").nbytes == rows * n // 32 * 34
