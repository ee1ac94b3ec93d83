"""Codebooks against 40-digit arithmetic, published numbers and the bounds."""

import math

import mpmath as mp
import numpy as np
import oracle
import pytest
import torch

from tqlab import codebook

# Distortion of the optimal quantisers of N(0, 1) for 1..4 bits, as published.
PUBLISHED = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.0095}


def cell_mean(low: float, high: float) -> float:
    """E[x | low < x < high] of N(0, 1) with 40 digits, from Mills ratios of the erfc function."""
    with mp.workdps(40):
        low, high = mp.mpf(low), mp.mpf(high)
        mass = (mp.erfc(low / mp.sqrt(2)) - mp.erfc(high / mp.sqrt(2))) / 2
        return float((mp.npdf(low) - mp.npdf(high)) / mass)


def integrated_distortion(centroids, edges) -> float:
    """E[(x - Q(x))^2] by numerical quadrature of the definition: no closed form."""
    with mp.workdps(20):
        cells = zip([-mp.inf, *edges], [*edges, mp.inf], centroids, strict=True)
        return float(
            sum(mp.quad(lambda x, c=c: (x - c) ** 2 * mp.npdf(x), [a, b]) for a, b, c in cells)
        )


@pytest.mark.parametrize("bits", range(1, 11))
def test_lloyd_max_is_stationary(bits):
    """Both of Lloyd's conditions: thresholds are midpoints, centroids are their cells' means."""
    centroids, edges = (t.tolist() for t in codebook.lloyd_max(bits))
    assert (len(centroids), len(edges)) == (2**bits, 2**bits - 1)
    assert centroids == sorted(centroids)
    np.testing.assert_allclose(centroids, np.negative(centroids[::-1]), rtol=0, atol=0)
    midpoints = (np.array(centroids[1:]) + np.array(centroids[:-1])) / 2
    np.testing.assert_allclose(edges, midpoints, rtol=0, atol=1e-15)
    upper = [*edges[2 ** (bits - 1) - 1 :], math.inf]
    for c, low, high in zip(centroids[2 ** (bits - 1) :], upper, upper[1:], strict=False):
        assert abs(c - cell_mean(low, high)) < 1e-9


@pytest.mark.parametrize("bits", range(1, 11))
def test_lloyd_max_is_a_minimum(bits):
    """Not merely stationary: moving a centroid either way raises the error."""
    centroids, _ = codebook.lloyd_max(bits)
    best = codebook.distortion(*codebook.lloyd_max(bits))
    spacing = float(torch.diff(centroids).min())
    for i in {0, 2 ** (bits - 1), 2**bits - 1}:
        for step in (-0.1 * spacing, 0.1 * spacing):
            moved = centroids.clone()
            moved[i] += step
            assert codebook.distortion(moved, (moved[1:] + moved[:-1]) / 2) > best


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_published_distortions(bits):
    centroids, edges = codebook.lloyd_max(bits)
    ours = codebook.distortion(centroids, edges)
    assert abs(ours - PUBLISHED[bits]) < 10 ** -(5 if bits == 3 else 4)  # a unit: 3 is truncated
    exact = integrated_distortion(centroids.tolist(), edges.tolist())
    assert abs(ours - exact) < 1e-14


def test_one_bit_in_closed_form():
    centroids, edges = codebook.lloyd_max(1)
    assert edges.tolist() == [0]
    assert float(centroids[1]) == pytest.approx(math.sqrt(2 / math.pi), abs=1e-14)
    assert codebook.distortion(centroids, edges) == pytest.approx(1 - 2 / math.pi, abs=1e-14)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_distortion_of_any_codebook(bits):
    """Also where it is not optimal: shifted centroids against quadrature."""
    centroids, edges = (t + 0.05 for t in codebook.lloyd_max(bits))
    exact = integrated_distortion(centroids.tolist(), edges.tolist())
    assert abs(codebook.distortion(centroids, edges) - exact) < 1e-14


