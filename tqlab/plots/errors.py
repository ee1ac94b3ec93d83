"""Figures about codebooks, quantisation error and inner products."""

import math

import torch

from .. import codebook as cb
from ..measure import cell_rows
from .style import FALLBACK, SIDES, THEORY, Figure, axes, colour, label_points, note, style


def sphere_density(grid: torch.Tensor, dim: int) -> torch.Tensor:
    """Density of sqrt(dim) times one coordinate of a uniformly random unit vector; -> N(0, 1).

    Source: TurboQuant Lemma 1: c (1 - t^2)^((dim - 3) / 2), t = grid / sqrt(dim).
    """
    t2 = (grid.double().square() / dim).clamp(max=1)
    log_c = math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2) - 0.5 * math.log(math.pi * dim)
    return (log_c + (dim - 3) / 2 * torch.log1p(-t2)).exp()


def codebook(bits: int, dim: int | None = None, title: str | None = None) -> Figure:
    """A Lloyd-Max codebook on the density it is made for, and on that of `dim` coordinates."""
    with style():
        fig, ax = axes(size=(8.6, 3.4))
        _codebook(ax, bits, dim)
        ax.set_title(title or f"{bits}-bit Lloyd-Max codebook")
        ax.set(xlabel="coordinate x √d / norm of the vector", ylabel="probability density")
        ax.legend(loc="upper right", fontsize=8.5)
    return fig


def _codebook(ax, bits, dim=None):
    grid = torch.linspace(-4, 4, 401)
    centroids, thresholds = cb.lloyd_max(bits)
    normal = (-grid.square() / 2).exp() / math.sqrt(2 * math.pi)
    ax.plot(grid, normal, color=THEORY, linewidth=1.3, label="N(0, 1)")
    if dim:
        label, blue = f"random direction, d = {dim}", SIDES["V"]
        ax.fill_between(grid, sphere_density(grid, dim), color=blue, alpha=0.2, label=label)
    ax.vlines(thresholds, 0, 0.46, color="#aaaaaa", linewidth=0.9, linestyle=":")
    ax.plot([], [], ":", color="#aaaaaa", label="thresholds")
    ax.plot(centroids, [0.0] * len(centroids), "o", color=SIDES["K"], clip_on=False, zorder=4)
    ax.plot([], [], "o", color=SIDES["K"], label="centroids")
    ax.set(xlim=(-4, 4), ylim=(0, 0.46))


