"""Figures over the rows of a KV-cache sweep."""

from .style import SIDES, THEORY, Figure, axes, colour, label_points, note, style

_HALVES = "left half of a point: the format of K, right half: of V"
_SPREAD = "the bars share the text's own spread: compare pairs by KL, which is paired"
_PADDING = "bits: the cache's measured bytes over its values, with scales and the padding of heads"


def _pair(row) -> str:
    return f"{row['k']}/{row['v']}"


def _marker(ax, x, y, row, highlight) -> None:
    """A point in two halves: left the colour of K's format, right of V's."""
    if highlight == (row["k"], row["v"]):
        ax.plot(x, y, "o", ms=21, mfc="none", mec=SIDES["K"], mew=2.2, zorder=5)
    halves = {"mfc": colour(row["k"]), "markerfacecoloralt": colour(row["v"])}
    ax.plot(x, y, "o", ms=10.5, fillstyle="left", mec="white", mew=0.7, zorder=4, **halves)


def _bars(ax, x, y, error) -> None:
    ax.errorbar(x, y, error, fmt="none", ecolor="#777777", elinewidth=1.1, capsize=2.5, zorder=3)


def kld_against_bits(rows, highlight: tuple[str, str] | None = None) -> Figure:
    """KL divergence to the reference cache against stored bits, every point named K/V.

    `highlight` rings one (k, v) pair. Rows whose KL is zero or absent are the reference itself.
    """
    found = [r for r in rows if r.get("kld_mean")]
    with style():
        fig, ax = axes(size=(8.6, 5.2))
        for r in found:
            _bars(ax, r["bits"], r["kld_mean"], _log_safe(r["kld_mean"], r.get("kld_se") or 0))
            _marker(ax, r["bits"], r["kld_mean"], r, highlight)
        ax.set(yscale="log", ylabel="KL divergence to the reference cache (nats per token)")
        ax.set_xlabel("stored bits per value, mean of K and V")
        ax.set_title("What a format costs in quality, by what it really stores")
        ax.margins(x=0.12, y=0.12)
        if found:
            _slope(ax, found)
            ax.legend(loc="lower left")
        note(ax, f"{_HALVES}\n{_PADDING}")
        points = [(r["bits"], r["kld_mean"]) for r in found]
        label_points(ax, points, [_pair(r) for r in found])
    return fig


def _log_safe(value, error):
    """Lower and upper bar lengths that stay above zero on a log axis."""
    return [[min(error, 0.9 * value)], [error]]


def _slope(ax, rows) -> None:
    """The Shannon bound's slope through the point nearest to it: KL grows with squared error."""
    anchor = min(r["kld_mean"] * 4 ** r["bits"] for r in rows)
    x = sorted({r["bits"] for r in rows})
    span, limits = [x[0], x[-1]], ax.get_ylim()
    y = [anchor * 4.0**-b for b in span]
    ax.plot(span, y, "--", color=THEORY, linewidth=1.1, label="slope of the Shannon bound, 4⁻ᵇ")
    ax.set_ylim(limits)


def ppl_against_bytes(rows, highlight: tuple[str, str] | None = None) -> Figure:
    """Perplexity against the bytes the cache really held, with the f16/f16 baseline."""
    with style():
        fig, ax = axes(size=(8.6, 5.0))
        base = next((r for r in rows if (r["k"], r["v"]) == ("f16", "f16")), None)
        for r in rows:
            x = r["cache_nbytes"] / 1e6
            _bars(ax, x, r["ppl"], r.get("ppl_se") or 0)
            _marker(ax, x, r["ppl"], r, highlight)
        if base:
            ax.axhline(base["ppl"], color=THEORY, linewidth=1.1, linestyle="--", label="f16/f16")
            ax.legend(loc="upper right")
        ax.set(yscale="log", ylabel="perplexity (bars: one standard error)")
        _plain_ticks(ax, [r["ppl"] for r in rows])
        ax.set_xlabel("measured bytes of the cache (MB)")
        ax.set_title("Perplexity by measured cache size")
        ax.margins(x=0.1, y=0.1)
        note(ax, f"{_HALVES}\n{_SPREAD}")
        points = [(r["cache_nbytes"] / 1e6, r["ppl"]) for r in rows]
        label_points(ax, points, [_pair(r) for r in rows])
    return fig


def _plain_ticks(ax, values) -> None:
    """A handful of round numbers on a log axis in place of powers of ten."""
    steps = [m * 10**e for e in range(-1, 5) for m in (1, 1.5, 2, 3, 4, 5, 7)]
    ticks = [t for t in steps if 0.8 * min(values) <= t <= 1.25 * max(values)]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()


def k_or_v(rows, base: str | None = None) -> Figure:
    """Which of K and V matters: every format on one side only, the other side kept at `base`.

    `base` None takes whichever of f16 and q8_0 stands opposite more often.
    """
    found = {(r["k"], r["v"]): r for r in rows if r.get("kld_mean")}
    base = base or max(("f16", "q8_0"), key=lambda b: sum(b in pair for pair in found))
    names = sorted(
        {f for pair in found if base in pair for f in pair} - {base},
        key=lambda f: -max(found[p]["kld_mean"] for p in ((f, base), (base, f)) if p in found),
    )
    with style():
        fig, ax = axes(size=(8.6, 3.9))
        for j, side in enumerate(SIDES):
            pairs = [(f, base) if side == "K" else (base, f) for f in names]
            _side_bars(ax, [found.get(p) for p in pairs], j - 0.5, side)
        ax.set(yscale="log", ylabel="KL divergence (nats per token)")
        ax.set_xticks(range(len(names)), names)
        ax.set_xlabel(f"format of one side; the other side stays {base}")
        ax.grid(axis="x", visible=False)
        if found.get((base, base)):
            level = found[base, base]["kld_mean"]
            ax.axhline(level, color=THEORY, linewidth=1.1, linestyle="--", label=f"{base}/{base}")
        ax.legend(loc="upper right")
    return fig


def _side_bars(ax, rows, shift, side) -> None:
    placed = [(i + 0.38 * shift, r) for i, r in enumerate(rows) if r]
    x, y = [p for p, _ in placed], [r["kld_mean"] for _, r in placed]
    ax.bar(x, y, 0.36, color=SIDES[side], label=f"only {side} in that format")
    for position, row in placed:
        error = _log_safe(row["kld_mean"], row.get("kld_se") or 0)
        _bars(ax, position, row["kld_mean"], error)


def sensitivity(rows) -> Figure:
    """KL when one layer's K or V alone is quantised: rows of layer, side ("k" | "v"), kld_mean."""
    with style():
        fig, ax = axes(size=(8.6, 3.8))
        for side, shade in SIDES.items():
            found = sorted((r for r in rows if r["side"].upper() == side), key=lambda r: r["layer"])
            x, y = [r["layer"] for r in found], [r["kld_mean"] for r in found]
            ax.plot(x, y, "-o", ms=4, color=shade, label=f"{side} of this layer only")
            if y:
                mean = sum(y) / len(y)
                ax.axhline(mean, color=shade, linewidth=1, linestyle=":")
        ax.set(yscale="log", xlabel="layer", ylabel="KL divergence (nats per token)")
        note(ax, "dotted: mean over the layers")
        ax.legend()
    return fig