@pytest.mark.parametrize("bits", [0, 11, -1])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match=rf"1 to 10 bits, not {bits}$"):
        codebook.lloyd_max(bits)


def test_bounds_bracket_the_optimum():
    """4^-b <= D(b) <= sqrt(3) pi / 2 4^-b, from 1.45 to Zador's limit of 2.72 above."""
    gaps = []
    for bits in range(1, 11):
        d = codebook.distortion(*codebook.lloyd_max(bits))
        assert codebook.shannon_bound(bits) < d < codebook.turboquant_upper_bound(bits)
        gaps.append(d / codebook.shannon_bound(bits))
    assert gaps == sorted(gaps)
    assert gaps[0] == pytest.approx(4 * (1 - 2 / math.pi), abs=1e-12)  # 1.4535
    # High-rate theory: the gap tends to sqrt(3) pi / 2; at 10 bits it is 0.6 % below.
    limit = math.sqrt(3) * math.pi / 2
    assert 0.993 * limit < gaps[-1] < limit
    assert codebook.turboquant_upper_bound(3) / codebook.shannon_bound(3) == pytest.approx(limit)


def test_inner_product_distortion():
    """pi/2 D(b - 1): 1.57, 0.57, 0.185, 0.0543. The paper's 0.047 inherits a rounding."""
    ours = [codebook.inner_product_distortion(b) for b in (1, 2, 3, 4)]
    expected = [math.pi / 2 * d for d in (1, *(PUBLISHED[b] for b in (1, 2, 3)))]
    np.testing.assert_allclose(ours, expected, rtol=5e-4)  # the last published digit
    assert ours[3] > 0.053


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_equal_probability_means(bits):
    means = codebook.equal_probability_means(bits).tolist()
    n = 2**bits
    with mp.workdps(40):
        edges = [mp.sqrt(2) * mp.erfinv(2 * mp.mpf(i) / n - 1) for i in range(1, n)]
    expected = [cell_mean(a, b) for a, b in zip([-mp.inf, *edges], [*edges, mp.inf], strict=True)]
    np.testing.assert_allclose(means, expected, rtol=0, atol=1e-14)
    assert sum(means) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    ("table", "thresholds", "written"),
    [
        (codebook.TURBO2, codebook.TURBO2_THRESHOLDS, oracle.TURBO["turbo2"]),
        (codebook.TURBO3, codebook.TURBO3_THRESHOLDS, oracle.TURBO["turbo3"]),
        (codebook.TURBO4, codebook.TURBO4_THRESHOLDS, oracle.TURBO["turbo4"]),
        (codebook.TQ3, codebook.TQ3_THRESHOLDS, oracle.TQ["tq3_1s"]),
        (codebook.TQ4, codebook.TQ4_THRESHOLDS, oracle.TQ["tq4_1s"]),
    ],
)
def test_tables_as_written(table, thresholds, written):
    """Each digit typed twice, independently; each threshold is the midpoint of its neighbours."""
    bits, centroids, edges = written
    assert len(table) == 2**bits
    assert np.float32(table).tolist() == [float(c) for c in centroids]
    assert np.float32(thresholds).tolist() == [float(t) for t in edges]
    midpoints = (np.array(table)[1:] + np.array(table)[:-1]) / 2
    np.testing.assert_allclose(thresholds, midpoints, rtol=0, atol=1.01e-6)  # six digits


@pytest.mark.parametrize(("table", "bits"), [(codebook.TURBO2, 2), (codebook.TURBO3, 3)])
def test_small_tables_are_lloyd_max(table, bits):
    """2 and 3 bits are proper; 4 bits is not (test_formats proves what it is)."""
    optimum = codebook.lloyd_max(bits)[0].numpy() / math.sqrt(128)
    best = codebook.distortion(*codebook.lloyd_max(bits))
    scaled = torch.tensor(table, dtype=torch.float64) * math.sqrt(128)
    ours = codebook.distortion(scaled, (scaled[1:] + scaled[:-1]) / 2)
    assert np.abs(np.array(table) - optimum).max() < 0.002
    assert best <= ours < 1.001 * best
