"""Figures about keys, and about recipes beside the plain formats: a panel a model."""

from pathlib import Path
from statistics import quantiles

from matplotlib.patheffects import withStroke

from ..sweep import pair_name
from .style import FALLBACK, SIDES, THEORY, Figure, axes, colour, label_points, note, style
from .sweep import bars, log_safe, marker, slope

OURS = "#d9480f"  # recipes, where the plain formats have their own colours
_CURES = {"centre": "#8c5a2b", "x": "#159a80", "bal": "#d6317f"}
_KINDS = {"centre": "centred", "x": "balanced behind rope (x)", "bal": "balanced before rope (bal)"}
_WHERE = {"first": "#14477d", "recent": "#3f8fd0", "between": "#dddddd"}


def _by_model(rows) -> dict[str, list]:
    """Rows by the file of their model, named without its ending."""
    found: dict[str, list] = {}
    for row in rows:
        found.setdefault(Path(row["model_file"]).stem, []).append(row)
    return found


def _panels(rows, height: float, lines: int = 1, **options):
    """(figure, [model, its rows, its column of axes]), one column a model."""
    models = _by_model(rows)
    fig, grid = axes(lines, len(models), (8.6, height), squeeze=False, **options)
    for ax, model in zip(grid[0], models, strict=True):
        ax.set_title(model, fontsize=10)
    return fig, [(*item, column) for item, column in zip(models.items(), grid.T, strict=True)]


def _legend_below(fig, ax) -> None:
    handles, names = ax.get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))


def keys_by_layer(rows) -> Figure:
    """Share of the constant part of keys, and what each transform should gain, by layer.

    Rows: measure.key_rows, of_models.
    """
    with style():
        fig, columns = _panels(rows, 6.0, 2, sharex="col", sharey="row")
        for _, found, (top, low) in columns:
            layers = [r["layer"] for r in found]
            for key, dash, label in (
                ("before", ":", "before rope"),
                ("behind", "-", "behind rope"),
            ):
                y = [100 * r[key] for r in found]
                top.plot(layers, y, dash, marker=".", color=SIDES["K"], label=label)
            for kind, shade in _CURES.items():
                low.plot(layers, [r[kind] for r in found], "-", color=shade, label=_KINDS[kind])
            low.set(yscale="log", xlabel="layer")
            low.xaxis.get_major_locator().set_params(integer=True)
            low.axhline(1, color=THEORY, linewidth=1, linestyle="--")
            top.set_ylim(0, 100)
        _, _, (top, low) = columns[0]
        top.set_ylabel("energy of keys in\ntheir mean (%)")
        low.set_ylabel("squared logit error,\nplain / transformed (theory)")
        top.legend(loc="lower right", fontsize=8.5)
        _legend_below(fig, low)
    return fig


def spectra(rows) -> Figure:
    """Keys' variance and queries' energy along the same directions, as they are and balanced.

    Rows: measure.spectrum_rows with layer, of_models.
    """
    with style():
        fig, columns = _panels(rows, 5.6, 2, sharex="col", sharey=True)
        for model, found, column in columns:
            for ax, when in zip(column, ("as they are", "balanced"), strict=True):
                _spectrum(ax, [r for r in found if r["when"] == when])
            column[0].set_title(f"{model},\nlayer {found[0]['layer']}", fontsize=10)
            column[1].set_xlabel("direction, the keys' widest first")
        for ax, when in zip(columns[0][2], ("as they are", "balanced"), strict=True):
            ax.set_ylabel(f"{when}:\nenergy / mean")
        _legend_below(fig, columns[0][2][0])
    return fig


def _spectrum(ax, rows) -> None:
    x = [r["direction"] + 1 for r in rows]
    ax.plot(x, [r["queries"] for r in rows], ".", ms=4, color=SIDES["V"], label="queries")
    ax.plot(x, [r["keys"] for r in rows], color=SIDES["K"], label="keys, centred")
    ax.set(yscale="log")


