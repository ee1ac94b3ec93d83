"""Comparisons of two measurements of one thing: K against V, and here against elsewhere."""

from .style import SIDES, THEORY, Figure, axes, label_points, note, style
from .sweep import bars, log_safe, marker, pair_name


def k_or_v(rows, base: str | None = None) -> Figure:
    """Which of K and V matters: every format on one side only, the other side kept at `base`.

    `base` None takes whichever of f16 and q8_0 stands opposite more often. A side that was not
    measured is left out, and the figure says so.
    """
    found = {(r["k"], r["v"]): r for r in rows if r.get("kld_mean")}
    base = base or _common_base(found)
    names = _one_sided(found, base)
    with style():
        fig, ax = axes(size=(8.6, 4.2))
        for side in SIDES:
            _one_side(ax, found, names, base, side)
        for i, name in enumerate(names):
            _link(ax, i, found.get((name, base)), found.get((base, name)))
        ax.set(yscale="log", ylabel="KL divergence (nats per token)")
        ax.set_xticks(range(len(names)), [_with_bits(found, n, base) for n in names])
        ax.set_xlim(-0.6, max(len(names), 1) - 0.2)
        ax.set_xlabel(f"format of one side; the other side stays {base}")
        ax.set_title("The same format on K alone and on V alone")
        ax.grid(axis="x", visible=False)
        if (base, base) in found:
            level = found[base, base]["kld_mean"]
            ax.axhline(level, color=THEORY, linewidth=1.1, linestyle="--", label=f"{base}/{base}")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper right")
    return fig


def _common_base(found) -> str:
    mixed = [pair for pair in found if pair[0] != pair[1]]
    return max(("q8_0", "f16"), key=lambda b: sum(b in pair for pair in mixed))


def _one_sided(found, base) -> list[str]:
    """Formats that stand opposite the base, the worst first."""
    worst = {}
    for pair, row in found.items():
        if pair[0] != pair[1] and base in pair:
            name = pair[pair[0] == base]
            worst[name] = max(worst.get(name, 0), row["kld_mean"])
    return sorted(worst, key=worst.get, reverse=True)


def _with_bits(found, name, base) -> str:
    row, key = found.get((name, base)), "k_bits"
    if row is None:
        row, key = found[base, name], "v_bits"
    return f"{name}\n{row[key]:g} bits"


def _one_side(ax, found, names, base, side) -> None:
    pairs = [(name, base) if side == "K" else (base, name) for name in names]
    placed = [(i, found[p]) for i, p in enumerate(pairs) if p in found]
    for x, row in placed:
        bars(ax, x, row["kld_mean"], log_safe(row["kld_mean"], row.get("kld_se") or 0))
    x, y = [i for i, _ in placed], [row["kld_mean"] for _, row in placed]
    label = f"only {side} in that format" if placed else f"{side} alone: not measured"
    shape = {"K": "o", "V": "s"}[side]
    ax.plot(x, y, shape, ms=9, mec="white", color=SIDES[side], zorder=4, label=label)


def _link(ax, x, k_row, v_row) -> None:
    """A line from V's point to K's with the ratio of the two beside it."""
    if k_row is None or v_row is None:
        return
    k, v = k_row["kld_mean"], v_row["kld_mean"]
    ax.plot([x, x], [v, k], color="#bbbbbb", linewidth=3, zorder=1)
    beside = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
    ax.annotate(f"×{k / v:.2g}", (x, (k * v) ** 0.5), **beside)


def here_and_quoted(rows) -> Figure:
    """KL measured here against KL quoted from elsewhere, pair by pair.

    Rows: k, v, kld_mean, kld_se, quoted_kld (measure.beside_fork).
    """
    with style():
        fig, ax = axes(size=(6.6, 5.6))
        points = [(r["quoted_kld"], r["kld_mean"]) for r in rows]
        for (x, y), row in zip(points, rows, strict=True):
            bars(ax, x, y, log_safe(y, row.get("kld_se") or 0))
            marker(ax, x, y, row, None)
        ax.set(xscale="log", yscale="log", ylabel="KL measured here (nats per token)")
        ax.set_xlabel("KL as quoted, on another text (nats per token)")
        ax.set_title("Two texts, two programs, one model")
        ax.margins(0.16)
        if rows:
            ends = [min(map(min, points)) / 2, max(map(max, points)) * 2]
            ax.plot(ends, ends, "--", color=THEORY, linewidth=1.1, label="equal")
            ax.set(xlim=ends, ylim=ends)
            ax.legend(loc="upper left")
        note(ax, "left half of a point: the format of K, right half: of V")
        label_points(ax, points, [pair_name(r) for r in rows])
    return fig
