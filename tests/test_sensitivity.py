"""Which layers suffer, and quotes beside our own rows."""

import pytest
import torch
from test_plots import sweep_rows

from tqlab import measure

CTX = 32


@pytest.fixture
def tokens(tiny_model):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(tiny_model.config.n_vocab, (3 * CTX,), generator=generator).tolist()


def test_every_layer_and_side_is_measured_alone(tiny_model, tokens, own_data):
    rows = measure.sensitivity_rows(tiny_model, tokens, "turbo2", CTX)
    layers = range(len(tiny_model.layer_shapes()))
    assert [(r["side"], r["layer"]) for r in rows] == [(s, i) for s in "kv" for i in layers]
    assert all(r["kld_mean"] > 0 and r["format"] == "turbo2" for r in rows)
    one = measure.sensitivity_rows(tiny_model, tokens, "turbo2", CTX, layers=[1])
    assert [r["kld_mean"] for r in one] == [r["kld_mean"] for r in rows if r["layer"] == 1]


def test_protecting_layers_costs_bits_and_buys_quality(tiny_model, tokens, own_data):
    ranking = [
        {"side": side, "layer": i, "kld_mean": 1 / (1 + abs(i - 1))}
        for side in "kv"
        for i in range(len(tiny_model.layer_shapes()))
    ]
    rows = measure.protection_rows(tiny_model, tokens, ranking, "turbo2", "f16", n=1, ctx=CTX)
    assert [row["choice"] for row in rows] == ["no layer", "both ends", "the most sensitive"]
    assert [row["layers"] for row in rows][::2] == ["none", "1"]
    none, *kept = rows
    assert all(row["k_bits"] > none["k_bits"] for row in kept)
    assert min(row["kld_mean"] for row in kept) < none["kld_mean"]


def test_padding_rows():
    rows = {row["format"]: row for row in measure.padding_rows(64, ("q8_0", "turbo4", "tq4_1s"))}
    assert [row["stored"] for row in rows.values()] == [8.5, 8.5, 5.0]
    assert [row["bits"] for row in rows.values()] == [8.5, 4.25, 5.0]
    assert all(row["stored"] == row["bits"] for row in measure.padding_rows(256))


def test_quotes_stand_beside_our_rows_in_our_order():
    rows = measure.beside_fork(sweep_rows())
    assert [row["rank"] for row in rows] == list(range(1, 9))
    assert [row["quoted_rank"] for row in rows] == list(range(1, 9))
    assert all(row["times"] == pytest.approx(1) for row in rows)  # sweep_rows has the fork's KL
    assert {row["v"] for row in rows if row["remark"]} == {"turbo2"}
    assert all(row["ppl_ratio"] > 1 for row in rows)


def test_quotes_need_the_reference_row():
    with pytest.raises(ValueError, match="f16/f16"):
        measure.beside_fork(sweep_rows()[1:])


def test_symmetric_rows_say_what_is_quoted():
    files = ("M-Instruct.gguf", "A-small.gguf")
    own = [row | {"model_file": file, "text": "t"} for file in files for row in sweep_rows()]
    rows = measure.symmetric_rows(own[::-1][len(own) // 2 :] + own[len(own) // 2 :])
    here = [(row["data"], row["format"]) for row in rows if row["source"] == "here"]
    assert here == [(m, f) for m in ("M, t", "A-small, t") for f in ("q4_0", "turbo4")]
    assert all(row["kld_se"] is None for row in rows if row["source"] != "here")
    assert {row["format"] for row in rows} == {"q4_0", "turbo4"}
