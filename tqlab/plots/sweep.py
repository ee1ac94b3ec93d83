"""Figures over the rows of a KV-cache sweep."""

from matplotlib.patheffects import withStroke

from ..sweep import pair_name
from .style import SIDES, THEORY, Figure, axes, colour, label_points, note, style

_HALVES = "left half of a point: the format of K, right half: of V; bars: one standard error"
_SPREAD = "the bars share the text's own spread: compare pairs by KL, which is paired"
_PADDING = "bits: the cache's measured bytes over its values, with scales and the padding of heads"


def _is_reference(row) -> bool:
    return pair_name(row) == row.get("reference", "f16/f16")


def marker(ax, x, y, row, highlight) -> None:
    """A point in two halves: left the colour of K's format, right of V's."""
    if highlight == (row["k"], row["v"]):
        ax.plot(x, y, "o", ms=21, mfc="none", mec=SIDES["K"], mew=2.2, zorder=5)
    halves = {"mfc": colour(row["k"]), "markerfacecoloralt": colour(row["v"])}
    ax.plot(x, y, "o", ms=9, fillstyle="left", mec="white", mew=0.7, zorder=4, **halves)


def bars(ax, x, y, error, wide: float = 6.5) -> None:
    """Error bars whose caps are wider than a point, so that short ones still show."""
    look = {"ecolor": "#444444", "elinewidth": 1.2, "capsize": wide, "capthick": 1.2}
    ax.errorbar(x, y, error, fmt="none", zorder=3, **look)


def kld_against_bits(rows, highlight: tuple[str, str] | None = None) -> Figure:
    """KL divergence to the reference cache against stored bits, every point named K/V.

    `highlight` rings one (k, v) pair. The reference itself has no KL to draw: an arrow says where
    it lies.
    """
    found = [r for r in rows if r.get("kld_mean") and not _is_reference(r)]
    with style():
        fig, ax = axes(size=(8.6, 5.6))
        for r in found:
            bars(ax, r["bits"], r["kld_mean"], log_safe(r["kld_mean"], r.get("kld_se") or 0))
            marker(ax, r["bits"], r["kld_mean"], r, highlight)
        ax.set(yscale="log", ylabel="KL divergence to the reference cache (nats per token)")
        ax.set_xlabel("stored bits per value, mean of K and V")
        ax.set_title("What a format costs in quality, by what it really stores")
        ax.margins(x=0.13, y=0.13)
        if found:
            slope(ax, found)
            ax.legend(loc="lower left")
        for r in filter(_is_reference, rows):
            _reference_arrow(ax, r, highlight)
        note(ax, f"{_HALVES}\n{_PADDING}")
        points = [(r["bits"], r["kld_mean"]) for r in found]
        label_points(ax, points, [pair_name(r) for r in found])
    return fig


def _reference_arrow(ax, row, highlight) -> None:
    """A note in the corner: the reference lies far beyond it, at more bits and no divergence."""
    chosen = highlight == (row["k"], row["v"])
    shade, weight = (SIDES["K"], "bold") if chosen else ("#555555", "normal")
    text = f"{pair_name(row)}, the reference:\n{row['bits']:g} bits, KL 0 by definition"
    look = {"color": shade, "weight": weight, "fontsize": 9, "zorder": 6}
    written = ax.text(0.94, 0.02, text, transform=ax.transAxes, ha="right", **look)
    written.set_path_effects([withStroke(linewidth=3, foreground="white")])
    arrow = {"arrowstyle": "-|>", "color": shade, "linewidth": 1.6}
    ax.annotate("", (0.995, 0.005), (0.95, 0.075), "axes fraction", arrowprops=arrow)


def log_safe(value, error):
    """Lower and upper bar lengths that stay above zero on a log axis."""
    return [[min(error, 0.9 * value)], [error]]


