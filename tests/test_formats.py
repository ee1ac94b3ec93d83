"""Bytes: against the fork's golden vectors, a scalar oracle, gguf's own code and the theory."""

import math

import gguf
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tqlab import codebook, formats, rotation

GOLDEN = {  # golden name -> ours
    "tq4_1s": "tq4_1s",
    "tq3_1s": "tq3_1s",
    "turbo2_0": "turbo2",
    "turbo3_0": "turbo3",
    "turbo4_0": "turbo4",
    "q8_0": "q8_0",
    "q4_0": "q4_0",
}
ORACLE = [*oracle.TURBO, *oracle.TQ, "q8_0", "q4_0"]


def quantize(name, x, device="cpu"):
    return formats.get(name).quantize(torch.as_tensor(x, device=device)).cpu().numpy()


def differing_blocks(a, b, block_bytes):
    return int((a.reshape(-1, block_bytes) != b.reshape(-1, block_bytes)).any(1).sum())


# ---- golden vectors


@pytest.mark.parametrize("theirs", GOLDEN)
def test_golden_bytes(golden, theirs, device):
    fmt = formats.get(GOLDEN[theirs])
    sets = [key.split("/")[1] for key in golden if key.startswith("x/")]
    assert len(sets) == 17
    for name in sets:
        packed = quantize(fmt.name, golden[f"x/{name}"], device)
        wrong = differing_blocks(packed, golden[f"{theirs}/{name}/bytes"], fmt.block_bytes)
        assert wrong == 0, f"{fmt.name}: {wrong} blocks of {name} differ from the fork's"


@pytest.mark.parametrize("theirs", GOLDEN)
def test_golden_dequantisation(golden, theirs, device):
    fmt = formats.get(GOLDEN[theirs])
    rotated = theirs.startswith("turbo")  # what the fork's to_float returns
    for key in (k for k in golden if k.startswith(f"{theirs}/") and k.endswith("/bytes")):
        packed = torch.from_numpy(golden[key]).to(device)
        stem = key.removesuffix("bytes")
        pairs = [(fmt.dequantize(packed, rotated=rotated), golden[stem + "deq"])]
        if stem + "deq_unrot" in golden:
            pairs.append((fmt.dequantize(packed), golden[stem + "deq_unrot"]))
        for ours, expected in pairs:
            finite = np.isfinite(expected)
            ours = ours.cpu().numpy()
            assert (np.isfinite(ours) == finite).all(), f"{key}: other values are not finite"
            scale = np.abs(expected[finite]).max(initial=0)
            # 1e-6 relative to the set's largest value: the sum of 7 butterfly roundings.
            np.testing.assert_allclose(ours[finite], expected[finite], rtol=0, atol=1e-6 * scale)


def test_golden_overflow_is_exercised(golden):
    """huge1e4 holds norms beyond fp16: infinite in the fork, so infinite here too."""
    for name in ("turbo2_0", "turbo3_0", "turbo4_0"):
        assert not np.isfinite(golden[f"{name}/huge1e4/deq"]).all()


