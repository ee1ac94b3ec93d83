"""Measurements against theorems and published numbers; every tolerance has its reason."""

import math

import pytest
import torch

from tqlab import codebook, formats, measure

G = measure.gaussian(4096)  # 524288 values: relative MSE to about 0.5 %


def by(rows, key):
    return {row[key]: row for row in rows}


# ---- vectors and rotations


def test_gaussian_is_seeded():
    assert torch.equal(measure.gaussian(4, 8, seed=3), measure.gaussian(4, 8, seed=3))
    assert not torch.equal(measure.gaussian(4, 8, seed=3), measure.gaussian(4, 8, seed=4))


def test_spiked_scales_one_channel_in_sixteen():
    plain, spiked = measure.gaussian(64, 64, 0), measure.spiked(64, 64, 9.0)
    ratio = (spiked / plain).mean(0)
    assert sorted(ratio.round().tolist()) == [1.0] * 60 + [9.0] * 4


@pytest.mark.parametrize("rotation", measure.ROTATIONS)
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("seed", [None, 5])
def test_rotations_keep_inner_products(rotation, dim, seed):
    x = measure.gaussian(20, dim)
    z = measure.rotated(x, rotation, seed)
    assert torch.allclose(z @ z.T, x @ x.T, atol=1e-3)


def test_the_wht_of_128_values_is_the_formats_own():
    fmt, x = formats.get("turbo4_lm"), measure.gaussian(10)
    stored = fmt.dequantize(fmt.quantize(x), rotated=True)
    z, q = measure.round_trip(x, 4)
    size = x.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True)
    assert torch.allclose(q * size, stored, rtol=2e-3, atol=1e-4)  # the stored norm is fp16


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'spin'"):
        measure.rotated(G[:2], "spin")
    with pytest.raises(ValueError, match="'best'"):
        measure.round_trip(G[:2], 2, scale="best")
    with pytest.raises(ValueError, match="q8_0 has no codebook"):
        measure.codebook_of("q8_0")


def test_kurtosis_of_a_random_direction():
    """Fourth moment of one coordinate of a random unit vector: 3 d / (d + 2), exactly."""
    for dim in (16, 128):
        x = measure.gaussian(20000, dim)
        row = measure.coordinate_rows(x, ["haar"])[0]
        assert row["kurtosis"] == pytest.approx(3 * dim / (dim + 2), rel=0.01)


def test_one_spike_spreads_over_all_coordinates():
    """A single non-zero coordinate: kurtosis n before, and 1 (all equal) after a Hadamard."""
    rows = by(measure.coordinate_rows(torch.eye(64)), "rotation")
    assert rows["none"]["kurtosis"] == pytest.approx(64)
    assert rows["wht"]["kurtosis"] == pytest.approx(1)
    assert rows["wht"]["max_rms"] == pytest.approx(1)


def test_layer_rows_tell_the_constant_share():
    noise = measure.gaussian(4000, 64).view(2, 2000, 64)
    rows = measure.layer_rows({"K": [noise + 1.0], "V": [noise]})
    share = {row["side"]: row["offset_share"] for row in rows}
    assert share["K"] == pytest.approx(0.5, abs=0.01)  # offset 1, variance 1
    assert share["V"] < 0.002  # 1 / 2000 by chance
    assert {row["rotation"] for row in rows} == {"none", "wht"}


def test_a_constant_offset_needs_signs():
    """The published 0.552 without signs; with signs the 4-bit codebook's own 0.0086 to 0.0096."""
    rows = measure.offset_rows([5.0], 512)
    mse = {row["rotation"]: row["mse"] for row in rows}
    assert mse["hadamard"] == pytest.approx(0.552, rel=0.01)
    assert 0.0075 < mse["wht"] < 0.0115  # one rotated direction a draw: it varies
    assert 0.0075 < mse["haar"] < 0.0115
    assert all(row["low"] <= row["mse"] <= row["high"] for row in rows)


def test_haar_and_wht_have_the_same_tail():
    wht, haar = measure.spread_rows(measure.gaussian(10000))
    assert wht["p99"] == pytest.approx(haar["p99"], rel=0.05)  # 100 vectors lie above it
    assert wht["p99"] == pytest.approx(0.018, rel=0.06)
    assert wht["mean"] == pytest.approx(haar["mean"], rel=0.01)


# ---- errors of formats

