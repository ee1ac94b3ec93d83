"""Explorers: setting a control changes the readout and the picture, and they say the truth."""

import re

import ipywidgets
import pytest
from test_plots import sweep_rows

from tqlab import widgets
from tqlab.codebook import distortion, lloyd_max


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setenv("TQLAB_SMOKE", "1")


def numbers(explorer):
    return [float(x) for x in re.findall(r"<b>([\d.e+-]+)</b>", explorer.readout.value)]


def change(explorer, name, value):
    """Set a control; whether readout and picture both changed."""
    before = explorer.readout.value, explorer.picture.value
    explorer.controls[name].value = value
    return explorer.readout.value != before[0], explorer.picture.value != before[1]


@pytest.mark.parametrize("name", ["rotation_explorer", "codebook_explorer"])
def test_sliders_wait_for_the_mouse(name):
    explorer = getattr(widgets, name)()
    assert isinstance(explorer, ipywidgets.VBox)
    assert bytes(explorer.picture.value).startswith(b"\x89PNG")
    sliders = [c for c in explorer.controls.values() if hasattr(c, "continuous_update")]
    assert len(sliders) >= 2
    assert not any(slider.continuous_update for slider in sliders)


def test_codebook_explorer():
    explorer = widgets.codebook_explorer()
    for bits in (1, 5):
        assert change(explorer, "bits", bits) == (True, True)
        measured, exact, shannon, upper = numbers(explorer)
        assert exact == pytest.approx(distortion(*lloyd_max(bits)), abs=1e-5)
        assert measured == pytest.approx(exact, rel=0.1)  # 64 vectors of 128 values
        assert shannon < exact < upper
    assert change(explorer, "dimension", 8) == (True, True)


def test_rotation_explorer():
    explorer = widgets.rotation_explorer()
    kurtosis, rotated = numbers(explorer)[:2]
    assert kurtosis > 10
    assert rotated == pytest.approx(3, abs=0.6)
    assert change(explorer, "rotation", "none") == (True, True)
    assert numbers(explorer)[0] == numbers(explorer)[1]
    explorer.controls["outliers"].value = 1
    explorer.controls["offset"].value = 5
    assert change(explorer, "rotation", "hadamard") == (True, True)
    assert numbers(explorer)[5] > 0.4  # a constant without signs: one coordinate takes all
    assert change(explorer, "rotation", "wht") == (True, True)
    assert numbers(explorer)[5] < 0.02
    assert change(explorer, "dimension", 32) == (True, True)


def test_pair_explorer():
    explorer = widgets.pair_explorer(sweep_rows())
    assert "turbo2/turbo2" in explorer.readout.value  # the largest KL first
    explorer.controls["v"].value = "q8_0"
    assert "not among the measured" in explorer.readout.value
    assert change(explorer, "k", "turbo4") == (True, True)
    assert "turbo4/q8_0" in explorer.readout.value
    assert "KL (nats) <b>0.0750</b>" in explorer.readout.value


def test_pair_explorer_without_a_reference():
    rows = [{**row, "kld_mean": None, "kld_se": None, "same_top": None} for row in sweep_rows()]
    assert "perplexity" in widgets.pair_explorer(rows).readout.value


def test_pair_explorer_needs_rows():
    with pytest.raises(ValueError, match="at least one row"):
        widgets.pair_explorer([])
