"""Figures about files, caches and generated text."""

from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from .style import FALLBACK, THEORY, Figure, axes, colour, style

_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def _unit(most: float) -> tuple[float, str]:
    """A decimal unit in which `most` bytes is at least 1."""
    return next((u for u in _BYTES if most >= u[0]), _BYTES[-1])


def bytes_by_role(rows, title: str = "") -> Figure:
    """Bytes of every role of tensors before and after, each bar divided by type."""
    roles = list(dict.fromkeys(r["role"] for r in rows))
    totals = {w: sum(r["bytes"] for r in rows if r["when"] == w) for w in ("before", "after")}
    unit, name = _unit(max(totals.values()))
    with style():
        fig, ax = axes(size=(8.6, 1.3 + 0.62 * len(roles)))
        for when, place in (("before", -0.19), ("after", 0.19)):
            _stack(ax, [r for r in rows if r["when"] == when], roles, place, unit)
        ax.set_yticks(range(len(roles)), roles)
        ax.set_ylim(len(roles) - 0.4, -0.6)
        ax.set_xlabel(f"{name}; upper bar: before, lower bar: after")
        ax.set_xlim(0, 1.12 * _longest(rows) / unit)
        ax.grid(axis="y", visible=False)
        both = " to ".join(f"{total / unit:.4g}" for total in totals.values())
        ax.set_title(f"{title}: {both} {name}" if title else f"{both} {name}")
        types = dict.fromkeys(r["type"] for r in rows)
        ax.legend(handles=[Patch(color=colour(t), label=t) for t in types], loc="lower right")
    return fig


def _longest(rows) -> float:
    """Bytes of the longest bar."""
    sums: dict[tuple, int] = {}
    for row in rows:
        key = row["role"], row["when"]
        sums[key] = sums.get(key, 0) + row["bytes"]
    return max(sums.values())


def _stack(ax, rows, roles, place, unit) -> None:
    for y, role in enumerate(roles):
        left = 0.0
        for row in (r for r in rows if r["role"] == role):
            width = row["bytes"] / unit
            look = {"color": colour(row["type"]), "edgecolor": "white", "linewidth": 0.6}
            ax.barh(y + place, width, 0.36, left, **look)
            left += width
        text = f"{left:.3g}" if left >= 0.01 else "< 0.01"
        end = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        ax.annotate(text, (left, y + place), **end)


def kl_along(rows) -> Figure:
    """KL of every token of a text, one panel a row; the tokens stand under the last panel."""
    low = min(max(min(r["kld"]), 1e-6) for r in rows) / 2
    high = 2 * max(max(r["kld"]) for r in rows)
    with style():
        fig, panels = axes(len(rows), 1, (8.6, 1.2 + 1.15 * len(rows)), sharex=True, squeeze=False)
        for ax, row in zip(panels[:, 0], rows, strict=True):
            _kl_panel(ax, row)
            ax.set(yscale="log", ylim=(low, max(high, 10 * low)))
        pieces = [p.replace("\n", "↵").replace("$", r"\$") for p in rows[0]["pieces"]]
        ax.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=8)
        ax.set_xlim(-0.7, len(pieces) - 0.3)
        ax.set_xlabel("the text's tokens, in order")
        fig.supylabel("KL divergence from f16/f16 (nats)", fontsize=10.5)
    return fig


def _kl_panel(ax, row) -> None:
    label = row.get("label") or f"{row['k']}/{row['v']}"
    tint = colour(row.get("format", row["v"]))
    kld = [max(x, 1e-7) for x in row["kld"]]
    ax.plot(kld, "o-", color=tint, markersize=3.5, linewidth=1, clip_on=True)
    mean = row["kld_mean"]
    ax.axhline(max(mean, 1e-7), color=THEORY, linewidth=1, linestyle="--")
    ax.set_title(f"{label}: mean {mean:.3g}, same top {row['same_top']:.0%}", fontsize=9.5)


def cache_bytes(rows) -> Figure:
    """Cache size against context, a panel a model; models whose caches are alike share one."""
    panels = _alike(rows)
    with style():
        fig, grid = axes(1, len(panels), (8.6, 4.0), sharey=True, squeeze=False)
        for ax, (models, own) in zip(grid[0], panels, strict=True):
            _cache_panel(ax, own)
            ax.set_title("\nand ".join(models), fontsize=9.8)
            ax.set_xlabel("context (tokens)")
        grid[0][0].set_ylabel("KV cache (GiB)")
        grid[0][0].yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
        handles, names = grid[0][0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower center", ncols=len(names))
    return fig


def _alike(rows) -> list[tuple[list[str], list]]:
    """(models, rows of the first) for every group of models with the same bytes everywhere."""
    groups: dict[tuple, tuple[list[str], list]] = {}
    for model in dict.fromkeys(r["model"] for r in rows):
        own = [r for r in rows if r["model"] == model]
        key = tuple((r["k"], r["v"], r["context"], r["bytes"]) for r in own)
        groups.setdefault(key, ([], own))[0].append(model)
    return list(groups.values())


def _cache_panel(ax, rows) -> None:
    for pair in dict.fromkeys((r["k"], r["v"]) for r in rows):
        own = [r for r in rows if (r["k"], r["v"]) == pair]
        x, y = [r["context"] for r in own], [r["bytes"] / 2**30 for r in own]
        ax.plot(x, y, "o-", color=colour(pair[1]), markersize=4, label="/".join(pair))
    ring = [r["ring"] / 2**30 for r in rows if (r["k"], r["v"]) == (rows[0]["k"], rows[0]["v"])]
    ax.plot(x, ring, ":", color=FALLBACK, label=f"sliding rings alone, {rows[0]['k']}")
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1024:g}k"))
    ax.set_xticks(x[1::2] or x)
    ax.minorticks_off()