def attention_mass(rows) -> Figure:
    """Who gets the attention, layer by layer. Rows: measure.attention_mass_rows, of_models."""
    with style():
        fig, columns = _panels(rows, 3.9, sharey=True)
        for _, found, (ax,) in columns:
            base = [0.0] * len(found)
            for where, shade in _WHERE.items():
                height = [100 * r[where] for r in found]
                layers = [r["layer"] for r in found]
                ax.bar(layers, height, 0.9, base, color=shade, label=f"{where} tokens")
                base = [a + b for a, b in zip(base, height, strict=True)]
            share = 100 * sum(r["keys"] for r in found) / len(found)
            label = "first and recent, share of keys"
            ax.axhline(share, color=OURS, linewidth=1.6, linestyle="--", label=label)
            ax.set(xlabel="layer", ylim=(0, 100))
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(axis="x", visible=False)
        columns[0][2][0].set_ylabel("share of attention (%)")
        _legend_below(fig, columns[0][2][0])
    return fig


def first_tokens(rows) -> Figure:
    """Lengths of the first tokens' keys and values over the usual: median and quartiles of layers.

    Rows: measure.first_token_rows, of_models.
    """
    with style():
        fig, columns = _panels(rows, 3.6, sharey=True)
        for _, found, (ax,) in columns:
            for side, shade in SIDES.items():
                _lengths(ax, [r for r in found if r["side"] == side], shade, side)
            ax.axhline(1, color=THEORY, linewidth=1, linestyle="--")
            ax.set(xlabel="position", ylim=(0, None))
        columns[0][2][0].set_ylabel("length / usual length")
        _legend_below(fig, columns[0][2][0])
    return fig


def _lengths(ax, rows, shade, side) -> None:
    places = sorted({r["position"] for r in rows})
    spread = [[r["ratio"] for r in rows if r["position"] == p] for p in places]
    spread = [quantiles(x * 2 if len(x) == 1 else x, n=4, method="inclusive") for x in spread]
    low, middle, high = zip(*spread, strict=True)
    name = {"K": "keys, from their mean", "V": "values"}[side]
    ax.plot(places, middle, "-o", ms=4, color=shade, label=name)
    ax.fill_between(places, low, high, color=shade, alpha=0.15, linewidth=0)


def cures(rows, groups: dict[str, list[str]], base: str = "turbo3/turbo3") -> Figure:
    """KL of every cure on a log axis with how many times it lies below the base.

    Rows: measure.times_below. `groups`: names of rows under a heading each, in the order shown.
    """
    names = [base, *(name for group in groups.values() for name in group)]
    shades = dict(zip(groups, (SIDES["V"], OURS, "#159a80"), strict=False))
    with style():
        rows = [r for r in rows if r["name"] in names]
        fig, columns = _panels(rows, 1.5 + 0.3 * len(names), sharey=True, sharex=True)
        for _, found, (ax,) in columns:
            for heading, group in groups.items():
                ax.plot([], [], "o", color=shades[heading], label=heading)
                for row in (r for r in found if r["name"] in group):
                    _cure(ax, row, names.index(row["name"]), shades[heading])
            for row in (r for r in found if r["name"] == base):
                ax.axvline(row["kld_mean"], color=THEORY, linewidth=1, linestyle="--")
                _cure(ax, row, 0, FALLBACK)
            ax.set(xscale="log", xlabel="KL divergence (nats per token)")
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.4, -0.6)
            ax.margins(x=0.17)
        _legend_below(fig, columns[0][2][0])
    return fig


