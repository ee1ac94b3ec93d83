"""Figures say what their rows say: units, baselines, one colour a format, readable labels."""

import base64
import itertools
import math

import pytest
import torch

from tqlab import formats, measure, plots
from tqlab.tables import Table

BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5, "turbo2": 4.25, "turbo3": 6.25, "turbo4": 8.5}
KLD = {
    ("f16", "f16"): 0.0,
    ("q8_0", "q8_0"): 0.0008,
    ("q8_0", "turbo4"): 0.0166,
    ("turbo4", "q8_0"): 0.075,
    ("q8_0", "turbo3"): 0.03,
    ("turbo3", "q8_0"): 0.17,
    ("q8_0", "turbo2"): 0.083,
    ("turbo4", "turbo4"): 0.092,
    ("q4_0", "q4_0"): 0.147,
    ("turbo3", "turbo3"): 0.205,
    ("turbo2", "turbo2"): 1.06,
}


def sweep_rows():
    """Rows as tqlab.sweep writes them, with made-up numbers."""
    return [
        {
            "k": k,
            "v": v,
            "ppl": 32 * (1 + kld),
            "ppl_se": 2.0,
            "kld_mean": kld,
            "kld_se": kld / 10,
            "same_top": 1 - kld / 5,
            "k_bits": BITS[k],
            "v_bits": BITS[v],
            "bits": (BITS[k] + BITS[v]) / 2,
            "cache_nbytes": int((BITS[k] + BITS[v]) * 368640),
        }
        for (k, v), kld in KLD.items()
    ]


def labelled(fig, *words):
    """Whether some axis label of the figure holds each word."""
    texts = [t for ax in fig.axes for t in (ax.get_xlabel(), ax.get_ylabel())]
    return all(any(word in text for text in texts) for word in words)


def legend_texts(fig):
    legends = [ax.get_legend() for ax in fig.axes] + fig.legends
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def test_every_format_has_its_own_colour():
    colours = [plots.colour(name) for name in formats.names()]
    assert len(set(colours)) == len(colours)
    assert plots.colour("no such format") not in colours


def test_rate_distortion_draws_points_and_bounds():
    rows = measure.error_rows(measure.gaussian(64)) + measure.quoted_rows()
    fig = plots.rate_distortion(rows)
    assert labelled(fig, "bits per value", "relative MSE")
    assert {"Shannon bound 4⁻ᵇ", "quoted, not measured here"} <= set(legend_texts(fig))
    points = {
        (line.get_xdata()[0], line.get_ydata()[0]): line
        for line in fig.axes[0].lines
        if line.get_marker() == "o" and len(line.get_xdata()) == 1
    }
    for row in rows:
        line = points[row["bits"], row["mse"]]
        assert line.get_markeredgecolor() == plots.colour(row["format"])
        assert (line.get_markerfacecolor() == "white") == (row["source"] != "here")


@pytest.mark.parametrize("draw", [plots.kld_against_bits, plots.ppl_against_bytes])
def test_labels_do_not_cover_each_other(draw):
    fig = draw(sweep_rows())
    fig.canvas.draw()
    labels = [t for t in fig.axes[0].texts if "/" in t.get_text() and "\n" not in t.get_text()]
    boxes = [t.get_window_extent() for t in labels]
    assert len(boxes) >= len(KLD) - 1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= fig.bbox.x1 for box in boxes)


def test_kld_against_bits_names_every_measured_pair():
    fig = plots.kld_against_bits(sweep_rows(), highlight=("turbo3", "turbo3"))
    texts = {t.get_text() for t in fig.axes[0].texts}
    assert {f"{k}/{v}" for (k, v), kld in KLD.items() if kld} <= texts
    assert fig.axes[0].get_yscale() == "log"
    assert any("padding" in text for text in texts)
    rings = [line for line in fig.axes[0].lines if line.get_markersize() > 15]
    assert [ring.get_xdata()[0] for ring in rings] == [6.25]


def test_ppl_against_bytes_draws_the_baseline():
    fig = plots.ppl_against_bytes(sweep_rows())
    assert labelled(fig, "MB", "perplexity")
    assert [text.split(",")[0] for text in legend_texts(fig)] == ["f16/f16"]
    assert fig.axes[0].get_xlim()[1] < 10  # MB: the reference's 11.8 do not stretch the axis


def side_points(fig):
    """Values drawn for K (red circles) and V (blue squares), from left to right."""
    lines = {line.get_marker(): line for line in fig.axes[0].lines}
    return [[round(float(y), 4) for y in lines[mark].get_ydata()] for mark in "os"]


def test_k_or_v_pairs_the_sides():
    fig = plots.k_or_v(sweep_rows())
    names = [t.get_text().split()[0] for t in fig.axes[0].get_xticklabels()]
    assert names == ["turbo3", "turbo2", "turbo4"]
    assert side_points(fig) == [[0.17, 0.075], [0.03, 0.083, 0.0166]]
    assert {"×5.7", "×4.5"} <= {text.get_text() for text in fig.axes[0].texts}
    assert labelled(fig, "q8_0", "nats")
    shades = {line.get_color() for line in fig.axes[0].lines if line.get_marker() in ("o", "s")}
    assert len(shades) == 2


