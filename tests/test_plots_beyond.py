"""Figures of notebook 06: a panel a model, every recipe named, labels apart."""

import itertools

import pytest
import torch

from tqlab import measure, plots
from tqlab.calibration import LayerStats

FILES = ("one.gguf", "two.gguf")
KLD = {
    "turbo3/turbo3": 0.3,
    "turbo2/turbo2": 1.2,
    "t3": 0.31,
    "w3": 0.04,
    "cw3": 0.02,
    "best3": 0.005,
}


def sweep_rows(files=FILES):
    """Rows as tqlab.sweep writes them, with made-up numbers."""
    return measure.times_below(
        [
            {
                "model_file": file,
                "model_sha256": file,
                "tokens_sha256": "b",
                "ctx": 512,
                "chunks": 2,
                "device": "cpu",
                "reference": "f16/f16",
                "recipe": None if "/" in name else f"{name}: parts",
                "k": name.split("/")[0],
                "v": name.split("/")[0],
                "bits": 3.25 + (name in ("w3", "cw3", "best3")) * 0.9 + 0.05 * i,
                "kld_mean": kld * (1 + files.index(file)),
                "kld_se": kld / 20,
            }
            for file in files
            for i, (name, kld) in enumerate(KLD.items())
        ]
    )


def of_files(rows):
    return [{"model_file": file} | row for file in FILES for row in rows]


def titles(fig):
    return [ax.get_title("left") for ax in fig.axes if ax.get_title("left")]


def texts(ax):
    return {t.get_text() for t in ax.texts}


def test_recipes_are_diamonds_and_formats_are_not():
    fig = plots.kld_by_model(sweep_rows())
    assert titles(fig) == ["one, context 512", "two, context 512"]
    for ax in fig.axes:
        assert set(KLD) <= texts(ax)
        points = [line for line in ax.lines if len(line.get_xdata()) == 1]
        shapes = {float(p.get_ydata()[0]): p.get_marker() for p in points}
        assert list(shapes.values()).count("D") == 4
        assert ax.get_yscale() == "log"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_labels_of_the_headline_do_not_cover_each_other(n):
    files = ("one.gguf", "two.gguf", "three.gguf")[:n]
    fig = plots.kld_by_model(sweep_rows(files))
    fig.canvas.draw()
    for ax in (ax for ax in fig.axes if ax.axison):  # a spare one holds the legend
        boxes = [t.get_window_extent() for t in ax.texts if t.get_text() in KLD]
        assert len(boxes) == len(KLD)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert any(t.get_visible() and t.get_text() for t in ax.get_xticklabels())


def test_titles_of_three_spectra_stand_apart():
    stats = LayerStats(torch.ones(1, 8), torch.eye(8)[None], torch.eye(8)[None])
    rows = [r | {"layer": 19} for r in measure.spectrum_rows(stats)]
    files = [f"{name}-2b-instruct-q4_k_m.gguf" for name in ("first", "second", "third")]
    fig = plots.spectra([{"model_file": file} | row for file in files for row in rows])
    fig.canvas.draw()
    boxes = [ax._left_title.get_window_extent() for ax in fig.axes[:3]]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_every_panel_shows_all_its_points():
    rows = sweep_rows()
    rows[-1] |= {"bits": 1.5, "kld_mean": 9.0}
    fig = plots.kld_by_model(rows)
    for ax in fig.axes:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        found = [r for r in rows if ax.get_title("left").startswith(r["model_file"][:3])]
        assert len(found) == len(KLD)
        assert all(left < r["bits"] < right and low < r["kld_mean"] < high for r in found)


def test_the_reference_is_no_point():
    rows = sweep_rows()
    rows.append(rows[0] | {"k": "f16", "v": "f16", "kld_mean": 1e-9, "bits": 16.0})
    ax = plots.kld_by_model(rows).axes[0]
    assert "f16/f16" not in texts(ax)
    assert ax.get_xlim()[1] < 8


def test_cures_stand_in_the_order_asked_for():
    groups = {"one change": ["t3"], "together": ["w3", "cw3"]}
    fig = plots.cures(sweep_rows(), groups)
    assert titles(fig) == ["one", "two"]
    names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert names == ["turbo3/turbo3", "t3", "w3", "cw3"]
    assert "÷ 15" in texts(fig.axes[0])
    shown = [line for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert len([line for line in shown if len(line.get_xdata())]) == 4


def test_attention_bars_reach_one_hundred():
    rows = [{"layer": i, "first": 0.2, "recent": 0.3 + i / 10, "keys": 0.1} for i in range(3)]
    rows = of_files([r | {"between": 1 - r["first"] - r["recent"]} for r in rows])
    ax = plots.attention_mass(rows).axes[0]
    tops = sorted(bar.get_y() + bar.get_height() for bar in ax.patches)[-3:]
    assert tops == pytest.approx([100] * 3)
    (line,) = [line for line in ax.lines if len(line.get_ydata())]
    assert list(line.get_ydata()) == pytest.approx([10, 10])


def test_other_figures_have_a_panel_a_model_and_axis_labels():
    x = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    stats = LayerStats(torch.ones(1, 8), x @ x.mT, x.mT @ x)
    kv = {"K": [x] * 3, "V": [x] * 3}
    gains = {"before": 0.8, "behind": 0.4, "centre": 2.0, "bal": 20.0, "x": 7.0}
    figures = [
        plots.keys_by_layer(of_files([{"layer": i} | gains for i in range(3)])),
        plots.spectra(of_files([r | {"layer": 1} for r in measure.spectrum_rows(stats)])),
        plots.first_tokens(of_files(measure.first_token_rows(kv, 3))),
    ]
    for fig in figures:
        assert [title.split(",")[0] for title in titles(fig)] == ["one", "two"]
        assert fig.axes[-1].get_xlabel()
        assert fig.axes[0].get_ylabel()
        assert fig.png().startswith(b"\x89PNG")


def test_bits_by_context_draws_a_line_a_recipe():
    bits = {"turbo3/turbo3": (6.25, 6.25), "cw3": (4.2, 3.5), "best3": (4.2, 3.5)}
    rows = [
        {"name": name, "context": context, "bits": value}
        for name, values in bits.items()
        for context, value in zip((512, 2048), values, strict=True)
    ]
    (ax,) = plots.bits_by_context(rows).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert drawn == {"turbo3/turbo3": [6.25, 6.25], "cw3, best3": [4.2, 3.5]}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["512", "2048"]
