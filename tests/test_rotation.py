"""Rotations against golden vectors, dense matrices and the theorems they must obey."""

import math

import numpy as np
import oracle
import pytest
import torch

from tqlab import rotation

NAMES = ["wht32", "wht64", "wht128"]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(name: str) -> torch.Tensor:
    """The rotation as a float64 matrix, from Sylvester's construction and the written signs."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < rotation.group_size(name):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    before = oracle.T if name == "wht32" else oracle.S1
    signs = (oracle.signs(s)[: len(h)] for s in (before, oracle.S2))
    before, after = (torch.tensor(s).double() for s in signs)
    matrix = h * before / math.sqrt(len(h))
    return matrix if name == "wht32" else after[:, None] * matrix


@pytest.mark.parametrize("name", ["wht64", "wht128"])
def test_golden_bits(golden, name, device):
    x = torch.from_numpy(golden[f"{name}/x"]).to(device)
    assert (rotation.rotate(x, name).cpu().numpy() == golden[f"{name}/fwd"]).all()
    assert (rotation.unrotate(x, name).cpu().numpy() == golden[f"{name}/inv"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_equals_a_dense_hadamard_matrix(name, device):
    n = rotation.group_size(name)
    x = gaussian(4, 3, 2 * n).to(device)
    expected = (x.cpu().double().view(-1, n) @ dense(name).T).view(4, 3, 2 * n)
    ours = rotation.rotate(x, name).cpu().double()
    # log2(n) <= 7 float32 additions of numbers below 5: 7 * 5 * 2^-24 < 3e-6.
    torch.testing.assert_close(ours, expected, rtol=0, atol=3e-6)
    back = rotation.unrotate(x, name).cpu().double()
    expected = (x.cpu().double().view(-1, n) @ dense(name)).view(4, 3, 2 * n)
    torch.testing.assert_close(back, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", NAMES)
def test_orthogonal(name, device):
    """R R^T = I, and so <R q, R k> = <q, k>: the theorem the whole cache rests on."""
    n = rotation.group_size(name)
    r = rotation.rotate(torch.eye(n, device=device), name)
    torch.testing.assert_close(r @ r.T, torch.eye(n, device=device), rtol=0, atol=1e-6)
    q, k = gaussian(50, 4 * n, seed=1).to(device), gaussian(50, 4 * n, seed=2).to(device)
    plain = (q * k).sum(1)
    rotated = (rotation.rotate(q, name) * rotation.rotate(k, name)).sum(1)
    torch.testing.assert_close(rotated, plain, rtol=0, atol=1e-6 * 4 * n)
    # Planted bug: one side not rotated gives another number altogether.
    assert ((rotation.rotate(q, name) * k).sum(1) - plain).abs().mean() > math.sqrt(n) / 2


@pytest.mark.parametrize("name", NAMES)
def test_inverse(name, device):
    x = gaussian(5, 2, 256, seed=3).to(device)
    # 14 float32 additions of numbers below 5 in all: 14 * 5 * 2^-24 < 5e-6.
    back = rotation.unrotate(rotation.rotate(x, name), name)
    torch.testing.assert_close(back, x, rtol=0, atol=5e-6)
    # Planted bug: applying the forward transform twice is not the inverse.
    assert (rotation.rotate(rotation.rotate(x, name), name) - x).abs().max() > 1


@pytest.mark.parametrize("name", NAMES)
def test_groups_do_not_mix(name):
    n = rotation.group_size(name)
    x = torch.zeros(4 * n)
    x[n : 2 * n] = gaussian(n)
    y = rotation.rotate(x, name).view(4, n)
    assert (y[[0, 2, 3]] == 0).all()
    assert y[1].norm() > 0


def test_spreads_an_outlier_evenly():
    """Why it helps: one outlier of 128 becomes 128 values of one magnitude, 1/sqrt(128)."""
    y = rotation.rotate(torch.eye(128), "wht128").abs()
    torch.testing.assert_close(y, torch.full((128, 128), 128**-0.5), rtol=0, atol=1e-7)


def test_signs_break_a_constant_vector():
    """Without signs a constant goes to one coordinate; with them it spreads."""
    flat = torch.ones(1, 128)
    bare = rotation.butterflies(flat.T.contiguous()).T / math.sqrt(128)
    assert bare[0, 0] == pytest.approx(math.sqrt(128))
    assert rotation.rotate(flat, "wht128").abs().max() < math.sqrt(128) / 2


@pytest.mark.parametrize("n", [1, 2, 4, 64, 256])
def test_butterflies_of_any_power_of_two(n):
    x = gaussian(n, 3, seed=4)
    kept = x.clone()
    expected = torch.tensor(np.array([oracle.hadamard(c) for c in x.T.numpy()])).T
    ours = rotation.butterflies(x)
    assert torch.equal(ours, expected)  # the same additions in the same order
    assert torch.equal(x, kept)
    assert ours.data_ptr() != x.data_ptr()
    assert torch.equal(rotation.butterflies(x.T.contiguous().T), expected)  # any strides


def test_none_is_no_rotation():
    x = gaussian(3, 7)
    assert torch.equal(rotation.rotate(x, None), x)
    assert torch.equal(rotation.unrotate(x, None), x)


@pytest.mark.parametrize(("name", "size"), [("wht32", 33), ("wht128", 64), ("wht128", 192)])
def test_odd_sizes_are_refused(name, size):
    with pytest.raises(ValueError, match=rf"{name}.*got {size}$"):
        rotation.rotate(torch.zeros(2, size), name)
    with pytest.raises(ValueError, match=rf"{name}.*got {size}$"):
        rotation.unrotate(torch.zeros(2, size), name)
    with pytest.raises(ValueError, match="not 33 points"):
        rotation.butterflies(torch.zeros(33, 1))


@pytest.mark.parametrize("n", [1, 2, 64, 128])
def test_haar_is_orthogonal_and_repeatable(n):
    q = rotation.haar(n, seed=5)
    torch.testing.assert_close(q @ q.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(q, rotation.haar(n, seed=5))
    assert n == 1 or not torch.equal(q, rotation.haar(n, seed=6))


def test_haar_measure():
    """Moments of the Haar measure: E q_ij = 0 and E q_ij^4 = 3 / (n (n + 2)), all entries.

    QR without the sign correction fails the first: R's diagonal leaves a bias in the last row.
    """
    n, draws = 4, 1000
    q = torch.stack([rotation.haar(n, seed) for seed in range(draws)])
    # Five standard errors: sqrt(1/n / draws), and the fourth power has variance below 0.12.
    assert q.mean(0).abs().max() < 5 * math.sqrt(1 / n / draws)
    assert (q.pow(4).mean(0) - 3 / (n * (n + 2))).abs().max() < 5 * math.sqrt(0.12 / draws)
    uncorrected = torch.linalg.qr(torch.randn(draws, n, n, dtype=torch.float64))[0]
    assert uncorrected.mean(0).abs().max() > 0.1  # the planted bug is seen


def test_both_rotations_gaussianise_as_theory_says():
    """Excess kurtosis of one coordinate of a rotated vector of heavy-tailed (Student-t) values.

    Haar: a point on the sphere, -6 / (n + 2). WHT: a sum of n signed values, -2 kurt(x) / n.
    """
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_t(3, (4096, 128)), dtype=torch.float32)
    x = x / x.norm(dim=1, keepdim=True) * math.sqrt(128)

    def kurtosis(y):
        return float(y.pow(4).mean() / y.square().mean() ** 2)

    before = kurtosis(x)
    assert before > 6  # far from a Gaussian's 3
    # 524288 samples: the standard error of a kurtosis is sqrt(24 / N) = 0.007; 4 of them.
    after = kurtosis(rotation.rotate(x, "wht128")) - 3
    assert abs(after + 2 * before / 128) < 0.03
    assert abs(kurtosis(x @ rotation.haar(128).float().T) - 3 + 6 / 130) < 0.03


@pytest.mark.parametrize("name", NAMES)
def test_products_with_the_matrix_are_the_rotation(name, device):
    x = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(9)).to(device)
    turned = rotation.rotate_product(x, name)
    # 128 float32 products summed in another order: 1e-6 of values around 1
    torch.testing.assert_close(turned, rotation.rotate(x, name), rtol=0, atol=3e-6)
    torch.testing.assert_close(rotation.unrotate_product(turned, name), x, rtol=0, atol=3e-6)
    assert rotation.rotate_product(x, None) is x
    assert rotation.unrotate_product(x, None) is x
