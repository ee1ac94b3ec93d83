"""Figures about a model's weights: what packing them costs, and which experts are used."""

from .style import THEORY, Figure, axes, colour, label_points, note, style
from .sweep import bars, log_safe, slope

_UNPACKED = 16  # bits a weight of the originals that KL is measured from
_LOAD = "#8fb8de"


def kld_of_weights(rows) -> Figure:
    """KL divergence from the original weights against bits a weight, every recipe named.

    Rows: measure.weight_rows. The original's own row has no KL to draw: the note says so.
    """
    found = [r for r in rows if r["bits"] < _UNPACKED * 0.95]
    with style():
        fig, ax = axes(size=(8.6, 4.6))
        for r in found:
            bars(ax, r["bits"], r["kld_mean"], log_safe(r["kld_mean"], r["kld_se"]))
            ax.plot(r["bits"], r["kld_mean"], "o", ms=9, mec="white", color=colour(r["recipe"]))
        ax.set(yscale="log", ylabel="KL from the original weights\n(nats per token)")
        ax.set_xlabel("bits per weight, over the whole file")
        ax.set_title("What packing the weights costs")
        ax.margins(x=0.13, y=0.13)
        slope(ax, found, "the best recipe")
        ax.legend(loc="lower left")
        note(ax, "bars: one standard error; the original is the reference: KL 0 by definition")
        label_points(ax, [(r["bits"], r["kld_mean"]) for r in found], [r["recipe"] for r in found])
    return fig


def expert_loads(rows) -> Figure:
    """Share of the tokens that every expert gets, the busiest first, a panel a layer.

    Rows: measure.expert_loads. The line is the share of each if all were alike.
    """
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    with style():
        fig, grid = axes(1, len(layers), (8.6, 3.4), sharey=True, squeeze=False)
        for ax, layer in zip(grid[0], layers, strict=True):
            _load_panel(ax, [r for r in rows if r["layer"] == layer])
            ax.set_title(f"layer {layer}", fontsize=10)
        grid[0][0].set_ylabel("share of tokens (%)")
        fig.supxlabel("experts, the busiest first", fontsize=10.5)
        handles, names = grid[0][0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower right")
    return fig


def _load_panel(ax, rows) -> None:
    shares = sorted((100 * r["share"] for r in rows), reverse=True)
    ax.bar(range(1, len(shares) + 1), shares, 1.0, color=_LOAD)
    uniform = 100 * rows[0]["uniform"]
    ax.axhline(
        uniform, color=THEORY, linewidth=1.1, linestyle="--", label=f"all alike: {uniform:.1f} %"
    )
    unused = sum(r["count"] == 0 for r in rows)
    ax.text(0.95, 0.95, f"never used: {unused}", transform=ax.transAxes, ha="right", va="top")
    ax.set_xlim(0, len(shares) + 1)
    ax.grid(axis="x", visible=False)
