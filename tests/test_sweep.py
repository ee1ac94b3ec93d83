"""The sweep: complete rows, resumed without loss or repetition; failures that lose nothing."""

import errno
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import tqlab.metrics
from tqlab import data, sweep
from tqlab.sweep import append_row, read_rows

CTX = 32
PAIRS = [("f16", "f16"), ("q8_0", "turbo4"), ("turbo3", "turbo3")]


@pytest.fixture
def tokens(tiny_model):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(tiny_model.config.n_vocab, (3 * CTX,), generator=generator).tolist()


@pytest.fixture
def out(tmp_path, own_data):
    return tmp_path / "results" / "tiny.jsonl"


@pytest.fixture
def scored(monkeypatch):
    """Every chunk that is really computed, as (k format, chunk)."""
    calls, score = [], tqlab.metrics._score

    def counted(model, piece, cache, store, i):
        calls.append((cache.k_format, i))
        return score(model, piece, cache, store, i)

    monkeypatch.setattr(tqlab.metrics, "_score", counted)
    return calls


def test_rows_hold_everything_needed_to_rerun_them(tiny_model, tokens, out):
    text = data.Text("my text", "...", "ab" * 32, "3.11.7")
    rows = sweep(tiny_model, tokens, PAIRS, CTX, 2, out, text=text)
    assert [(r["k"], r["v"]) for r in rows] == PAIRS
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    wanted = (
        "model_sha256 text_sha256 text_python tokens_sha256 ctx chunks device torch tqlab python"
    )
    for name in (wanted + " seconds cache_nbytes k_bits v_bits ppl ppl_se kld_mean time").split():
        assert rows[1][name] is not None, name
    assert rows[1]["chunks"] == 2
    # heads of 32 padded to 128: four times turbo4's own 4.25 bits; q8_0 takes its own 8.5
    assert (rows[1]["k_bits"], rows[1]["v_bits"]) == (8.5, 17.0)
    values = 3 * 2 * CTX * 32  # layers, KV heads, tokens, head_dim
    assert rows[1]["cache_nbytes"] == values * (8.5 + 17) / 8


def test_finished_points_are_not_computed_again(tiny_model, tokens, out, scored):
    first = sweep(tiny_model, tokens, PAIRS[:2], CTX, 2, out)
    scored.clear()
    again = sweep(tiny_model, tokens, PAIRS, CTX, 2, out)
    assert again[:2] == first
    assert scored == [("turbo3", 0), ("turbo3", 1)]
    assert len(read_rows(out)) == 3


def test_a_kill_loses_only_the_point_in_flight(tiny_model, tokens, out, scored, monkeypatch):
    perplexity = tqlab.metrics.perplexity
    module = __import__("sys").modules["tqlab.sweep"]

    def killed(model, pieces, ctx, chunks, k, v, *rest, **named):
        if k == "turbo3":
            raise KeyboardInterrupt
        return perplexity(model, pieces, ctx, chunks, k, v, *rest, **named)

    monkeypatch.setattr(module, "perplexity", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny_model, tokens, PAIRS, CTX, 2, out)
    assert [r["k"] for r in read_rows(out)] == ["f16", "q8_0"]
    out.write_text(out.read_text() + '{"key": "abc", "k": "turb')  # the kill came while writing
    monkeypatch.setattr(module, "perplexity", perplexity)
    scored.clear()
    rows = sweep(tiny_model, tokens, PAIRS, CTX, 2, out)
    assert {k for k, _ in scored} == {"turbo3"}
    assert read_rows(out) == rows


def test_a_full_disk_leaves_no_half_line_and_shows_the_row(out, monkeypatch):
    append_row(out, {"key": "1", "k": "f16", "v": "f16"})
    before = out.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r'No space left.*"key": "2"') as error:
        append_row(out, {"key": "2", "k": "q8_0", "v": "f16"})
    assert "\n" not in str(error.value)
    assert out.read_bytes() == before


def test_a_damaged_line_is_named_and_kept(tiny_model, tokens, out):
    append_row(out, {"key": "1", "k": "f16", "v": "f16"})
    damaged = out.read_text() + "not json\n"
    out.write_text(damaged)
    with pytest.raises(ValueError, match=r"tiny\.jsonl, line 2"):
        sweep(tiny_model, tokens, PAIRS, CTX, 2, out)
    assert out.read_text() == damaged


def test_other_texts_contexts_and_chunks_are_other_points(tiny_model, tokens, out):
    other = [*tokens[:-1], (tokens[-1] + 1) % tiny_model.config.n_vocab]
    rows = [
        sweep(tiny_model, t, PAIRS[:1], ctx, n, out)[0]
        for t, ctx, n in [(tokens, 32, 3), (other, 32, 3), (tokens, 16, 3), (tokens, 32, 2)]
    ]
    assert len({r["key"] for r in rows}) == 4
    assert len(read_rows(out)) == 4


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("f16", "f16"), ("f16", "turbo5")], "unknown format 'turbo5'"),
        (["f16"], "a pair is two format names"),
        ([("f16", "f16", "f16")], "a pair is two format names"),
    ],
)
def test_bad_pairs_are_refused_before_any_work(tiny_model, tokens, out, scored, pairs, message):
    with pytest.raises(ValueError, match=message):
        sweep(tiny_model, tokens, pairs, CTX, 2, out)
    assert not scored
    assert not out.exists()


def test_an_executor_gives_the_same_rows(tiny_model, tokens, out, tmp_path):
    alone = sweep(tiny_model, tokens, PAIRS, CTX, 2, out)
    with ThreadPoolExecutor(3) as pool:
        together = sweep(tiny_model, tokens, PAIRS, CTX, 2, tmp_path / "b.jsonl", executor=pool)
    for a, b in zip(alone, together, strict=True):
        assert (a["key"], a["ppl"], a["kld_mean"]) == (b["key"], b["ppl"], b["kld_mean"])


def test_without_a_file(tiny_model, tokens, own_data, tmp_path):
    rows = sweep(tiny_model, tokens, PAIRS[:1], CTX, 1, out=None)
    assert rows[0]["same_top"] == 1.0
    assert not list(tmp_path.rglob("*.jsonl"))
