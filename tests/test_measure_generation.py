"""Sizes of files and caches against published counts and real files; KL along a text."""

import contextlib
import json
import math
import shlex
from pathlib import Path

import pytest
import torch

import tqlab
from tqlab import attention, measure, plots
from tqlab.cli import _parser
from tqlab.gguf_file import GGUFFile
from tqlab.measure.described import tensor_shapes
from tqlab.measure.sizes import role_of

DATA = Path(__file__).parent / "data"
NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "04_gemma4_generation.ipynb"
GIB, MIB = 2**30, 2**20


def tiny_gemma4():
    return sorted(DATA.glob("gemma4-*.gguf"))


# ---- described models

UNUSED = ("k", "v", "k_norm")
PUBLISHED_TENSORS = {"E2B": 601, "26B-A4B": 658, "26B-A4B, 96 experts": 658, "31B": 833}


@pytest.mark.parametrize("name", measure.DESCRIBED)
def test_described_models_have_the_published_number_of_tensors(name):
    """Public load logs of llama.cpp; pruning experts changes shapes, not the count."""
    assert len(measure.describe(name).tensors) == PUBLISHED_TENSORS[name]


def test_described_models_have_the_weights_their_names_promise():
    weights = {name: measure.describe(name).n_weights / 1e9 for name in measure.DESCRIBED}
    assert weights["26B-A4B"] == pytest.approx(25.2, abs=0.1)
    assert weights["31B"] == pytest.approx(30.7, abs=0.1)
    # 32 experts fewer in each of 30 layers, each of three matrices of 704 x 2816, and its router
    pruned = 30 * 32 * (3 * 704 * 2816 + 2816 + 1)
    assert weights["26B-A4B"] - weights["26B-A4B, 96 experts"] == pytest.approx(pruned / 1e9)


@pytest.mark.parametrize("path", tiny_gemma4(), ids=lambda path: path.stem)
def test_shapes_are_those_of_real_files(path):
    """The files were written by the fork's own converter: dense, E2B, E4B and 96 experts."""
    file = GGUFFile(path)
    m = {key.removeprefix("gemma4."): value for key, value in file.metadata.items()}
    made = dict(tensor_shapes(m, file.info("token_embd.weight").shape[0]))
    made = {(n if n.endswith(".scale") else f"{n}.weight"): s for n, s in made.items()}
    real = {name: info.shape for name, info in file.tensors.items()}
    # Published E2B and E4B files hold unused K and V in shared layers; transformers drops them.
    own = m["block_count"] - m.get("attention.shared_kv_layers", 0)
    unused = [f"blk.{i}.attn_{x}.weight" for i in range(own, m["block_count"]) for x in UNUSED]
    assert {name: s for name, s in made.items() if name not in unused} == real


def test_unknown_models_are_refused():
    with pytest.raises(ValueError, match=r"'27B'.*E2B"):
        measure.describe("27B")


def test_layers_of_e2b():
    """gemma4.md 6: fifteen layers store, twelve of them rings; the others read 13 and 14."""
    shapes = measure.describe("E2B").layer_shapes()
    own = [s for s in shapes if s.donor is None]
    assert len(own) == 15
    assert sum(s.window == 512 for s in own) == 12
    assert {s.donor for s in shapes[15:]} == {13, 14}


# ---- caches


def test_cache_of_31b_in_f16():
    """gemma4.md 6: 800 MiB of rings, and 80 KiB for every token of context."""
    rows = measure.cache_rows(["31B"], [("f16", "f16")], [4096, 32768])
    for row in rows:
        assert row["ring"] == 800 * MIB
        assert row["bytes"] == 800 * MIB + 80 * 1024 * row["context"]


def test_cache_rows_are_the_bytes_a_real_cache_holds():
    from tqlab.kvcache import KVCache

    real = KVCache(measure.describe("E2B").layer_shapes(), "q8_0", "turbo4", 1024)
    row = measure.cache_rows(["E2B"], [("q8_0", "turbo4")], [1024])[0]
    assert row["bytes"] == real.nbytes > 0


def test_pruning_experts_leaves_the_cache_alone():
    names = ["26B-A4B", "26B-A4B, 96 experts"]
    rows = measure.cache_rows(names, [("turbo3", "turbo3")], [8192])
    assert rows[0]["bytes"] == rows[1]["bytes"]
    panels = plots.cache_bytes(rows + measure.cache_rows(["31B"], [("turbo3", "turbo3")], [8192]))
    assert [ax.get_title(loc="left") for ax in panels.axes] == ["\nand ".join(names), "31B"]


# ---- files


def test_role_rows_count_what_quantising_writes(tmp_path):
    path = DATA / "gemma4-moe96.gguf"
    done = tqlab.quantize_gguf(path, tmp_path / "out.gguf", "tq4_1s", progress=False)
    rows = measure.role_rows(path, "tq4_1s")
    total = {w: sum(r["bytes"] for r in rows if r["when"] == w) for w in ("before", "after")}
    assert total == {"before": done.bytes_before, "after": done.bytes_after}
    recipe = measure.recipe_rows(path, ["tq4_1s", "q8_0"], ["config-i"])
    assert [r["recipe"] for r in recipe] == ["tq4_1s", "q8_0", "config-i"]
    assert recipe[0]["bytes"] == done.bytes_after
    assert recipe[0]["bits"] == pytest.approx(done.bits_per_weight)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("token_embd.weight", "embedding and head"),
        ("output.weight", "embedding and head"),
        ("per_layer_token_embd.weight", "per-layer embeddings"),
        ("output_norm.weight", "norms and small parts"),
        ("blk.3.attn_output.weight", "attention"),
        ("blk.3.attn_q_norm.weight", "norms and small parts"),
        ("blk.3.ffn_down_exps.weight", "experts"),
        ("blk.3.ffn_gate_inp.weight", "norms and small parts"),
        ("blk.3.ffn_gate.weight", "feed-forward"),
        ("rope_freqs.weight", "norms and small parts"),
    ],
)
def test_roles(name, role):
    assert role_of(name) == role


