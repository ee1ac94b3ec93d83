"""Figures about what a rotation does to coordinates."""

import math

import torch
from torch import Tensor

from ..measure import ROTATIONS, coordinates, rotated
from .style import ROTATION_COLOURS, ROTATION_LABELS, SIDES, THEORY, Figure, axes, note, style


def _normal(grid: Tensor) -> Tensor:
    return (-grid.square() / 2).exp() / math.sqrt(2 * math.pi)


def heads(x: Tensor, rotation: str = "wht", title: str = "keys of one head") -> Figure:
    """One head's vectors as a picture, before and after a rotation, on one colour scale.

    Shapes: x float [T, D]
    """
    with style():
        fig, panels = axes(1, 2, size=(8.6, 3.6), sharey=True)
        parts = {"before": rotated(x, "none"), "after": rotated(x, rotation)}
        limit, crisp = float(x.abs().quantile(0.999)), {"interpolation": "nearest"}
        for ax, (when, z) in zip(panels, parts.items(), strict=True):
            image = ax.imshow(
                z.numpy(), aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, **crisp
            )
            name = f" ({ROTATION_LABELS[rotation]})" if when == "after" else ""
            ax.set(title=f"{title}, {when}{name}", xlabel="coordinate")
            ax.grid(False)
        panels[0].set_ylabel("token position")
        fig.colorbar(image, ax=panels, label="value (model units)", pad=0.015, extend="both")
    return fig


def histograms(sides: dict[str, Tensor], rotations=ROTATIONS) -> Figure:
    """Density of the coordinates by rotation, log scale, beside the Gaussian.

    Shapes: each value float [N, n]; vectors are scaled to rms 1.
    """
    with style():
        fig, panels = axes(1, len(sides), size=(8.6, 3.9), sharey=True, squeeze=False)
        grid = torch.linspace(-7, 7, 281)
        for ax, (side, x) in zip(panels[0], sides.items(), strict=True):
            for rotation in rotations:
                _density(ax, coordinates(x, rotation), grid, rotation)
            ax.plot(grid, _normal(grid), "--", color=THEORY, linewidth=1.2, label="N(0, 1)")
            ax.set(yscale="log", ylim=(2e-5, 1.6), xlim=(-7, 7), title=side)
            ax.set_xlabel("coordinate / rms of its vector")
        panels[0][0].set_ylabel("probability density")
        handles, names = panels[0][0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower center", ncols=len(names))
    return fig


def _density(ax, z, grid, rotation):
    counts = torch.histc(z, bins=140, min=-7, max=7)
    step = 14 / 140
    middle = torch.linspace(-7 + step / 2, 7 - step / 2, 140)
    density = counts / z.numel() / step
    seen = counts > 0
    style_of = {"color": ROTATION_COLOURS[rotation], "label": ROTATION_LABELS[rotation]}
    ax.plot(middle[seen], density[seen], linewidth=1.5, **style_of)


def layers(rows) -> Figure:
    """Kurtosis before and after rotation, and the share of a constant vector, layer by layer.

    `rows` as measure.layer_rows gives them.
    """
    with style():
        fig, (left, right) = axes(1, 2, size=(8.6, 3.7))
        for side, colour in SIDES.items():
            for rotation, dash in (("none", ":"), ("wht", "-")):
                found = [r for r in rows if (r["side"], r["rotation"]) == (side, rotation)]
                x, y = [r["layer"] for r in found], [r["kurtosis"] for r in found]
                name = f"{side}, {'rotated' if rotation == 'wht' else 'as it is'}"
                left.plot(x, y, dash, color=colour, marker=".", label=name)
            right.plot(x, [100 * r["offset_share"] for r in found], "-o", color=colour, ms=4)
            right.annotate(f" {side}", (x[-1], 100 * found[-1]["offset_share"]), color=colour)
        left.axhline(3, color=THEORY, linewidth=1, linestyle="--", label="Gaussian: 3")
        left.set(yscale="log", xlabel="layer", ylabel="kurtosis (dimensionless)")
        left.set_yticks([2, 3, 5, 10, 20], ["2", "3", "5", "10", "20"])
        left.minorticks_off()
        left.set_title("Rotation removes the tails")
        left.legend(fontsize=8.5, loc="upper right")
        left.set_ylim(top=60)
        right.set(xlabel="layer", ylabel="energy in the mean vector (%)", ylim=(0, 100))
        right.set_title("No rotation removes the offset")
    return fig


def offsets(rows) -> Figure:
    """Error against a constant offset, by rotation; bands are the least and greatest draw."""
    with style():
        fig, ax = axes(size=(8.6, 3.9))
        for rotation in ("hadamard", "wht", "haar"):
            found = [r for r in rows if r["rotation"] == rotation]
            x, colour = [r["ratio"] for r in found], ROTATION_COLOURS[rotation]
            label, dash = ROTATION_LABELS[rotation], "--" if rotation == "haar" else "-"
            ax.plot(x, [r["mse"] for r in found], dash, marker="o", ms=4, color=colour, label=label)
            low, high = [r["low"] for r in found], [r["high"] for r in found]
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set(yscale="log", xlabel="constant offset / standard deviation of the coordinates")
        ax.set_ylabel("relative MSE (dimensionless)")
        ax.set_title("4-bit Lloyd-Max, 128 values: what the signs are for")
        ax.legend(loc="center right")
    return fig


def coordinates_of(x: Tensor, rotation: str, title: str = "") -> Figure:
    """One vector before and after a rotation, and the density of all its rotated coordinates."""
    with style():
        fig, (left, right) = axes(1, 2, size=(8.6, 3.4), width_ratios=(1.5, 1))
        for when, colour in (("none", ROTATION_COLOURS["none"]), (rotation, SIDES["V"])):
            z = coordinates(x, when)[0]
            label = "before" if when == "none" else f"after: {ROTATION_LABELS[when]}"
            left.vlines(range(len(z)), 0, z, color=colour, linewidth=1.3, label=label)
        left.set(xlabel="coordinate", ylabel="value / rms of the vector", title=title)
        left.margins(y=0.25)
        left.legend(loc="upper right", fontsize=8.5, ncols=2)
        grid = torch.linspace(-5, 5, 201)
        z = coordinates(x, rotation).flatten().clamp(-5, 5)
        right.hist(z.numpy(), bins=60, range=(-5, 5), density=True, color=SIDES["V"], alpha=0.55)
        right.plot(grid, _normal(grid), "--", color=THEORY, linewidth=1.2)
        right.set(xlabel="value / rms", ylabel="density", title="all vectors; dashed: N(0, 1)")
        note(right, "values beyond ±5 are counted at ±5")
    return fig