def test_k_or_v_without_one_side_or_both():
    one = [row for row in sweep_rows() if row["k"] == "q8_0"]
    fig = plots.k_or_v(one)
    assert side_points(fig) == [[], [0.083, 0.03, 0.0166]]
    assert any("K alone: not measured" in text for text in legend_texts(fig))
    for rows in ([], [row for row in sweep_rows() if row["k"] == row["v"]]):
        assert plots.k_or_v(rows).png().startswith(b"\x89PNG")


def test_the_reference_does_not_stretch_the_axes():
    """Its KL is rounding noise: it is named in a corner, and no point is drawn for it."""
    rows = sweep_rows()
    rows[0] |= {"kld_mean": 1e-8, "kld_se": 1e-8, "reference": "f16/f16"}
    ax = plots.kld_against_bits(rows).axes[0]
    assert ax.get_xlim()[1] < 10
    assert ax.get_ylim()[0] > 1e-4
    assert any("f16/f16, the reference" in text.get_text() for text in ax.texts)
    chosen = plots.kld_against_bits(rows, highlight=("f16", "f16")).axes[0]
    assert any(text.get_weight() == "bold" for text in chosen.texts)


def test_labels_stand_nearer_to_their_own_point():
    fig = plots.kld_against_bits(sweep_rows())
    fig.canvas.draw()
    ax = fig.axes[0]
    centres = {
        f"{r['k']}/{r['v']}": ax.transData.transform((r["bits"], r["kld_mean"]))
        for r in sweep_rows()[1:]
    }
    for label in (t for t in ax.texts if t.get_text() in centres):
        box = label.get_window_extent()
        gaps = {name: math.dist(nearest(box, xy), xy) for name, xy in centres.items()}
        assert min(gaps, key=gaps.get) == label.get_text()


def test_a_ring_keeps_labels_outside():
    ax = plots.kld_against_bits(sweep_rows(), highlight=("turbo3", "turbo3")).axes[0]
    ax.figure.canvas.draw()
    label = next(t for t in ax.texts if t.get_text() == "turbo3/turbo3")
    ring = next(line for line in ax.lines if line.get_markersize() > 15)
    xy = ax.transData.transform(ring.get_xydata()[0])
    radius = ring.get_markersize() / 144 * ax.figure.dpi
    assert math.dist(nearest(label.get_window_extent(), xy), xy) > radius


def nearest(box, xy):
    """The point of a box that lies nearest to xy."""
    return [min(max(xy[0], box.x0), box.x1), min(max(xy[1], box.y0), box.y1)]


def test_here_and_quoted_draws_every_shared_pair():
    rows = measure.beside_fork(sweep_rows())
    fig = plots.here_and_quoted(rows)
    assert labelled(fig, "quoted", "here")
    assert legend_texts(fig) == ["equal"]
    assert {row["pair"] for row in rows} <= {text.get_text() for text in fig.axes[0].texts}
    assert plots.here_and_quoted([]).png().startswith(b"\x89PNG")


def test_sensitivity_draws_both_sides():
    rows = [{"layer": i, "side": s, "kld_mean": 0.01 / (i + 1)} for s in "kv" for i in range(4)]
    fig = plots.sensitivity(rows)
    assert len(legend_texts(fig)) == 2
    assert labelled(fig, "layer", "nats")


def test_the_sphere_density_is_one():
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    for dim in (4, 16, 128):
        density = plots.sphere_density(grid, dim)
        assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-3)
        variance = float(torch.trapezoid(density * grid.square(), grid))
        assert variance == pytest.approx(1, abs=2e-3)


def other_figures():
    x = measure.gaussian(256, 64)
    kv = {"K": [x.view(2, 128, 64)] * 3, "V": [x.view(2, 128, 64)] * 3}
    yield lambda: plots.heads(x)
    yield lambda: plots.histograms({"K": x, "V": x})
    yield lambda: plots.layers(measure.layer_rows(kv))
    yield lambda: plots.offsets(measure.offset_rows((0, 1), 16, draws=2))
    yield lambda: plots.coordinates_of(x, "wht")
    yield lambda: plots.codebooks()
    yield lambda: plots.codebook(3, 16)
    yield lambda: plots.cells()
    yield lambda: plots.inner_products(measure.inner_product_rows(50, repeats=1))
    yield lambda: plots.attention(measure.attention_rows(64, 4))


@pytest.mark.parametrize("draw", list(other_figures()))
def test_figures_have_axis_labels_and_show_themselves(draw):
    fig = draw()
    assert all(ax.get_xlabel() for ax in fig.axes if not hasattr(ax, "_colorbar"))
    data, metadata = fig._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["width"] == round(100 * fig.get_size_inches()[0])


def test_style_does_not_leak():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.codebook(2).png()
    assert dict(matplotlib.rcParams) == before


# ---- tables


def test_table_text_and_html():
    rows = [{"k": "q8_0", "kld_mean": 0.00081234, "ok": True}, {"k": "<b>", "kld_mean": None}]
    table = Table(rows, {"k": "K", "kld_mean": "KL (nats)", "ok": "ok"})
    assert repr(table).splitlines()[0].split() == ["K", "KL", "(nats)", "ok"]
    assert "0.0008123" in repr(table)
    html = table._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert html.count("<tr>") == 3
    assert "yes" in html


def test_table_formats_and_columns():
    rows = [{"a": 1.23456, "b": 2}]
    assert "1.2" in repr(Table(rows, ["a"], {"a": "{:.1f}"}))
    assert "b" not in repr(Table(rows, ["a"]))
    assert repr(Table([], {"a": "A"})) == "A"
