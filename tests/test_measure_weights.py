"""Packed weights against hand-made KL and what a published row promises; loads of experts."""

import itertools
import json
import types
from pathlib import Path

import pytest
import torch

import tqlab
from tqlab import measure, plots
from tqlab.chunks import cut
from tqlab.data import Text
from tqlab.metrics import perplexity
from tqlab.models import gemma4

CTX, CHUNKS = 32, 2
WORDS = "hello world the quick brown fox jumps over the lazy dog and says what it will say "
TEXT = Text("words", WORDS * 3, "ab" * 32)


@pytest.fixture
def rows(tiny_path, own_data):
    return measure.weight_rows(
        tiny_path, ["f16", "tq3_1s", "config-i"], TEXT, CTX, CHUNKS, "hello", n_new=6
    )


def packed(tiny_path, folder, recipe):
    target = folder / f"{recipe}.gguf"
    done = tqlab.quantize_gguf(tiny_path, target, recipe, progress=False)
    return tqlab.load_model(target, device="cpu"), done


def log_probabilities(model, piece):
    """float64 log-softmax of the scored positions of one chunk, in one pass without a cache."""
    return model(piece[None])[0, len(piece) // 2 : -1].double().log_softmax(-1)


def test_kl_from_other_weights_by_hand(tiny_model, tiny_path, tmp_path, own_data):
    """Whole logits in float64; f16 caches and the 16-bit reference: well below 5 % of this KL."""
    other, _ = packed(tiny_path, tmp_path, "tq3_1s")
    tokens = torch.tensor(other.tokenizer.encode(TEXT.text))
    f16 = ("f16", "f16")
    found = perplexity(other, tokens, CTX, CHUNKS, *f16, f16, original=tiny_model)
    klds = []
    for piece in cut(tokens, CTX, CHUNKS, other):
        log_p, log_q = (log_probabilities(m, piece) for m in (tiny_model, other))
        klds.append((log_p.exp() * (log_p - log_q)).sum(-1))
    assert found.kld_mean == pytest.approx(float(torch.cat(klds).mean()), rel=0.05)
    own = perplexity(other, tokens, CTX, CHUNKS, *f16, f16)
    assert own.kld_mean < found.kld_mean / 100  # a planted forgotten original


def test_originals_of_another_vocabulary_are_refused(tiny_model):
    """As many tokens in another order: the shapes fit, and the divergence would mean nothing."""
    tokenizer = types.SimpleNamespace(tokens=tiny_model.tokenizer.tokens[::-1])
    other = types.SimpleNamespace(tokenizer=tokenizer, path=Path("other.gguf"))
    with pytest.raises(ValueError, match=r"tiny\.gguf and other\.gguf have different vocab"):
        perplexity(tiny_model, list(range(64)), CTX, reference=("f16", "f16"), original=other)


def test_weight_rows_are_of_the_packed_files(rows, tiny_path, tmp_path):
    assert [r["recipe"] for r in rows] == ["f16", "tq3_1s", "config-i"]
    model, done = packed(tiny_path, tmp_path, "tq3_1s")
    row = rows[1]
    assert row["sha256"] == tqlab.data.file_sha256(done.path)
    assert row["nbytes"] == done.path.stat().st_size
    assert row["bits"] == done.bits_per_weight
    written = tqlab.generate(model, "hello", "f16", "f16", max_new_tokens=6)
    assert row["written"] == written.text
    assert rows[0]["kld_mean"] < 1e-4 < row["kld_mean"]  # f32 weights in f16 hardly move


def test_a_published_row_holds_for_its_own_file_only(rows, tiny_path, tmp_path):
    model, _ = packed(tiny_path, tmp_path, "tq3_1s")
    assert all(r["same"] for r in measure.held_rows(rows[1], model, TEXT))
    wrong = {r["what"]: r["same"] for r in measure.held_rows(rows[0], model, TEXT)}
    assert not wrong["the file (sha256)"]
    assert not wrong["perplexity"]
    assert wrong["the text's tokens (sha256)"]
    other = Text("other", TEXT.text.upper(), "cd" * 32)
    moved = {r["what"]: r["same"] for r in measure.held_rows(rows[1], model, other)}
    assert not moved["the text's tokens (sha256)"]


def test_published_rows_are_read_and_damage_is_named(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    assert measure.read_weight_rows(path) == rows
    path.write_text(path.read_text() + '{"recipe": "f16"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 4: not a row of benchmarks/weights"):
        measure.read_weight_rows(path)


def test_the_figure_of_weights_leaves_the_original_out():
    row = {"kld_se": 0.001, "recipe": "f16", "bits": 16.1, "kld_mean": 1e-8}
    packed = {"q8_0": (8.7, 0.001), "tq4_1s": (5.4, 0.01), "tq3_1s": (4.4, 0.05)}
    rows = [row | {"recipe": n, "bits": b, "kld_mean": k} for n, (b, k) in packed.items()]
    ax = plots.kld_of_weights([row, *rows]).axes[0]
    assert packed.keys() <= {t.get_text() for t in ax.texts}
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in points] == [
        *packed.values()
    ]
    assert ax.get_yscale() == "log"
    assert "bits" in ax.get_xlabel()
    assert "nats" in ax.get_ylabel()


# ---- experts


def test_expert_loads_of_a_planted_router(moe):
    """Logits that ignore the token: the last eight experts take everything."""
    for layer in moe.layers:
        layer.moe.router = lambda r: torch.arange(96.0).expand(*r.shape[:-1], -1)
    rows = measure.expert_loads(moe, list(range(40)), ctx=16)
    assert len(rows) == 96 * len(moe.layers)
    for row in rows:
        busy = row["expert"] >= 88
        assert (row["share"], row["count"]) == ((1.0, 32) if busy else (0.0, 0))
        assert row["uniform"] == 8 / 96


def test_expert_loads_against_routing_token_by_token(moe, monkeypatch):
    """Counted from what the experts' products are asked for, one token at a time."""
    tokens = list(range(5, 21))
    rows = measure.expert_loads(moe, tokens, ctx=16)
    for _, layer in itertools.groupby(rows, key=lambda r: r["layer"]):
        assert sum(r["share"] for r in layer) == pytest.approx(8)
    seen, experts = [], gemma4.MoE.experts
    monkeypatch.setattr(
        gemma4.MoE, "experts", lambda self, x, w, c: (seen.append(c), experts(self, x, w, c))[1]
    )
    cache = moe.new_cache("f16", "f16", 16)
    for token in tokens:
        moe(torch.tensor([[token]]), cache)
    by_layer = [torch.cat(seen[i :: len(moe.layers)]).flatten() for i in range(len(moe.layers))]
    wanted = torch.stack([c.bincount(minlength=96) for c in by_layer]).flatten()
    assert [r["count"] for r in rows] == wanted.tolist()
    assert "choose" not in vars(moe.layers[0].moe)  # nothing is left behind


def test_models_without_experts_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"tiny\.gguf has no routed experts"):
        measure.expert_loads(tiny_model, list(range(64)), CTX)


def test_every_expert_of_the_shipped_model_is_used():
    model = tqlab.load_model("tiny-gemma4", device="cpu")
    tokens = model.tokenizer.encode(tqlab.data.load_text("tiny-stories").text)
    rows = measure.expert_loads(model, tokens, 512, chunks=8)
    assert len(rows) == 96 * len(model.layers)
    assert [(r["layer"], r["expert"]) for r in rows if not r["count"]] == []


def test_the_figure_of_loads_is_sorted_and_counts_the_unused():
    shares = [0.0, 0.5, 0.2, 0.3]
    row = {"layer": 2, "uniform": 0.25}
    rows = [row | {"expert": e, "count": int(10 * s), "share": s} for e, s in enumerate(shares)]
    fig = plots.expert_loads(rows + [r | {"layer": 3} for r in rows[:2]])
    ax = fig.axes[0]
    assert [p.get_height() for p in ax.patches] == [50, 30, 20, 0]
    assert [ax.get_title("left") for ax in fig.axes] == ["layer 2", "layer 3"]
    assert ax.texts[0].get_text() == "never used: 1"
    assert float(ax.lines[0].get_ydata()[0]) == 25
    assert "%" in ax.get_ylabel()
