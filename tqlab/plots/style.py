"""One look for every figure: colours, fonts, and labels that do not sit on each other."""

import base64
import io
import math
from contextlib import contextmanager

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as _Figure
from matplotlib.patheffects import withStroke

# One colour a format, everywhere. Floats are greys, turbo blues to green, tq violets, ggml warm.
COLOURS = {
    "f32": "#b5b5b5",
    "f16": "#4d4d4d",
    "bf16": "#858585",
    "q8_0": "#8c5a2b",
    "q4_0": "#e07b1f",
    "q4_1": "#c9a227",
    "q5_0": "#b5532a",
    "turbo2": "#8fc1e8",
    "turbo3": "#3f8fd0",
    "turbo4": "#14477d",
    "turbo4_lm": "#159a80",
    "turbo2_h64": "#a9cfe0",
    "turbo3_h64": "#5fa8c4",
    "turbo4_lm_h64": "#5cc4a4",
    "trellis2": "#e8a0bf",
    "trellis3": "#d6317f",
    "trellis4": "#7a1048",
    "trellis2_h64": "#f2c4d8",
    "trellis3_h64": "#e573a8",
    "trellis4_h64": "#a8487c",
    "tq3_1s": "#c49ad8",
    "tq4_1s": "#7d3c98",
    "q4_K": "#c0392b",
    "q4_k": "#c0392b",
    "q5_k": "#d46a5f",
    "q6_k": "#e8a39b",
}
FALLBACK = "#7f7f7f"
SIDES = {"K": "#b2182b", "V": "#2166ac"}
ROTATION_COLOURS = {
    "none": "#9e9e9e",
    "hadamard": "#e07b1f",
    "wht": "#14477d",
    "haar": "#159a80",
}
ROTATION_LABELS = {
    "none": "no rotation",
    "hadamard": "Hadamard, no signs",
    "wht": "signed WHT",
    "haar": "dense Haar",
}
THEORY = "#222222"
_RC = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "figure.facecolor": "white",
}


class Figure(_Figure):
    """A figure that shows itself in a notebook once, sharp, without pyplot's global state."""

    SCALE = 2  # pixels drawn for one shown

    def png(self, scale: float = SCALE) -> bytes:
        """The picture's bytes, `scale` times the shown size."""
        with style(), io.BytesIO() as out:
            self.savefig(out, format="png", dpi=100 * scale)
            return out.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None):
        width, height = (round(100 * side) for side in self.get_size_inches())
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": repr(self)}
        return data, {"image/png": {"width": width, "height": height}}


@contextmanager
def style():
    """The rcParams every figure is made and drawn under."""
    with matplotlib.rc_context(_RC):
        yield


def axes(rows: int = 1, columns: int = 1, size=(8.6, 4.2), **options):
    """(figure, axes) under the house style."""
    fig = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, **options)


def colour(name: str) -> str:
    """The colour of a format; grey for one that has none."""
    return COLOURS.get(name, FALLBACK)


def note(ax, text: str) -> None:
    """A line of explanation under an axis."""
    ax.annotate(
        text,
        (0, 0),
        xytext=(0, -40),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.8,
        color="#555555",
        va="top",
    )


_ANGLES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def label_points(ax, points, texts, fontsize: float = 9) -> list:
    """Write one label beside each point so that none covers another label, a point or a line.

    `points` are data coordinates. Greedy: the nearest free place of 8 directions and 4 distances;
    a far label gets a thin line. Call it last: it uses the axes' final limits.
    """
    ax.figure.canvas.draw()
    centres = [tuple(ax.transData.transform(p)) for p in points]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in centres]
    taken += _drawn_lines(ax) + _rings(ax) + _written(ax)
    labels = []
    for point, centre, text in zip(points, centres, texts, strict=True):
        label = ax.annotate(text, point, (0, 0), textcoords="offset points", fontsize=fontsize)
        label.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
        box = label.get_window_extent(ax.figure.canvas.get_renderer())
        others = [other for other in centres if other != centre]
        _place(ax, label, centre, (box.width, box.height), taken, others)
        labels.append(label)
    return labels


def _drawn_lines(ax) -> list:
    """Small boxes, in pixels, along every line of the axes: places where a label reads badly."""
    lines = [x for x in ax.lines if x.get_linestyle() != "None" and len(x.get_xdata())]
    paths = [line.get_transform().transform_path(line.get_path()) for line in lines]
    for bars in (c for c in ax.collections if isinstance(c, LineCollection)):
        paths += [bars.get_transform().transform_path(path) for path in bars.get_paths()]
    vertices = (xy for path in paths for xy in path.interpolated(40).vertices)
    return [(x - 2, y - 2, x + 2, y + 2) for x, y in vertices]


def _rings(ax) -> list:
    """Boxes around the large markers that ring a point."""
    rings = [line for line in ax.lines if line.get_markersize() > 12]
    centres = [(ring, ax.transData.transform(ring.get_xydata()[0])) for ring in rings]
    radii = [(ring.get_markersize() / 144 * ax.figure.dpi + 2, *xy) for ring, xy in centres]
    return [(x - r, y - r, x + r, y + r) for r, x, y in radii]


def _written(ax) -> list:
    """Boxes of the texts and the legend that stand in the axes already."""
    texts = [text for text in ax.texts if text.get_text()]
    legend = [ax.get_legend()] if ax.get_legend() else []
    return [tuple(item.get_window_extent().extents) for item in texts + legend]


def _place(ax, label, centre, size, taken, others) -> None:
    frame = ax.get_window_extent()
    best = None
    for radius in (13, 20, 32, 46, 62):
        for dx, dy in _ANGLES:
            box = _box(centre, size, dx * radius, dy * radius)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1]
            cost = sum(_overlap(box, other) for other in taken) + (0 if inside else 1e6)
            cost += 200 * any(_gap(box, other) < 1.6 * _gap(box, centre) for other in others)
            if best is None or cost < best[0]:
                best = (cost, box, radius)
        if best[0] == 0:
            break
    _, box, radius = best
    taken.append(box)
    points = 72 / ax.figure.dpi
    label.set_position(((box[0] - centre[0]) * points, (box[1] - centre[1]) * points))
    if radius > 20:
        ends = ax.transData.inverted().transform([centre, ((box[0] + box[2]) / 2, box[1])])
        ax.plot(ends[:, 0], ends[:, 1], color="#999999", linewidth=0.6, zorder=1)


def _box(centre, size, dx, dy):
    """The rectangle of a label whose near edge lies (dx, dy) pixels from the centre."""
    (x, y), (w, h) = centre, size
    left = x + dx if dx > 0 else x + dx - w if dx < 0 else x - w / 2
    low = y + dy if dy > 0 else y + dy - h if dy < 0 else y - h / 2
    return left, low, left + w, low + h


def _gap(box, point) -> float:
    """Distance of a point from a box, 0 inside."""
    dx = max(box[0] - point[0], point[0] - box[2], 0)
    return math.hypot(dx, max(box[1] - point[1], point[1] - box[3], 0))


def _overlap(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