def slope(ax, rows, whose: str = "the best pair") -> None:
    """The Shannon bound's slope through the best of the rows: KL grows with squared error."""
    anchor = min(r["kld_mean"] * 4 ** r["bits"] for r in rows)
    limits = {"xlim": ax.get_xlim(), "ylim": ax.get_ylim()}
    span = [limits["xlim"][0], max(r["bits"] for r in rows)]
    y = [anchor * 4.0**-b for b in span]
    label = f"slope of the Shannon bound, 4⁻ᵇ, through {whose}"
    ax.plot(span, y, "--", color=THEORY, linewidth=1.1, label=label)
    ax.set(**limits)


def ppl_against_bytes(rows, highlight: tuple[str, str] | None = None) -> Figure:
    """Perplexity against the bytes the cache really held, with the f16/f16 baseline."""
    base = next((r for r in rows if (r["k"], r["v"]) == ("f16", "f16")), None)
    found = [r for r in rows if r is not base]
    with style():
        fig, ax = axes(size=(8.6, 5.6))
        for r in found:
            bars(ax, r["cache_nbytes"] / 1e6, r["ppl"], r.get("ppl_se") or 0, wide=3.5)
            marker(ax, r["cache_nbytes"] / 1e6, r["ppl"], r, highlight)
        if base:
            _baseline(ax, base)
        ax.set(yscale="log", ylabel="perplexity")
        _plain_ticks(ax, [r["ppl"] for r in rows])
        ax.set_xlabel("measured bytes of the cache (MB)")
        ax.set_title("Perplexity by measured cache size")
        ax.margins(x=0.13, y=0.1)
        note(ax, f"{_HALVES}\n{_SPREAD}")
        points = [(r["cache_nbytes"] / 1e6, r["ppl"]) for r in found]
        label_points(ax, points, [pair_name(r) for r in found])
    return fig


def _baseline(ax, row) -> None:
    """The f16/f16 cache as a level and a band of one standard error: its size would only stretch
    the axis."""
    ppl, error = row["ppl"], row.get("ppl_se") or 0
    size = f"f16/f16, {row['cache_nbytes'] / 1e6:.1f} MB, ± one standard error"
    ax.axhspan(ppl - error, ppl + error, color="#eeeeee", zorder=0)
    ax.axhline(ppl, color=THEORY, linewidth=1.1, linestyle="--", label=size)
    ax.legend(loc="upper right")


def _plain_ticks(ax, values) -> None:
    """A handful of round numbers on a log axis in place of powers of ten."""
    steps = [m * 10**e for e in range(-1, 5) for m in (1, 1.5, 2, 3, 4, 5, 7)]
    ticks = [t for t in steps if 0.8 * min(values) <= t <= 1.25 * max(values)]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()


def sensitivity(rows) -> Figure:
    """KL when one layer's K or V alone is quantised: rows of layer, side ("k" | "v"), kld_mean."""
    with style():
        fig, ax = axes(size=(8.6, 4.0))
        for side, shade in SIDES.items():
            found = sorted((r for r in rows if r["side"].upper() == side), key=lambda r: r["layer"])
            _layer_line(ax, found, side, shade)
        names = ", ".join(sorted({r["format"] for r in rows if "format" in r}))
        ax.set_title(f"One layer in {names or 'the format'}, everything else in f16")
        ax.set(yscale="log", xlabel="layer", ylabel="KL divergence (nats per token)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        note(ax, "bars: one standard error; dotted: mean over the layers")
        ax.legend(loc="upper right")
    return fig


def _layer_line(ax, rows, side, shade) -> None:
    x, y = [r["layer"] for r in rows], [r["kld_mean"] for r in rows]
    ax.plot(x, y, "-o", ms=4, color=shade, label=f"{side} of this layer only")
    for row in rows:
        error = log_safe(row["kld_mean"], row.get("kld_se") or 0)
        bars(ax, row["layer"], row["kld_mean"], error, wide=2.5)
    if y:
        ax.axhline(sum(y) / len(y), color=shade, linewidth=1, linestyle=":")
