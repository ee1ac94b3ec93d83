"""Scalar codebooks: the tables the formats use, Lloyd-Max for any bit width, and theory curves.

Sources: TurboQuant (arXiv 2504.19874) sections 3.1-3.3; tables: spec formats 3.2 and 4.2.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor


def _mirrored(half: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(-v for v in reversed(half)) + half


# Weight tables, for unit variance. TQ4 is the true 16-level Lloyd-Max set; TQ3 is not symmetric.
TQ4 = _mirrored((0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590))
_TQ4_T = (0.258222, 0.522404, 0.799550, 1.099286, 1.437139, 1.843532, 2.400804)
TQ4_THRESHOLDS = (*_mirrored(_TQ4_T)[:7], 0.0, *_TQ4_T)
TQ3 = (-1.996684, -1.291398, -0.740341, -0.247508, 0.230106, 0.725222, 1.277503, 1.988943)
TQ3_THRESHOLDS = (-1.644041, -1.015870, -0.493925, -0.008701, 0.477664, 1.001363, 1.633223)

# KV tables, for unit-norm vectors of 128 values (variance 1/128).
TURBO2 = _mirrored((0.039994, 0.133462))
TURBO2_THRESHOLDS = (-0.086728, 0.0, 0.086728)
TURBO3 = _mirrored((0.021460, 0.065717, 0.117832, 0.190685))
TURBO3_THRESHOLDS = (-0.154259, -0.091775, -0.043589, 0.0, 0.043589, 0.091775, 0.154259)
# The fork's 4-bit table: the means of 16 equal-probability bins, not Lloyd-Max (twice the error).
TURBO4 = _mirrored((0.006938, 0.020989, 0.035597, 0.051262, 0.068756, 0.089527, 0.117195, 0.173926))
_TURBO4_T = (0.013963, 0.028293, 0.043430, 0.060009, 0.079142, 0.103361, 0.145560)
TURBO4_THRESHOLDS = (*_mirrored(_TURBO4_T)[:7], 0.0, *_TURBO4_T)


def _phi(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _upper_tail(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x / math.sqrt(2))


@lru_cache(maxsize=32)
def lloyd_max(bits: int) -> tuple[Tensor, Tensor]:
    """The optimal `bits`-bit scalar quantiser of N(0, 1): (centroids, thresholds).

    Shapes: float64 [2**bits] ascending, float64 [2**bits - 1]
    Error: every centroid is its cell's mean to 1e-9 (Newton on the stationarity conditions).
    Raises: ValueError unless 1 <= bits <= 10.
    Source: Lloyd 1982, Max 1960; TurboQuant section 3.1.
    """
    if not 1 <= bits <= 10:
        raise ValueError(f"Lloyd-Max codebooks are computed for 1 to 10 bits, not {bits}")
    half = _positive_half(1 << (bits - 1))
    inner = (half[1:] + half[:-1]) / 2
    centroids = torch.cat([-half.flip(0), half])
    return centroids, torch.cat([-inner.flip(0), torch.zeros(1, dtype=half.dtype), inner])


def _positive_half(m: int) -> Tensor:
    """Centroids above zero, by Newton from the high-resolution (companded) guess."""
    p = (torch.arange(m, dtype=torch.float64) + 0.5) / m
    c = math.sqrt(6) * torch.erfinv(p)  # quantiles of N(0, 3): point density ~ pdf^(1/3)
    for _ in range(200):
        residual, jacobian = _stationarity(c)
        step = torch.linalg.solve(jacobian, residual)
        if step.abs().max() < 1e-11:
            return c
        gap, closing = torch.diff(c, prepend=-c[:1]), torch.diff(step, prepend=-step[:1])
        c = c - step * min(1.0, float(0.5 / (closing / gap).max()))  # no centroid passes another
    raise ArithmeticError(f"Lloyd-Max did not converge for {2 * m} levels")


def _stationarity(c: Tensor) -> tuple[Tensor, Tensor]:
    """c - E[x | cell(c)], and its tridiagonal Jacobian."""
    inf = torch.tensor([math.inf], dtype=c.dtype)
    edges = torch.cat([torch.zeros(1, dtype=c.dtype), (c[1:] + c[:-1]) / 2, inf])
    density, tail = _phi(edges), _upper_tail(edges)
    mass = tail[:-1] - tail[1:]
    mean = (density[:-1] - density[1:]) / mass
    d_low = density[:-1] * (mean - edges[:-1]) / mass
    d_high = density[1:-1] * (edges[1:-1] - mean[:-1]) / mass[:-1]
    jacobian = torch.eye(len(c), dtype=c.dtype)
    i = torch.arange(len(c) - 1)
    jacobian[i, i] -= d_high / 2
    jacobian[i, i + 1] -= d_high / 2
    jacobian[i + 1, i + 1] -= d_low[1:] / 2
    jacobian[i + 1, i] -= d_low[1:] / 2
    return c - mean, jacobian


def equal_probability_means(bits: int) -> Tensor:
    """Means of the 2**bits equal-probability bins of N(0, 1): float64 [2**bits], ascending."""
    n = 1 << bits
    p = torch.arange(1, n, dtype=torch.float64) / n
    edges = math.sqrt(2) * torch.erfinv(2 * p - 1)
    inf = torch.tensor([math.inf], dtype=torch.float64)
    density = _phi(torch.cat([-inf, edges, inf]))
    return n * (density[:-1] - density[1:])


def distortion(centroids: Tensor, thresholds: Tensor) -> float:
    """Exact E[(x - Q(x))^2] for x ~ N(0, 1) and a codebook: relative MSE, dimensionless.

    Shapes: float64 [n], float64 [n - 1], both ascending.
    """
    inf = torch.tensor([math.inf], dtype=torch.float64)
    edges = torch.cat([-inf, thresholds.double(), inf])
    density, tail = _phi(edges), _upper_tail(edges)
    mass, first = tail[:-1] - tail[1:], density[:-1] - density[1:]
    c = centroids.double()
    return float(1 - 2 * (c * first).sum() + (c * c * mass).sum())


def shannon_bound(bits):
    """Least relative MSE any quantiser can reach on Gaussian data at `bits` bits/value: 4^-bits."""
    return 4.0 ** -(bits * 1.0)


def turboquant_upper_bound(bits):
    """TurboQuant's guarantee (Theorem 1): relative MSE <= sqrt(3) pi / 2 * 4^-bits."""
    return math.sqrt(3) * math.pi / 2 * 4.0 ** -(bits * 1.0)


def inner_product_distortion(bits: int) -> float:
    """D_prod * d / norm(y)^2 of the unbiased two-stage quantiser: pi/2 * D_mse(bits - 1).

    Source: TurboQuant Theorem 2. At bits = 1 all bits go to the residual's signs: pi/2.
    """
    residual = 1.0 if bits == 1 else distortion(*lloyd_max(bits - 1))
    return math.pi / 2 * residual
