"""Codebooks under N(0, 1): exact figures, cell by cell, and rounding to the optimal ones."""

import math

import torch
from torch import Tensor

from .. import codebook as cb
from .. import formats

Row = dict


def nearest(z: Tensor, bits: int) -> Tensor:
    """Every value replaced by its Lloyd-Max centroid for N(0, 1): same shape, float32."""
    centroids, thresholds = (t.float() for t in cb.lloyd_max(bits))
    return centroids[torch.bucketize(z.contiguous(), thresholds)]


def codebook_of(name: str) -> tuple[Tensor, Tensor]:
    """(centroids, thresholds) of a rotated format, scaled to unit variance, float64.

    Raises: ValueError when the format has no codebook.
    """
    fmt = formats.get(name)
    if not hasattr(fmt, "table"):
        raise ValueError(f"{name} has no codebook; rotated formats have one")
    scale = 1.0 if fmt.rotation == "wht32" else 128**0.5  # the KV tables have variance 1 / 128
    double = [torch.tensor(t, dtype=torch.float64) * scale for t in (fmt.table, fmt.thresholds)]
    return double[0], double[1]


def cell_rows(name: str) -> list[Row]:
    """Exact share and error of each cell of a format's codebook under N(0, 1).

    Row: format, cell, low, high, centroid, mass (probability), mse (its part of the relative MSE)
    """
    c, t = codebook_of(name)
    edge = torch.cat([t.new_tensor([-math.inf]), t, t.new_tensor([math.inf])])
    below, density = torch.special.ndtr(edge), (-edge.square() / 2).exp() / math.sqrt(2 * math.pi)
    weighted = torch.where(edge.isinf(), 0.0, edge * density)
    mass, first = below.diff(), -density.diff()
    second = mass - weighted.diff()
    mse = second - 2 * c * first + c * c * mass
    keys = ("low", "high", "centroid", "mass", "mse")
    columns = zip(edge[:-1], edge[1:], c, mass, mse, strict=True)
    return [
        {"format": name, "cell": i} | {k: float(v) for k, v in zip(keys, values, strict=True)}
        for i, values in enumerate(columns)
    ]


def codebook_rows(names=("turbo2", "turbo3", "turbo4", "turbo4_lm", "tq3_1s", "tq4_1s")):
    """Exact figures of each codebook under N(0, 1), without any scale fit.

    Row: format, levels, mse, lloyd_max (least possible), times (mse over that), outer (share of
    values beyond the outermost thresholds), entropy (bits an index really carries)
    """
    rows = []
    for name in names:
        cells = cell_rows(name)
        mse, best = sum(c["mse"] for c in cells), cb.distortion(*cb.lloyd_max(_bits(len(cells))))
        entropy = -sum(c["mass"] * math.log2(c["mass"]) for c in cells)
        outer = cells[0]["mass"] + cells[-1]["mass"]
        exact = {"mse": mse, "lloyd_max": best, "times": mse / best, "outer": outer}
        rows.append({"format": name, "levels": len(cells), **exact, "entropy": entropy})
    return rows


def _bits(levels: int) -> int:
    return levels.bit_length() - 1


def index_entropy(name: str, x: Tensor) -> float:
    """Bits of information in one stored index, measured on vectors [N, n], n % block == 0."""
    fmt = formats.get(name)
    share = torch.bincount(fmt.indices(fmt.quantize(x)).flatten().int()).double()
    share = share[share > 0] / share.sum()
    return float(-(share * share.log2()).sum())


def lloyd_max_rows(bits=(1, 2, 3, 4)) -> list[Row]:
    """Exact distortion of the optimal codebooks: rows bits, mse, shannon, upper, gap."""
    rows = []
    for b in bits:
        mse, bound = cb.distortion(*cb.lloyd_max(b)), cb.shannon_bound(b)
        upper = cb.turboquant_upper_bound(b)
        rows.append({"bits": b, "mse": mse, "shannon": bound, "upper": upper, "gap": mse / bound})
    return rows