@pytest.mark.parametrize("theirs", ["tq4_1s", "tq3_1s", "q8_0", "q4_0"])
@pytest.mark.parametrize("case", ["mm_24x256_n1", "mm_24x256_n3", "mm_16x576_n9"])
def test_golden_weights(golden, theirs, case, device):
    """Rows fetched by id, and the fork's product with activations rounded to q8_0."""
    fmt = formats.get(GOLDEN[theirs])
    weights = golden[f"{case}/W"]
    packed = golden[f"{case}/{theirs}/bytes"]
    assert differing_blocks(quantize(fmt.name, weights, device), packed, fmt.block_bytes) == 0
    dense = fmt.dequantize(torch.from_numpy(packed).to(device))
    rows = dense[torch.from_numpy(golden[f"{case}/ids"]).long()].cpu().numpy()
    # 1e-6 of the largest weight: float32 rounding of a 32-point transform.
    top = np.abs(rows).max()
    np.testing.assert_allclose(rows, golden[f"{case}/{theirs}/get_rows"], rtol=0, atol=1e-6 * top)
    activations = torch.from_numpy(golden[f"{case}/x"]).to(device)
    q8 = formats.get("q8_0").quantize(activations)
    assert (q8.cpu().numpy() == golden[f"{case}/x_q8_0_bytes"]).all()
    product = (formats.get("q8_0").dequantize(q8) @ dense.T).cpu().numpy()
    expected = golden[f"{case}/{theirs}/y"]
    # A dot product of n terms in another order: n ulps of the largest partial sum is ample.
    np.testing.assert_allclose(product, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


# ---- the scalar oracle


def draw(kind: str, seed: int, n: int) -> np.ndarray:
    """Float32 data that reaches the corners: ties, constants, zeros, spikes, tiny and huge."""
    rng = np.random.default_rng(seed)
    gauss = rng.standard_normal(n)
    made = {
        "gauss": gauss,
        "student": rng.standard_t(3, n),
        "constant": np.full(n, gauss[0]),
        "ties": rng.integers(-2, 3, n),
        "zeros": np.zeros(n) * gauss,  # both signs of zero
        "half zero": np.where(np.arange(n) % 32 < 16, 0, gauss),
        "spike": np.eye(n)[seed % n] * gauss[0],
        "offset": 100 + gauss,
        "alternating": np.where(np.arange(n) % 2, 1, -1) * gauss[0],
        "tiny": 1e-9 * gauss,
        "vanishing": 1e-14 * gauss,
        "large": 2e4 * gauss,
        "huge": 1e25 * gauss,
    }
    return made[kind].astype(np.float32)


KINDS = ["gauss", "student", "constant", "ties", "zeros", "half zero", "spike", "offset"]
KINDS += ["alternating", "tiny", "vanishing", "large", "huge"]


@pytest.mark.parametrize("name", ORACLE)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_oracle_bytes(name, kind, seed):
    fmt = formats.get(name)
    x = draw(kind, seed, 2 * fmt.block_size)
    expected = b"".join(oracle.block(part, name) for part in x.reshape(2, -1))
    assert quantize(name, x).tobytes() == expected, f"{kind} data, seed {seed}"


def test_q8_0_rounds_half_away_from_zero_exactly():
    """0.49999997 + 0.5 rounds to 1.0 in float32: adding a half before truncating is wrong."""
    below = np.nextafter(np.float32(0.5), np.float32(0))
    x = np.zeros(32, np.float32)
    x[:7] = [127, below, -below, 0.5, -0.5, 1.5, -2.5]  # amax 127: the scale is exactly 1
    codes = quantize("q8_0", x)[2:9].view(np.int8)
    assert codes.tolist() == [127, 0, 0, 1, -1, 2, -3]


@pytest.mark.parametrize("name", [*oracle.TURBO, *oracle.TQ])
def test_layout_bit_by_bit(name):
    """A scalar unpacker reads back, bit for bit, what the library says the block holds."""
    fmt = formats.get(name)
    x = torch.from_numpy(draw("student", 5, 4 * fmt.block_size))
    packed = fmt.quantize(x)
    values = fmt.dequantize(packed, rotated=True).numpy().reshape(4, -1)
    index = fmt.indices(packed).numpy().reshape(4, -1)
    for i, block in enumerate(packed.numpy().reshape(4, fmt.block_bytes)):
        if name in oracle.TURBO:
            norm, codes = oracle.turbo_codes(block, name)
            table, scales = oracle.TURBO[name][1], [norm] * fmt.block_size
            assert name != "turbo4" or bytes(block[2:4]) == b"\0\0"  # the reserved rnorm
        else:
            (d0, d1), codes = oracle.tq_codes(block, name)
            table, scales = oracle.TQ[name][1], [d0] * 16 + [d1] * 16
        assert index[i].tolist() == codes
        exact = [np.float32(table[k]) * np.float32(s) for k, s in zip(codes, scales, strict=True)]
        assert values[i].tolist() == [float(v) for v in exact]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("turbo2", "0000" + "aa" * 32),
        ("turbo3", "0000" + "00" * 32 + "ff" * 16),
        ("turbo4", "00000000" + "88" * 64),
        ("turbo4_lm", "0000" + "88" * 64),
        ("turbo2_h64", "0000" + "aa" * 16),
        ("turbo3_h64", "0000" + "00" * 16 + "ff" * 8),
        ("turbo4_lm_h64", "0000" + "88" * 32),
        ("tq4_1s", "00000000" + "88" * 16),
        ("tq3_1s", "00000000" + "244992" * 4),
        ("q8_0", "0000" + "00" * 32),
        ("q4_0", "0080" + "88" * 16),
    ],
)
def test_zero_block(name, block, device):
    fmt = formats.get(name)
    packed = fmt.quantize(torch.zeros(fmt.block_size, device=device))
    assert packed.cpu().numpy().tobytes().hex() == block
    assert (fmt.dequantize(packed) == 0).all()


