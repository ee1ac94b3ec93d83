"""Trellis codes: the encoder against every path there is, the decoder against a plain register."""

import itertools

import numpy as np
import pytest
import torch

from tqlab import codebook, formats
from tqlab.formats import trellis

BITS = (2, 3, 4)
NAMES = [name for name in formats.names() if name.startswith("trellis")]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def register(codes, bits):
    """The states that a run of codes goes through, from 0."""
    states, state = [], 0
    for code in codes:
        state = (state << bits | int(code)) % 256
        states.append(state)
    return states


def costs(z, values, states):
    """Squared distance of every column of z to a path: [n, N], [256], [n, ...] -> float64."""
    return (values.double()[states] - z.double()).square().sum(0)


# ---- the encoder


@pytest.mark.parametrize(("bits", "n"), [(2, 4), (2, 5), (2, 6), (3, 4), (4, 3)])
@pytest.mark.parametrize("columns", [3, 40])  # the path for a few vectors, and the other
def test_no_path_is_better(bits, n, columns):
    values, z = trellis.table(bits), gaussian(n, columns, seed=n) * 1.5
    found = trellis.viterbi(z, values, bits)
    codes = itertools.product(range(1 << bits), repeat=n)
    every = torch.tensor([register(c, bits) for c in codes])
    best, which = torch.stack([costs(z, values, path[:, None]) for path in every]).min(0)
    # Costs sum at most 6 float32 squares below 50: a tie closer than that may go either way.
    torch.testing.assert_close(costs(z, values, found), best, rtol=0, atol=6 * 50 * 2.0**-23)
    assert (every[which] == found.T).all(1).float().mean() > 0.9


@pytest.mark.parametrize("bits", BITS)
def test_paths_are_the_registers(bits):
    for path in trellis.viterbi(gaussian(64, 12, seed=3), trellis.table(bits), bits).T:
        assert register(path % (1 << bits), bits) == path.tolist()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [2, 50])
def test_a_decoded_vector_is_its_own_best_path(bits, columns):
    """The distance is 0, and no two states share a value."""
    values = trellis.table(bits)
    assert len(values.unique()) == len(values) == 256
    codes = torch.randint(0, 1 << bits, (128, columns), generator=torch.Generator().manual_seed(1))
    states = torch.tensor([register(c, bits) for c in codes.T]).T
    assert torch.equal(trellis.viterbi(values[states], values, bits), states)


@pytest.mark.parametrize("bits", BITS)
def test_any_number_of_vectors_takes_the_same_paths(bits, monkeypatch):
    """Tiles, and the numpy path for a few: the same bits. Rounded rows are full of near ties."""
    z = torch.cat(
        [gaussian(64, 20, seed=4), gaussian(64, 20, seed=5).round(), torch.zeros(64, 1)], 1
    )
    values = trellis.table(bits)
    whole = trellis.viterbi(z, values, bits)
    monkeypatch.setattr(trellis, "_CPU_BLOCKS", 9)
    assert torch.equal(trellis.viterbi(z, values, bits), whole)
    few = [trellis.viterbi(part, values, bits) for part in z.split(trellis._FEW, 1)]
    assert torch.equal(torch.cat(few, 1), whole)


# ---- the decoder


@pytest.mark.parametrize("name", NAMES)
def test_decoding_is_a_shift_register(name, device):
    """Random bytes, so that every state comes up: one whole number, its lowest code the last."""
    fmt = formats.get(name)
    rng = np.random.default_rng(6)
    packed = rng.integers(0, 256, (20, fmt.block_bytes), dtype=np.uint8)
    packed[:, :2] = rng.uniform(0.1, 2, (20, 1)).astype(np.float16).view(np.uint8)
    ours = fmt.dequantize(torch.from_numpy(packed).to(device), rotated=True).cpu()
    values, n = trellis.table(fmt.bits).numpy(), fmt.block_size
    for block, decoded in zip(packed, ours, strict=True):
        whole = int.from_bytes(block[2:].tobytes(), "little")
        codes = [whole >> fmt.bits * (n - 1 - j) & (1 << fmt.bits) - 1 for j in range(n)]
        expected = values[register(codes, fmt.bits)] * np.float32(block[:2].view(np.float16)[0])
        assert decoded.tolist() == expected.tolist()


# ---- what it is worth


@pytest.mark.parametrize(("bits", "published"), [(2, 0.0799), (3, 0.0217), (4, 0.0061)])
def test_relative_mse(bits, published):
    """Spec beyond 3, 256 states, vectors of 128."""
    z, values = gaussian(128, 4096, seed=7), trellis.table(bits)
    errors = (values[trellis.viterbi(z, values, bits)] - z).square().mean(0)
    se = float(errors.std()) / len(errors) ** 0.5
    # Their sample was finite as well (unknown size; taken as large as this one), and they round.
    half_digit = 0.5e-4
    assert abs(float(errors.mean()) - published) < 4 * 2**0.5 * se + half_digit
    assert se < 0.004 * published


@pytest.mark.parametrize("name", NAMES)
def test_a_third_less_error_than_any_scalar_quantiser(name):
    fmt = formats.get(name)
    x = gaussian(2048, 128, seed=8)
    error = float((fmt.dequantize(fmt.quantize(x)) - x).square().sum() / x.square().sum())
    scalar = codebook.distortion(*codebook.lloyd_max(fmt.bits))
    assert codebook.shannon_bound(fmt.bits) < error < 0.7 * scalar


@pytest.mark.parametrize("bits", BITS)
def test_tables_are_fixed_points_of_lloyds_algorithm(bits):
    """Every state's value is the mean of what it is chosen for: moving them would gain nothing."""
    z, values = gaussian(128, 2048, seed=9), trellis.table(bits)
    states = trellis.viterbi(z, values, bits).flatten()
    count = torch.bincount(states, minlength=256)
    mean = torch.zeros(256).scatter_add_(0, states, z.flatten()) / count
    gain = (count * (mean - values).square()).sum() / (values[states] - z.flatten()).square().sum()
    # Noise alone gives 256 states / 2^18 values = 0.1 %; the tables were made from samples too.
    assert gain < 0.004
    assert count.min() > 100
