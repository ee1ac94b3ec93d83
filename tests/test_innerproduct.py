"""The two-stage quantiser: no bias, the variance of Theorem 2, and its bad input."""

import math

import pytest
import torch

from tqlab.codebook import inner_product_distortion
from tqlab.innerproduct import InnerProductQuantizer

DIM = 64


def unit(n, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, DIM, generator=g), dim=-1)


def round_trip(x, bits, seed):
    q = InnerProductQuantizer(DIM, bits, seed)
    return q.dequantize(q.quantize(x))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_one_vector_is_unbiased_over_the_draws_of_s(bits):
    """For fixed x and y the mean over S is <y, x>; over 400 draws its sd is sqrt(D / d / 400)."""
    x, y = unit(1, 1), unit(1, 2)
    estimates = torch.stack([(round_trip(x, bits, seed) * y).sum() for seed in range(400)])
    sd = math.sqrt(inner_product_distortion(bits) / DIM / 400)
    assert abs(float(estimates.mean() - (x * y).sum())) < 4 * sd


def test_the_first_stage_alone_shrinks_by_two_over_pi():
    """E |z| sqrt(2 / pi) for a sign quantiser: 2 / pi; on a sphere of 64 dimensions 0.4 % more."""
    x = unit(4000, 3)
    q = InnerProductQuantizer(DIM, 2, 0)
    slope = float((q.mean_only(q.quantize(x)) * x).sum(-1).mean())
    assert slope == pytest.approx(2 / math.pi, rel=0.01)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_variance_is_that_of_theorem_2(bits):
    """E error^2 d = pi/2 D(bits - 1) - D / d; 8 draws of S leave about 3 %, the sphere 4 % less."""
    x, y = unit(2000, 4), unit(2000, 5)
    errors = [((round_trip(x, bits, s) - x) * y).sum(-1) for s in range(8)]
    measured = float(torch.cat(errors).square().mean() * DIM)
    assert measured == pytest.approx(inner_product_distortion(bits), rel=0.08)


def test_norms_scale_and_zero_stays_zero():
    x = unit(5, 6)
    assert torch.allclose(round_trip(7 * x, 3, 0), 7 * round_trip(x, 3, 0), atol=1e-5)
    assert round_trip(torch.zeros(1, DIM), 3, 0).abs().max() == 0


def test_the_code_has_the_promised_bits():
    code = InnerProductQuantizer(DIM, 3, 0).quantize(unit(50, 7))
    assert code.index.dtype == torch.uint8
    assert code.index.max() < 4
    assert code.sign.dtype == torch.bool
    assert code.norm.shape == code.residual.shape == (50, 1)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_refuses_other_bits(bits):
    with pytest.raises(ValueError, match=f"not {bits}"):
        InnerProductQuantizer(DIM, bits)