def test_bytes_by_role_draws_every_byte():
    rows = measure.role_rows(measure.describe("26B-A4B, 96 experts"), "tq4_1s")
    fig = plots.bytes_by_role(rows)
    drawn = sum(bar.get_width() for bar in fig.axes[0].patches)
    assert drawn == pytest.approx(sum(r["bytes"] for r in rows) / 1e9)
    assert "GB" in fig.axes[0].get_xlabel()
    assert next(t.get_text() for t in fig.axes[0].get_yticklabels()) == "experts"


def test_journey_rows():
    row = measure.journey_rows(["31B"], weights_per_s=1e7, context=32768)[0]
    assert row["checkpoint"] == pytest.approx(2 * row["weights"], rel=0.001)  # two bytes a weight
    assert row["disk"] == 2 * row["checkpoint"] + row["quantized"]
    assert row["memory"] == row["quantized"] + row["cache"]
    assert row["hours"] == pytest.approx(row["weights"] / 1e7 / 3600, rel=0.001)
    cache = measure.cache_rows(["31B"], [("q8_0", "turbo4")], [32768])[0]
    assert row["cache"] == cache["bytes"]


# ---- along a text


@pytest.fixture
def ids(tiny_model):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(tiny_model.config.n_vocab, (40,), generator=generator).tolist()


def test_kl_along_is_zero_for_the_reference(tiny_model, ids):
    row = measure.kl_along(tiny_model, ids[:9], ids[9:], "f16", "f16")
    assert max(row["kld"]) < 1e-6
    assert row["same_top"] == 1
    assert len(row["pieces"]) == len(row["kld"]) == len(ids) - 9


def test_kl_along_by_hand(tiny_model, ids):
    """The same numbers from whole logits, each token read on its own through the cache."""
    row = measure.kl_along(tiny_model, ids[:30], ids[30:], "turbo3", "turbo2")
    log_q = token_by_token(tiny_model, ids, "turbo3", "turbo2")
    log_p = token_by_token(tiny_model, ids, "f16", "f16")
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1)[29:39]
    assert torch.allclose(torch.tensor(row["kld"]), wanted, rtol=0.02, atol=1e-5)
    assert row["kld_mean"] == pytest.approx(float(wanted.mean()), rel=0.02)


def token_by_token(model, ids, k, v):
    cache = model.new_cache(k, v, len(ids))
    return torch.cat([model(torch.tensor([[i]]), cache)[0] for i in ids]).log_softmax(-1)


def test_kl_along_of_other_weights(tiny_model, tiny_path, ids, tmp_path):
    tqlab.quantize_gguf(tiny_path, tmp_path / "tq.gguf", "tq3_1s", progress=False)
    other = tqlab.load_model(tmp_path / "tq.gguf", device="cpu", weights="dense")
    row = measure.kl_along(tiny_model, ids[:9], ids[9:], "f16", "f16", other=other)
    assert row["kld_mean"] > 1e-3


def test_the_planted_bug_breaks_rotated_keys_only(tiny_model, ids):
    def found(k):
        return measure.kl_along(tiny_model, ids[:9], ids[9:], k, "f16")["kld_mean"]

    before = found("turbo4"), found("q8_0")
    with measure.unrotated_queries():
        broken = found("turbo4"), found("q8_0")
    assert broken[0] > 3 * before[0]
    assert math.isclose(broken[1], before[1])
    assert math.isclose(found("turbo4"), before[0])


def test_along_rows_end_with_the_bug(tiny_model, ids):
    pairs = [("q8_0", "q8_0"), ("turbo4", "turbo4")]
    fine, right, broken = measure.along_rows(tiny_model, ids[:9], ids[9:], pairs)
    assert [fine["k"], right["k"], broken["k"]] == ["q8_0", "turbo4", "turbo4"]
    assert fine["kld_mean"] < right["kld_mean"] < broken["kld_mean"] / 3
    assert (broken["label"], broken["format"]) == ("turbo4/turbo4, queries not rotated", None)


def test_the_planted_bug_goes_when_an_error_ends_it():
    right = attention.rotate_product
    with contextlib.suppress(KeyError), measure.unrotated_queries():
        assert attention.rotate_product is not right
        raise KeyError
    assert attention.rotate_product is right


def test_kl_along_draws_a_panel_a_row():
    row = {"k": "q8_0", "v": "turbo4", "pieces": ["a", "\n"], "kld": [0.1, 0.0], "same_top": 0.5}
    rows = [row | {"kld_mean": 0.05}, row | {"kld_mean": 0.05, "label": "planted", "format": None}]
    fig = plots.kl_along(rows)
    assert [ax.get_title(loc="left").split(":")[0] for ax in fig.axes] == ["q8_0/turbo4", "planted"]
    assert all(ax.get_yscale() == "log" for ax in fig.axes)
    assert [t.get_text() for t in fig.axes[-1].get_xticklabels()] == ["a", "↵"]


# ---- the notebook's commands


def test_the_commands_in_the_notebook_are_the_command_lines():
    """Every line that starts with tqlab, read by the real parser."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    texts = [
        "".join(c["source"]).replace("\\\n", "") for c in cells if c["cell_type"] == "markdown"
    ]
    lines = [line for text in texts for line in text.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("tqlab ")]
    assert {c[1] for c in commands} >= {"fetch", "convert", "quantize", "generate"}
    for command in commands:
        _parser().parse_args(command[1:])  # a wrong flag ends in SystemExit
