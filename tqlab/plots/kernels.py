"""Right and wrong results of a kernel: outputs against the truth, and by schedule."""

import torch
from matplotlib.colors import LinearSegmentedColormap

from .style import THEORY, Figure, axes, style

VARIANTS = {"bug": "#c0392b", "serial": "#14477d", "fixed": "#159a80"}
# Serial is a ring, so that an equal result of another variant shows inside it.
_MARKS = {
    "bug": {"marker": "X", "ms": 7, "color": VARIANTS["bug"]},
    "serial": {"marker": "o", "ms": 12, "mfc": "none", "mew": 1.6, "color": VARIANTS["serial"]},
    "fixed": {"marker": "D", "ms": 5, "color": VARIANTS["fixed"]},
}
_RIGHT, _WRONG = "#cfeae2", ["#fbd3c4", "#c0392b", "#4a0d10"]
_REPORTED = 0.938  # what test-backend-ops printed


def overcounted(found: dict) -> Figure:
    """The first outputs over truth, and the error that follows from a sum counted c times.

    `found` as pr52.double_reduction returns it.
    """
    with style():
        fig, (left, right) = axes(1, 2, size=(9.4, 4.0))
        for variant, y in found["outputs"].items():
            ratio = (y.double() / found["truth"])[:16]
            left.plot(ratio, ls="", label=variant, **_MARKS[variant])
        for level in (1, 32):
            left.axhline(level, color=THEORY, linewidth=1.0, linestyle="--", zorder=1)
        left.set_yscale("log", base=2)
        left.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        left.set(xlabel="output (row of the matrix)", ylabel="output / truth", ylim=(0.6, 52))
        left.set_title("Every output, by variant")
        left.legend(loc="center right")
        _overcount_curve(right, found["table"])
    return fig


def _overcount_curve(ax, table) -> None:
    count = torch.arange(1, 65, dtype=torch.float64)
    ax.plot(count, ((count - 1) / count) ** 2, ".-", ms=4, lw=1, color=THEORY, label="((c - 1)/c)²")
    ax.axhline(_REPORTED, color="#e07b1f", linewidth=1.2, label=f"as reported: {_REPORTED}")
    for row in table:
        ax.plot(row["scale"], row["backend_nmse"], zorder=4, **_MARKS[row["variant"]])
    ax.set(xlabel="c: how often the sum is counted", ylabel="squared error / squared output")
    ax.set_title("The error test-backend-ops prints")
    ax.legend(loc="lower right")


def schedules(found: dict) -> Figure:
    """Each output's error under each schedule of threadgroups, with the bug and without.

    `found` as pr52.rotated_in_place returns it.
    """
    truth = found["truth"]
    colours = LinearSegmentedColormap.from_list("wrong", _WRONG).with_extremes(bad=_RIGHT)
    size = truth.square().mean().sqrt()
    with style():
        fig, panels = axes(1, 2, size=(9.4, 4.0), sharey=True)
        for ax, variant in zip(panels, ("bug", "fixed"), strict=True):
            error = (found[variant].double() - truth).abs() / size
            right = error < 1e-4
            shown = error.masked_fill(right, torch.nan).numpy()
            image = ax.imshow(shown, cmap=colours, vmin=0, vmax=2, aspect="auto")
            ax.set_title(f"{variant}: {int(right.sum())} of {right.numel()} outputs right (green)")
            ax.set_xlabel("output of the sibling (one threadgroup each)")
            ax.grid(visible=False)
        panels[0].set_ylabel("schedule (seed of the simulator)")
        panels[0].set_yticks(range(len(found["bug"])))
        fig.colorbar(image, ax=panels, label="|error| / rms of the truth", extend="max")
    return fig


def against_truth(found: dict) -> Figure:
    """Each output against the truth, a panel a variant; outputs never written are counted."""
    truth = found["truth"].flatten()
    with style():
        fig, panels = axes(1, len(found["outputs"]), size=(9.4, 4.2), sharex=True, sharey=True)
        limit = 1.08 * float(truth.abs().max())
        for ax, (variant, y) in zip(panels, found["outputs"].items(), strict=True):
            _scatter(ax, truth, y.double().flatten(), variant)
            ends = [-limit, limit]
            ax.plot(ends, ends, "--", color=THEORY, linewidth=1.1, label="right")
            ax.set(xlim=ends, ylim=ends, xlabel="truth")
            ax.legend(loc="upper left")
        panels[0].set_ylabel("output")
    return fig


def _scatter(ax, truth, y, variant) -> None:
    written = ~y.isnan()
    small = len(y) > 256
    look = {"ms": 2.2 if small else 6, "alpha": 0.35 if small else 0.8, "mec": "none"}
    ax.plot(truth[written], y[written], "o", color=VARIANTS[variant], **look)
    ax.set_title(variant)
    if missing := int((~written).sum()):
        text = f"{missing} of {len(y)} outputs\nwere never written"
        box = {"facecolor": "white", "edgecolor": "none"}
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", bbox=box)
