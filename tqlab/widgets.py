"""Interactive figures: controls, a readout and a picture that follow one another.

Every explorer is a box with `controls` (by name), `readout` (HTML) and `picture` (PNG): setting a
control's `.value` redraws both, in a notebook as in a test. Nothing redraws while a slider moves.
"""

from collections.abc import Callable
from functools import partial

import ipywidgets as w

from . import measure, plots
from .codebook import distortion, lloyd_max, shannon_bound, turboquant_upper_bound
from .measure import smoke
from .plots.style import ROTATION_LABELS

_WIDE = {"description_width": "110px"}


class Explorer(w.VBox):
    """Controls above a readout and a picture; `draw(**values)` gives (html, Figure).

    Fields: controls (dict of widgets by the name `draw` takes), readout, picture.
    """

    def __init__(self, draw: Callable, **controls: w.Widget):
        self.controls, self._draw = controls, draw
        self.readout, self.picture = w.HTML(), w.Image(format="png", width=860)
        for control in controls.values():
            control.style = _WIDE
            control.observe(self._redraw, names="value")
        self._redraw()
        super().__init__([*controls.values(), self.readout, self.picture])

    def _redraw(self, _change=None) -> None:
        html, figure = self._draw(**{name: c.value for name, c in self.controls.items()})
        self.readout.value = html
        self.picture.value = figure.png(scale=1.5)


def rotation_explorer(n: int = 1024, seed: int = 0) -> Explorer:
    """How large an outlier can a rotation spread, and when do signs matter?

    Controls: dimension, outliers (factor on one channel in 16), offset (constant added to all),
    rotation ("none", "hadamard", "wht", "haar").
    """
    kinds = [(label, kind) for kind, label in ROTATION_LABELS.items()]
    once = {"continuous_update": False}
    return Explorer(
        partial(_draw_rotation, smoke(n, 64), seed),
        dimension=w.SelectionSlider(
            options=[16, 32, 64, 128, 256, 512], value=128, description="dimension", **once
        ),
        outliers=w.FloatSlider(8, min=1, max=64, step=1, description="outlier factor", **once),
        offset=w.FloatSlider(0, min=0, max=5, step=0.25, description="offset / σ", **once),
        rotation=w.Dropdown(options=kinds, value="wht", description="rotation"),
    )


def _draw_rotation(n, seed, dimension, outliers, offset, rotation):
    x = measure.spiked(n, dimension, outliers, offset, seed)
    before, after = (measure.coordinate_rows(x, [r], seed)[0] for r in ("none", rotation))
    items = [
        f"{label} <b>{before[key]:.3g}</b> → <b>{after[key]:.3g}</b>"
        for key, label in (
            ("kurtosis", "kurtosis (Gaussian: 3)"),
            ("max_rms", "largest / rms"),
            ("mse_4bit", "relative MSE at 4 bits"),
        )
    ]
    return " &nbsp; ".join(items), plots.coordinates_of(x, rotation, "one vector")


def codebook_explorer(n: int = 1024, seed: int = 0) -> Explorer:
    """The Lloyd-Max codebook by bits and dimension, its measured error and the theory.

    Controls: bits (1 to 6), dimension of the random directions that are quantised.
    """
    once = {"continuous_update": False}
    return Explorer(
        partial(_draw_codebook, smoke(n, 64), seed),
        bits=w.IntSlider(3, min=1, max=6, description="bits", **once),
        dimension=w.SelectionSlider(
            options=[4, 8, 16, 32, 64, 128, 256], value=128, description="dimension", **once
        ),
    )


def _draw_codebook(n, seed, bits, dimension):
    z = measure.coordinates(measure.gaussian(max(n, 8192 // dimension), dimension, seed))
    measured = measure.relative_mse(z, measure.nearest(z, bits))
    exact = distortion(*lloyd_max(bits))
    html = (
        f"relative MSE measured <b>{measured:.5f}</b> &nbsp; Lloyd-Max on N(0, 1) "
        f"<b>{exact:.5f}</b> &nbsp; Shannon bound <b>{shannon_bound(bits):.5f}</b> &nbsp; "
        f"TurboQuant's guarantee <b>{turboquant_upper_bound(bits):.5f}</b>"
    )
    return html, plots.codebook(bits, dimension)


def pair_explorer(rows) -> Explorer:
    """Pick a format for K and one for V: the sweep's numbers for that pair, ringed in the figure.

    `rows` as tqlab.sweep gives them. Raises: ValueError without rows.
    """
    if not rows:
        raise ValueError("pair_explorer needs at least one row of a sweep")
    found = {(r["k"], r["v"]): r for r in rows}
    first = max(found.values(), key=lambda r: r.get("kld_mean") or 0)
    ks, vs = (list(dict.fromkeys(r[side] for r in rows)) for side in ("k", "v"))
    return Explorer(
        partial(_draw_pair, found),
        k=w.Dropdown(options=ks, value=first["k"], description="K"),
        v=w.Dropdown(options=vs, value=first["v"], description="V"),
    )


def _draw_pair(found, k, v):
    figure = plots.kld_against_bits(list(found.values()), highlight=(k, v))
    row = found.get((k, v))
    return (_describe(row) if row else f"<b>{k}/{v}</b> is not among the measured pairs"), figure


def _describe(row) -> str:
    items = [f"<b>{row['k']}/{row['v']}</b>"]
    for key, label, spec in (
        ("k_bits", "bits of K", ".3f"),
        ("v_bits", "bits of V", ".3f"),
        ("cache_nbytes", "cache bytes", ",d"),
        ("ppl", "perplexity", ".2f"),
        ("ppl_se", "±", ".2f"),
        ("kld_mean", "KL (nats)", ".4f"),
        ("kld_se", "±", ".4f"),
    ):
        if row.get(key) is not None:
            items.append(f"{label} <b>{row[key]:{spec}}</b>")
    if row.get("same_top") is not None:
        items.append(f"same top token <b>{row['same_top']:.1%}</b>")
    return " &nbsp; ".join(items)