PUBLISHED = {
    "q8_0": (8.5, 0.00003),
    "q4_0": (4.5, 0.00737),
    "turbo2": (2.125, 0.11882),
    "turbo3": (3.125, 0.03388),
    "turbo4": (4.25, 0.01816),
    "turbo4_lm": (4.125, 0.00917),
    "tq3_1s": (4.0, 0.02268),
    "tq4_1s": (5.0, 0.00527),
}
# On values of variance 1 as they are. A format scales every vector to it first: up to 3.5 % less.
TRELLIS = {"trellis2": (2.125, 0.0799), "trellis3": (3.125, 0.0217), "trellis4": (4.125, 0.0061)}


def test_relative_mse_of_every_format():
    """The fork's C quantisers on N(0, 1), to 1.5 % (q8_0 is published with one digit)."""
    rows = by(measure.error_rows(G), "format")
    assert set(rows) == set(PUBLISHED | TRELLIS)
    for name, (bits, mse) in (PUBLISHED | TRELLIS).items():
        rel = {"q8_0": 0.2}.get(name, 0.04 if name in TRELLIS else 0.015)
        assert rows[name]["bits"] == bits
        assert rows[name]["mse"] == pytest.approx(mse, rel=rel)
        assert rows[name]["gap"] == pytest.approx(rows[name]["mse"] * 4**bits)


def test_padded_heads_store_twice_the_bits_and_gain_nothing():
    x = measure.gaussian(4096, 64)
    rows = by(measure.error_rows(x, ["turbo3", "tq4_1s"]), "format")
    assert rows["turbo3"]["bits"] == 6.25
    assert rows["tq4_1s"]["bits"] == 5.0
    assert rows["turbo3"]["mse"] == pytest.approx(PUBLISHED["turbo3"][1], rel=0.04)


def test_blocks_of_64_store_a_scale_more_and_nothing_else():
    rows = by(measure.error_rows(measure.gaussian(4096, 64), measure.LOSSY_64), "format")
    for name, (bits, mse) in (PUBLISHED | TRELLIS).items():
        if row := rows.get(f"{name}_h64"):
            assert row["bits"] == bits + 0.125
            assert row["mse"] == pytest.approx(mse, rel=0.04)
    assert len(rows) == 6


def test_gguf_types_are_measured_too():
    rows = by(measure.gguf_error_rows(G[:1024], ["q4_1", "q5_0", "q4_0"]), "format")
    assert rows["q4_1"]["mse"] == pytest.approx(0.00612, rel=0.02)
    assert rows["q5_0"]["mse"] == pytest.approx(0.00182, rel=0.02)
    own = measure.error_rows(G[:1024], ["q4_0"])[0]
    assert rows["q4_0"]["mse"] == pytest.approx(own["mse"], rel=1e-3)
    assert (rows["q4_1"]["bits"], rows["q5_0"]["bits"]) == (5.0, 5.5)


def test_quoted_rows_say_so():
    assert all(row["source"] != "here" and row["mse"] > 0 for row in measure.quoted_rows())
    q4_k, tq4 = by(measure.quoted_rows(), "format")["q4_K"], measure.error_rows(G, ["tq4_1s"])[0]
    assert tq4["mse"] > q4_k["mse"]
    assert tq4["bits"] > q4_k["bits"]


def test_scale_of_a_vector():
    """numbers of the theory page: corrected 0.1189 / 0.0338 / 0.00917, least squares below it."""
    rows = by(measure.scale_rows(G), "bits")
    for bits, corrected, least in ((2, 0.1189, 0.1153), (3, 0.0338, 0.0335), (4, 0.00917, 0.00915)):
        assert rows[bits]["corrected"] == pytest.approx(corrected, rel=0.01)
        assert rows[bits]["least squares"] == pytest.approx(least, rel=0.01)
        assert rows[bits]["least squares"] < min(rows[bits]["corrected"], rows[bits]["plain"])


# ---- codebooks


def test_nearest_is_nearest():
    z = torch.linspace(-4, 4, 1001)
    centroids = codebook.lloyd_max(3)[0].float()
    brute = centroids[(z[:, None] - centroids).abs().argmin(1)]
    assert torch.equal(measure.nearest(z, 3), brute)


@pytest.mark.parametrize("name", ["turbo2", "turbo3", "turbo4", "turbo4_lm", "tq3_1s", "tq4_1s"])
def test_cells_add_up(name):
    cells = measure.cell_rows(name)
    assert sum(c["mass"] for c in cells) == pytest.approx(1, abs=1e-12)
    exact = codebook.distortion(*measure.codebook_of(name))
    assert sum(c["mse"] for c in cells) == pytest.approx(exact, abs=1e-12)
    assert (cells[0]["low"], cells[-1]["high"]) == (-math.inf, math.inf)


