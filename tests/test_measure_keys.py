"""What is said about keys, against draws, brute force and planted structure; rows side by side."""

import math

import pytest
import tiny
import torch

import tqlab
from tqlab import attention, data, measure
from tqlab.calibrate import calibrate
from tqlab.calibration import Calibration, LayerStats
from tqlab.measure.keys import _mass, logit_error
from tqlab.models.base import rope_neox
from tqlab.models.turn import Turn
from tqlab.recipes import Recipe
from tqlab.transforms import balance, regular

DIM, HEADS = 8, 2


def spd(seed: int) -> torch.Tensor:
    """Random symmetric matrices with spread eigenvalues: float32 [H, D, D]."""
    x = torch.randn(HEADS, DIM, DIM, generator=torch.Generator().manual_seed(seed))
    return x @ x.mT + 0.1 * torch.eye(DIM)


STATS = LayerStats(torch.full((HEADS, DIM), 2.0), spd(1), spd(2))


def still_model(stats=STATS):
    """Stands for a model whose rope turns nothing, so that all of the mean is constant."""
    turn = Turn(torch.zeros(DIM // 2, dtype=torch.float64), rope_neox, DIM, torch.device("cpu"))

    class Model:
        def turn(self, layer, n):
            turn.reserve(n)
            return turn

    return Model(), Calibration([None, stats], None, None)


def test_logit_errors_are_those_of_drawn_noise():
    """E (q . T^-1 e)^2 over queries of second moment A and noise as long as T k, to 2 %."""
    source = torch.Generator().manual_seed(0)
    forward, inverse = balance(*regular(STATS))
    n = 200_000
    draws = torch.randn(3, HEADS, n, DIM, dtype=torch.float64, generator=source)
    roots = [torch.linalg.cholesky(x.double()) for x in (STATS.cov, STATS.second)]
    keys, queries = (x @ root.mT for x, root in zip(draws, roots, strict=False))
    length = (keys @ forward.mT).square().sum(-1).mean(1)
    logits = ((queries @ inverse) * draws[2]).sum(-1).square().mean(1) * length
    assert torch.allclose(logits, logit_error(STATS, STATS), rtol=0.02)


def test_balancing_for_these_statistics_beats_balancing_for_others():
    best = logit_error(STATS, STATS)
    for seed in range(3, 9):
        other = LayerStats(STATS.mean, spd(seed), spd(seed + 10))
        assert (logit_error(other, STATS) > best).all()


def test_key_rows_where_nothing_turns():
    """All of the mean is constant, behind rope as before; x and bal are the same transform."""
    model, calibration = still_model()
    (row,) = measure.key_rows(model, calibration)
    assert row["layer"] == 1
    assert row["before"] == pytest.approx(row["behind"])
    spread = STATS.cov.diagonal(dim1=1, dim2=2).sum(1)
    weights = STATS.second.diagonal(dim1=1, dim2=2).sum(1)
    energy = 4.0 * DIM
    assert row["before"] == pytest.approx(float((energy / (spread + energy)).mean()))
    gain = float(((spread + energy) * weights).sum() / (spread * weights).sum())
    assert row["centre"] == pytest.approx(gain, rel=1e-5)
    assert row["bal"] > row["centre"]
    # x inverts statistics to which EPS was added, and met them with it: 1e-3 a matrix
    assert row["x"] == pytest.approx(row["bal"], rel=0.05)


def test_balanced_spectra_are_one():
    rows = measure.spectrum_rows(STATS, head=1)
    plain, balanced = ([r for r in rows if r["when"] == w] for w in ("as they are", "balanced"))
    assert len(plain) == len(balanced) == DIM
    keys = [r["keys"] for r in plain]
    values = torch.linalg.eigvalsh(regular(STATS)[0][1]).flip(0)
    assert keys == pytest.approx((values / values.mean()).tolist())
    assert any(abs(r["keys"] / r["queries"] - 1) > 0.5 for r in plain)
    for row in balanced:
        assert row["keys"] == pytest.approx(row["queries"], rel=1e-6)


def test_planted_first_tokens_are_found():
    x = measure.gaussian(2 * 400, 64).view(2, 400, 64)
    x = x / x.norm(dim=-1, keepdim=True)
    short, far = x.clone(), x + 5.0
    short[:, 0] *= 0.1
    far[:, 2] = 5.0 + 3 * x[:, 2]
    rows = measure.first_token_rows({"K": [far], "V": [short]}, 8)
    found = {(r["side"], r["position"]): r["ratio"] for r in rows}
    assert found["V", 0] == pytest.approx(0.1)
    assert found["K", 2] == pytest.approx(3, rel=0.02)  # the mean of 392 keys is not exact
    assert found["K", 1] == pytest.approx(1, rel=0.02)
    assert len(rows) == 16


# ---- where attention looks


def by_hand(q, keys, scale, window, first, last):
    """(first, recent) shares of softmax weights and of keys, query by query, in plain Python."""
    shares, seen = [0.0, 0.0], [0, 0]
    heads, steps, n = q.shape[1], q.shape[2], keys.shape[2]
    for t in range(steps // 2, steps):
        place = n - steps + t
        visible = [s for s in range(place + 1) if place - s < window]
        near = [s for s in visible if place - s < last]
        start = [s for s in visible if s < first and s not in near]
        seen[0] += len(near) + len(start)
        seen[1] += len(visible)
        for h in range(heads):
            row = [math.exp(scale * float(q[0, h, t] @ keys[0, h // 2, s])) for s in visible]
            weight = dict(zip(visible, row, strict=True))
            shares[0] += sum(weight[s] for s in start) / sum(row)
            shares[1] += sum(weight[s] for s in near) / sum(row)
    count = heads * (steps - steps // 2)
    return shares[0] / count, shares[1] / count, seen[0] / seen[1]


@pytest.mark.parametrize("window", [None, 9])
def test_attention_mass_is_that_of_plain_softmaxes(window):
    shape = tqlab.kvcache.LayerShape(2, 16, window=window)
    cache = tqlab.kvcache.KVCache([shape], "f32", "f32", 24)
    k, q = measure.gaussian(2 * 24, 16, 1), measure.gaussian(4 * 24, 16, 2)
    k, q = k.view(1, 2, 24, 16), q.view(1, 4, 24, 16)
    found = _mass(q, cache.update_and_fetch(0, k, k), 0.5, first=3, last=4)
    start, recent, keys = by_hand(q, k, 0.5, window or 24, 3, 4)
    assert found["first"] == pytest.approx(start, abs=1e-6)
    assert found["recent"] == pytest.approx(recent, abs=1e-6)
    assert found["keys"] == pytest.approx(keys)
    assert found["first"] + found["recent"] + found["between"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_every_layer_is_seen_and_attention_left_as_it_was(kind, tiny_model, tmp_path):
    model, right = tiny_model, attention._partial
    if kind == "gemma3":
        tiny.gemma3()[0].write(tmp_path / "gemma3.gguf")
        model = tqlab.load_model(tmp_path / "gemma3.gguf", device="cpu")
    rows = measure.attention_mass_rows(model, list(range(5, 45)))
    assert [r["layer"] for r in rows] == list(range(len(model.layer_shapes())))
    assert attention._partial is right
    assert all(r["first"] >= 0 and r["recent"] > 0 and 0 < r["keys"] <= 1 for r in rows)


# ---- how a calibration carries over


def letters(seed: int, alphabet: str) -> data.Text:
    source = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(alphabet), (900,), generator=source)
    return data.Text(f"letters {seed}", "".join(alphabet[i] for i in picked), f"{seed:064x}")


def test_a_calibration_is_best_on_its_own_text(tiny_model):
    text, other = letters(1, "abcdefgh "), letters(2, "rstuvw lo")
    few, many = measure.transfer_rows(tiny_model, text, other, (1, 4), 48)
    assert (few["chunks"], few["tokens"], many["tokens"]) == (1, 48, 192)
    assert few["best"] == many["best"]
    for row in (few, many):
        assert row["other"] < row["best"]
    assert few["own"] > many["own"]  # 44 keys of 64 values are fitted more closely than 176
    assert few["other"] < many["other"]
    (same,) = measure.transfer_rows(tiny_model, text, text, (4,), 48)
    assert same["own"] == same["other"] == same["best"]


# ---- rows side by side


def row(k, kld, offset=0, recipe=None, ctx=512):
    base = {"model_sha256": "a", "tokens_sha256": "b", "ctx": ctx, "chunks": 2, "device": "cpu"}
    base |= {"model_file": "m.gguf", "reference": "f16/f16", "k": k, "v": k}
    return base | {"recipe": recipe, "offset": offset, "kld_mean": kld, "kld_se": kld / 10}


def test_times_are_taken_on_the_same_text_and_positions():
    rows = [
        row("turbo3", 0.3),
        row("cw3", 0.02, recipe="cw3: parts"),
        row("cw3", 0.05, offset=9, recipe="cw3: parts"),
        row("cw3", 0.05, ctx=1024, recipe="cw3: parts"),
        row("turbo3", 0.4, offset=9),
    ]
    found = measure.times_below(rows)
    assert [r["times"] for r in found] == [1, pytest.approx(15), pytest.approx(8), None, 1]
    assert [r["name"] for r in found] == ["turbo3/turbo3", "cw3", "cw3", "cw3", "turbo3/turbo3"]
    (moved, plain) = measure.moved_rows(rows)
    assert (moved["name"], moved["start"], moved["ratio"]) == ("cw3", 0.02, pytest.approx(2.5))
    assert plain["ratio"] == pytest.approx(4 / 3)
    assert measure.moved_rows([row("turbo3", 0.4, offset=9)]) == []


def test_bits_by_context_are_those_of_a_real_cache(tiny_model, tmp_path):
    path = tmp_path / "tiny.safetensors"
    calibrate(tiny_model, letters(1, "abcdefgh "), path, chunks=2, ctx=48)
    parts = {"sinks": 4, "window": 8, "transform": "centre", "calibration": str(path)}
    own = Recipe("own", "turbo3", "trellis3", **parts)
    rows = measure.context_rows(tiny_model, ["turbo3/turbo3", own], (32, 96))
    for found in rows:
        sides = (own, own) if found["name"] == "own" else ("turbo3", "turbo3")
        cache = tiny_model.new_cache(*sides, found["context"])
        assert (found["k_bits"], found["v_bits"]) == cache.stored_bits()
        assert found["bytes"] == cache.nbytes
        assert found["shared"] == cache.shared_nbytes
    short, long = (r["bits"] for r in rows if r["name"] == "own")
    assert short > long  # the exact tokens are a smaller part of more


def test_rows_carry_their_model(tiny_model):
    rows = measure.of_models([tiny_model], lambda m: [{"layers": len(m.layer_shapes())}])
    assert rows == [{"model_file": tiny_model.path.name, "layers": len(tiny_model.layer_shapes())}]