# ---- gguf's own code as a second oracle


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_gguf_agrees(name):
    qtype = gguf.GGMLQuantizationType[name.upper()]
    x = np.concatenate([draw(k, 3, 1024).reshape(-1, 32) for k in ("gauss", "student", "ties")])
    x = x[np.abs(x).max(1) > 0]
    theirs = gguf.quants.quantize(x, qtype)
    assert differing_blocks(quantize(name, x), theirs, theirs.shape[-1]) == 0
    ours = formats.get(name).dequantize(torch.from_numpy(theirs)).numpy()
    assert (ours == gguf.quants.dequantize(theirs, qtype)).all()


def test_gguf_signs_another_zero():
    """A q4_0 block of -0.0 stores d = -0.0 in ggml's C code and here, +0.0 in gguf's Python."""
    zeros = -np.zeros((1, 32), np.float32)
    theirs = gguf.quants.quantize(zeros, gguf.GGMLQuantizationType.Q4_0).tobytes()
    ours = quantize("q4_0", zeros).tobytes()
    assert (theirs[:2], ours[:2]) == (b"\0\0", b"\0\x80")
    assert theirs[2:] == ours[2:]


# ---- turbo4 and turbo4_lm


def test_turbo4_lm_drops_the_unused_field():
    fmt = formats.get("turbo4_lm")
    assert (fmt.block_bytes, fmt.bits_per_value, fmt.ggml_type) == (66, 4.125, None)


def test_turbo4_lm_table_is_lloyd_max():
    table = sorted(set(formats.get("turbo4_lm").table))
    expected = codebook.lloyd_max(4)[0] / math.sqrt(128)
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-12)
    # ... and six printed digits of TQ4's table, an independent source of the same numbers.
    np.testing.assert_allclose(np.array(table) * math.sqrt(128), oracle.TQ["tq4_1s"][1], atol=5e-6)


def test_turbo4_table_is_equal_probability_means():
    """The finding: all six digits of the fork's 4-bit table, and not the Lloyd-Max ones."""
    means = codebook.equal_probability_means(4) / math.sqrt(128)
    table = np.array(oracle.TURBO["turbo4"][1], float)
    assert np.abs(table - means.numpy()).max() < 5.1e-7  # half a unit of the sixth digit
    lloyd = codebook.lloyd_max(4)[0].numpy() / math.sqrt(128)
    assert np.abs(table - lloyd).max() > 0.06


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("turbo2", "0.1188"),
        ("turbo3", "0.0338"),
        ("turbo4", "0.0181"),
        ("turbo4_lm", "0.0092"),
        ("tq4_1s", "0.00527"),
        ("tq3_1s", "0.0226"),
        ("q4_0", "0.00741"),
    ],
)
def test_relative_mse_on_gaussian_data(name, published):
    x = torch.randn(8192, 128, generator=torch.Generator().manual_seed(1))
    fmt = formats.get(name)
    squares = (fmt.dequantize(fmt.quantize(x)) - x).square().mean(1)
    error, se = float(squares.sum() / x.square().mean(1).sum()), float(squares.std()) / 8192**0.5
    half_digit = 0.5 * 10 ** -len(published.split(".")[1])
    assert abs(error - float(published)) < half_digit + 4 * se, f"{error:.5f}"
    assert se < 0.005 * error  # sharp enough to tell 0.0181 from 0.0092 forty times over


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_blocks_of_64_have_the_error_of_a_64_dim_vector(bits):
    """Gaussian vectors need no rotation: Lloyd-Max on their own unit vectors, in float64.

    A little below 128's error: coordinates of a shorter unit vector have thinner tails.
    """
    u = np.random.default_rng(8).standard_normal((1 << 15, 64))
    u *= math.sqrt(64) / np.linalg.norm(u, axis=1, keepdims=True)
    centroids, thresholds = (t.numpy() for t in codebook.lloyd_max(bits))
    c = centroids[np.searchsorted(thresholds, u)]
    c *= math.sqrt(64) / np.linalg.norm(c, axis=1, keepdims=True)
    expected = ((c - u) ** 2).mean(1)
    fmt = formats.get({2: "turbo2_h64", 3: "turbo3_h64", 4: "turbo4_lm_h64"}[bits])
    x = torch.randn(1 << 15, 64, generator=torch.Generator().manual_seed(3))
    ours = (fmt.dequantize(fmt.quantize(x)) - x).square().sum(1) / x.square().sum(1)
    se = math.sqrt((ours.var() + expected.var()) / len(ours))
    # On N(0, 1) the fork's 3-bit table errs by 0.06 % more than Lloyd-Max, its 2-bit one by 0.
    assert abs(ours.mean() - expected.mean()) < 4 * se + 1e-3 * expected.mean()
    assert se < 0.01 * expected.mean()