def test_the_turbo4_finding():
    rows = by(measure.codebook_rows(), "format")
    assert rows["turbo4"]["times"] > 2
    assert rows["turbo4_lm"]["times"] == pytest.approx(1, abs=1e-9)
    assert rows["turbo4"]["outer"] == pytest.approx(0.10, abs=0.001)
    assert rows["turbo4_lm"]["outer"] == pytest.approx(0.016, abs=0.001)
    assert rows["turbo3"]["times"] == pytest.approx(1, abs=0.002)


def test_index_entropy():
    """4-bit Lloyd-Max indices carry about 3.8 bits; exact and measured agree (sphere, 0.2 %)."""
    exact = by(measure.codebook_rows(), "format")["turbo4_lm"]["entropy"]
    assert exact == pytest.approx(3.77, abs=0.005)
    assert measure.index_entropy("turbo4_lm", G) == pytest.approx(exact, rel=0.002)


def test_lloyd_max_rows():
    rows = by(measure.lloyd_max_rows(), "bits")
    assert [round(rows[b]["mse"], 4) for b in (1, 2, 3, 4)] == [0.3634, 0.1175, 0.0345, 0.0095]
    assert all(r["shannon"] < r["mse"] < r["upper"] for r in rows.values())


# ---- inner products and attention


def test_inner_product_rows():
    """Slopes to 0.01 (6 draws of S); errors to 8 % (draws of S, and 1 / d)."""
    rows = by(measure.inner_product_rows(1000, repeats=6), "bits")
    for bits, slope in ((1, 2 / math.pi), (2, 0.884), (3, 0.967), (4, 0.991)):
        assert rows[bits]["slope_mse"] == pytest.approx(slope, abs=0.01)
        assert rows[bits]["slope_prod"] == pytest.approx(1, abs=0.01)
    for bits, d_prod in ((1, 1.57), (2, 0.57), (3, 0.18), (4, 0.054)):
        assert rows[bits]["d_prod"] == pytest.approx(d_prod, rel=0.08)
    assert rows[4]["d_prod_theory"] > 0.047 * 1.1  # the paper's figure inherits a rounding


def test_attention_kl():
    """Half the variance of the logits: 0.0045 / 0.0168 / 0.058, and 0.0266 for the variant."""
    rows = by(measure.attention_rows(4096, 32), "bits")
    for bits, kl in ((2, 0.058), (3, 0.0168), (4, 0.0045)):
        assert rows[bits]["mse"] == pytest.approx(kl, rel=0.1)  # 32 queries
    assert rows[4]["prod"] == pytest.approx(0.0266, rel=0.15)  # one draw of S
    assert rows[4]["prod"] > rows[3]["mse"]


# ---- claims, the setting, the model


def test_the_mixed_recipe_is_not_two_and_a_half_bits():
    assert measure.outlier_recipe_bits() == 2.25


def test_verdict():
    """One unit of the last printed digit, or 2 %: a rounding passes, a wrong number does not."""
    for printed, measured in (("0.36", 0.3634), ("0.009", 0.0095), ("1.57", 1.59), ("2", 2.9)):
        assert measure.verdict("c", "s", printed, measured)["reproduces"] is True
    for printed, measured in (("0.047", 0.0543), ("2.5", 2.25), ("1.57", 1.61)):
        assert measure.verdict("c", "s", printed, measured)["reproduces"] is False


def test_smoke(monkeypatch):
    monkeypatch.delenv("TQLAB_SMOKE", raising=False)
    assert measure.smoke(100, 3) == 100
    monkeypatch.setenv("TQLAB_SMOKE", "1")
    assert measure.smoke(100, 3) == 3


class Tiny:
    """A stand-in that writes known vectors into the cache it makes."""

    def __init__(self, shapes):
        self.shapes = shapes

    def new_cache(self, k, v, max_tokens):
        from tqlab.kvcache import KVCache

        return KVCache(self.shapes, k, v, max_tokens)

    def run(self, ids, cache):
        self.k = torch.randn(1, 2, ids.shape[1], 8)
        for i in range(len(self.shapes)):
            cache.update_and_fetch(i, self.k + i, -self.k - i)
        cache.advance(ids.shape[1])


def test_capture_kv_gives_back_what_was_written():
    from tqlab.kvcache import LayerShape

    model = Tiny([LayerShape(2, 8)] * 3)
    kv = measure.capture_kv(model, [1, 2, 3, 4, 5])
    assert [x.shape for x in kv["K"]] == [(2, 5, 8)] * 3
    assert torch.equal(kv["K"][2], model.k[0] + 2)
    assert torch.equal(kv["V"][1], -model.k[0] - 1)
    assert measure.flat(kv["K"]).shape == (30, 8)