def _cure(ax, row, y, shade) -> None:
    x, error = row["kld_mean"], row.get("kld_se") or 0
    ax.errorbar(x, y, xerr=log_safe(x, error), fmt="none", ecolor="#444444", capsize=5)
    ax.plot(x, y, "o", ms=6, color=shade, mec="white", zorder=4)
    if row["times"] and y:
        text = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        times = f"{row['times']:.0f}" if row["times"] >= 9.95 else f"{row['times']:.1f}"
        label = ax.annotate(f"÷ {times}", (x, y), **text)
        label.set_path_effects([withStroke(linewidth=2.2, foreground="white")])


def kld_by_model(rows) -> Figure:
    """KL against measured bits: plain formats in their colours, recipes as diamonds; 2 in a line.

    The reference has no KL to draw and is left out.
    """
    rows = [r for r in rows if r.get("kld_mean") and pair_name(r) != r.get("reference", "f16/f16")]
    models = _by_model(rows)
    lines = -(-len(models) // 2)
    with style():
        size = (8.6 if len(models) == 1 else 10.4, 1.0 + 4.4 * lines)
        shared = {"sharex": True, "sharey": True}
        fig, grid = axes(lines, min(2, len(models)), size, squeeze=False, **shared)
        for ax, (model, found) in zip(grid.flat, models.items(), strict=False):
            _quality(ax, found)
            ax.set_title(f"{model}, context {_contexts(found)}", fontsize=10)
            ax.set_xlabel("stored bits per value, everything counted")
            ax.tick_params(labelbottom=True)  # a panel may have none below it
        for ax in grid[:, 0]:
            ax.set_ylabel("KL divergence to f16 (nats per token)")
        for ax, found in zip(grid.flat, models.values(), strict=False):  # limits are shared by now
            if plain := [r for r in found if not r.get("recipe")]:
                slope(ax, plain, "the best format")
        if spare := list(grid.flat[len(models) :]):
            spare[0].axis("off")
            spare[0].legend(*grid[0, 0].get_legend_handles_labels(), loc="center")
        else:
            _legend_below(fig, grid[0, 0])
        for ax, found in zip(grid.flat, models.values(), strict=False):
            points = [(r["bits"], r["kld_mean"]) for r in found]
            label_points(ax, points, [pair_name(r) for r in found], fontsize=8.5)
    return fig


def _contexts(rows) -> str:
    return ", ".join(str(ctx) for ctx in sorted({r["ctx"] for r in rows}))


def _quality(ax, rows) -> None:
    for r in rows:
        bars(ax, r["bits"], r["kld_mean"], log_safe(r["kld_mean"], r.get("kld_se") or 0))
        if r.get("recipe"):
            ax.plot(r["bits"], r["kld_mean"], "D", ms=7, color=OURS, mec="white", zorder=4)
        else:
            marker(ax, r["bits"], r["kld_mean"], r, None)
    ax.plot([], [], "o", color=colour("turbo3"), label="formats alone (K/V)")
    if any(r.get("recipe") for r in rows):
        ax.plot([], [], "D", color=OURS, label="recipes")
    ax.set(yscale="log")
    ax.margins(x=0.14, y=0.12)


def bits_by_context(rows) -> Figure:
    """Stored bits against context, one line for names alike. Rows: measure.context_rows."""
    lines: dict[tuple, list[str]] = {}
    for name in dict.fromkeys(r["name"] for r in rows):
        line = tuple((r["context"], r["bits"]) for r in rows if r["name"] == name)
        lines.setdefault(line, []).append(name)
    with style():
        fig, ax = axes(size=(8.6, 4.2))
        for line, names in lines.items():
            look = {"ls": "--", "color": THEORY} if "/" in names[0] else {"marker": "o", "ms": 4}
            ax.plot(*zip(*line, strict=True), label=", ".join(names), **look)
        ticks = sorted({r["context"] for r in rows})
        ax.set(xscale="log", xlabel="context (tokens)", ylabel="stored bits per value")
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        fig.legend(loc="outside right center", fontsize=8.5)
        note(ax, "K and V, scales, padding and exact tokens counted; a model's own matrices apart")
    return fig