def codebooks(bits=(1, 2, 3, 4)) -> Figure:
    """The Lloyd-Max codebooks of several bit widths side by side."""
    with style():
        fig, panels = axes(1, len(bits), size=(8.6, 2.9), sharey=True)
        for ax, b in zip(panels, bits, strict=True):
            _codebook(ax, b)
            distortion = cb.distortion(*cb.lloyd_max(b))
            ax.set(title=f"{b} bit, D = {distortion:.4f}", xlabel="x √d / norm")
        panels[0].set_ylabel("probability density")
        handles, names = panels[0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower center", ncols=len(names))
    return fig


def rate_distortion(rows, title: str = "", padded: bool = False) -> Figure:
    """Relative MSE against stored bits, with the Shannon bound and TurboQuant's guarantee.

    One marker for each row["data"]; formats are named at the first. Hollow points are quoted, not
    measured here (row["source"] other than "here").
    """
    rows = [r for r in rows if r["mse"] > 0]
    with style():
        fig, ax = axes(size=(8.6, 5.4))
        low, high = min(r["bits"] for r in rows) - 0.4, max(r["bits"] for r in rows) + 0.6
        _bounds(ax, low, high)
        named = _points(ax, rows)
        ax.set(yscale="log", ylabel="relative MSE (dimensionless)", title=title, xlim=(low, high))
        what = "scales and padding" if padded else "scales"
        ax.set_xlabel(f"stored bits per value, {what} included")
        ax.set_ylim(min(r["mse"] for r in rows) / 3, max(r["mse"] for r in rows) * 3)
        ax.legend(loc="upper right")
        label_points(ax, [(r["bits"], r["mse"]) for r in named], [r["format"] for r in named])
    return fig


def _points(ax, rows) -> list:
    """Draw every row's point and the legend's entries; the rows that get a name are returned."""
    kinds = dict(zip(dict.fromkeys(r["data"] for r in rows), "osD^", strict=False))
    for r in rows:
        edge = colour(r["format"])
        look = {"mfc": edge if r["source"] == "here" else "white", "mec": edge, "mew": 1.6}
        ax.plot(r["bits"], r["mse"], kinds[r["data"]], ms=8, **look)
    for data, marker in kinds.items() if len(kinds) > 1 else ():
        ax.plot([], [], marker, color=FALLBACK, label=data)
    if any(r["source"] != "here" for r in rows):
        ax.plot([], [], "o", mfc="white", mec=FALLBACK, label="quoted, not measured here")
    return [r for r in rows if kinds[r["data"]] == "o"]


def _bounds(ax, low, high):
    x = torch.linspace(low, high, 100)
    ax.plot(x, cb.shannon_bound(x), color=THEORY, linewidth=1.3, label="Shannon bound 4⁻ᵇ")
    upper = cb.turboquant_upper_bound(x)
    label = "TurboQuant's guarantee (√3 π / 2) 4⁻ᵇ"
    ax.plot(x, upper, color=THEORY, linewidth=1.2, linestyle="--", label=label)


def cells(names=("turbo4", "turbo4_lm")) -> Figure:
    """Where a codebook's error comes from: each cell's part of the relative MSE."""
    with style():
        fig, ax = axes(size=(8.6, 3.8))
        width = 0.8 / len(names)
        for j, name in enumerate(names):
            rows = cell_rows(name)
            total = sum(r["mse"] for r in rows)
            x = [r["cell"] + (j - (len(names) - 1) / 2) * width for r in rows]
            label = f"{name}: D = {total:.5f}"
            ax.bar(x, [r["mse"] for r in rows], width, color=colour(name), label=label)
        ax.set(xlabel="cell of the codebook (left tail to right tail)")
        ax.set_ylabel("part of the relative MSE")
        ax.set_xticks(range(len(rows)))
        ax.set_title("Error by cell under N(0, 1)")
        ax.grid(axis="x", visible=False)
        ax.legend(loc="upper center")
    return fig


def inner_products(rows) -> Figure:
    """Bias and variance of <y, x^>: the MSE quantiser against the two-stage variant."""
    with style():
        fig, (left, right) = axes(1, 2, size=(8.6, 3.8))
        bits = [r["bits"] for r in rows]
        kinds = {"mse": ("MSE quantiser", SIDES["V"]), "prod": ("two-stage with QJL", SIDES["K"])}
        for key, (label, shade) in kinds.items():
            left.plot(bits, [r[f"slope_{key}"] for r in rows], "o", color=shade, label=label)
            right.plot(bits, [r[f"d_{key}"] for r in rows], "o", color=shade, label=label)
        left.plot(bits, [r["slope_theory"] for r in rows], "--", color=SIDES["V"], label="1 - D")
        left.axhline(1, color=SIDES["K"], linewidth=1, linestyle="--", label="unbiased")
        theory = [r["d_prod_theory"] for r in rows]
        right.plot(bits, theory, "--", color=SIDES["K"], label="π/2 · D(b - 1)")
        exact = [cb.distortion(*cb.lloyd_max(b)) for b in bits]
        right.plot(bits, exact, "--", color=SIDES["V"], label="D(b)")
        left.set(ylabel="slope of <y, x^> on <y, x>", title="Bias", ylim=(0.55, 1.08))
        right.set(yscale="log", ylabel="E(error)² · d / |y|²", title="Error, y independent of x")
        for ax in (left, right):
            ax.set(xlabel="bits per value (without scales)", xticks=bits)
            ax.legend(fontsize=8.5, loc="lower right" if ax is left else "upper right")
    return fig


def attention(rows) -> Figure:
    """KL of attention weights by bits, for the MSE quantiser and the two-stage variant."""
    with style():
        fig, ax = axes(size=(8.6, 3.4))
        kinds = {"mse": ("MSE quantiser", SIDES["V"]), "prod": ("two-stage with QJL", SIDES["K"])}
        for j, (key, (label, shade)) in enumerate(kinds.items()):
            x = [r["bits"] + 0.36 * (j - 0.5) for r in rows]
            bars = ax.bar(x, [r[key] for r in rows], 0.34, color=shade, label=label)
            ax.bar_label(bars, fmt="{:.3g}", fontsize=9, padding=2)
        ax.set(yscale="log", xticks=[r["bits"] for r in rows])
        ax.set_ylim(top=2 * max(r["prod"] for r in rows))
        ax.set(xlabel="bits per value of the keys (without scales)", ylabel="KL divergence (nats)")
        ax.grid(axis="x", visible=False)
        ax.legend(loc="upper right")
        note(ax, "Gaussian keys and queries, logits of variance 1; mean over queries")
    return fig