def test_turbo4_has_twice_the_error_of_the_optimum():
    """The same by integration over N(0, 1), no samples: 0.0181 against 0.0095 per value."""
    edges = torch.tensor(oracle.TURBO["turbo4"][2]) * math.sqrt(128)
    fork = codebook.distortion(torch.tensor(oracle.TURBO["turbo4"][1]) * math.sqrt(128), edges)
    best = codebook.distortion(*codebook.lloyd_max(4))
    assert best == pytest.approx(0.009501008008, abs=1e-12)  # mpmath, 40 digits
    assert fork / best > 1.9


@pytest.mark.parametrize(
    ("name", "bits"),
    [("turbo2", 2), ("turbo3", 3), ("turbo4_lm", 4)]
    + [(f"trellis{bits}{group}", bits) for bits in (2, 3, 4) for group in ("", "_h64")],
)
@pytest.mark.parametrize("kind", ["gauss", "student", "spike", "offset", "ties"])
def test_turboquant_upper_bound(name, bits, kind):
    """Theorem 1, for any data: relative MSE <= sqrt(3) pi / 2 4^-bits."""
    x = torch.from_numpy(np.concatenate([draw(kind, s, 128) for s in range(128)])).view(128, 128)
    fmt = formats.get(name)
    error = (fmt.dequantize(fmt.quantize(x)) - x).square().sum() / x.square().sum()
    assert error <= codebook.turboquant_upper_bound(bits)


def test_fork_turbo4_breaks_the_upper_bound():
    """The finding again: its table misses even the guarantee, 0.0181 > 0.0106."""
    x = torch.randn(1024, 128, generator=torch.Generator().manual_seed(4))
    fmt = formats.get("turbo4")
    error = (fmt.dequantize(fmt.quantize(x)) - x).square().sum() / x.square().sum()
    assert error > 1.6 * codebook.turboquant_upper_bound(4)


@pytest.mark.parametrize("name", [n for n in formats.names() if n.startswith(("turbo", "trellis"))])
def test_norm_is_kept(name):
    """Norm correction: lengths survive up to fp16's rounding, half an ulp = 2^-11."""
    x = torch.from_numpy(draw("student", 9, 64 * 128)).view(64, 128)
    fmt = formats.get(name)
    ratio = fmt.dequantize(fmt.quantize(x)).norm(dim=1) / x.norm(dim=1)
    assert (ratio - 1).abs().max() < 2**-11 + 1e-6


@pytest.mark.parametrize("name", formats.names())
def test_no_format_beats_the_rate_distortion_bound(name):
    """Shannon: at R stored bits a value, Gaussian data cannot be kept better than 4^-R."""
    fmt = formats.get(name)
    x = torch.randn(2048, 128, generator=torch.Generator().manual_seed(2))
    error = (fmt.dequantize(fmt.quantize(x)) - x).square().mean().double()
    bound = codebook.shannon_bound(fmt.bits_per_value)
    assert error >= (0 if fmt.name == "f32" else bound)


@pytest.mark.parametrize("name", [n for n in formats.names() if formats.get(n).rotation])
def test_rotated_then_unrotated(name, device):
    fmt = formats.get(name)
    x = torch.randn(3, 5, 2 * fmt.block_size, generator=torch.Generator().manual_seed(3))
    packed = fmt.quantize(x.to(device))
    rotated = fmt.dequantize(packed, rotated=True)
    direct = fmt.dequantize(packed)
    assert torch.equal(rotation.unrotate(rotated, fmt.rotation), direct)
    assert (rotated - direct).norm() > direct.norm()  # the two domains are not the same thing
