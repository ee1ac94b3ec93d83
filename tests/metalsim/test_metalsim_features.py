"""Kernels give what numpy gives: bit for bit where one rounding is defined."""

import numpy as np
import pytest
import torch

rng = np.random.default_rng(7)


def test_half_arithmetic_is_numpy_float16_bit_for_bit(features):
    a, b = rng.standard_normal((2, 4096)).astype(np.float16)
    y = np.zeros((6, 4096), np.float16)
    features.arithmetic_half(a, b, y, threads=4096, group_size=128)
    expected = np.stack([a + b, a - b, a * b, a / b, a * b + b * b - a, -a * np.float16(2)])
    np.testing.assert_array_equal(y.view(np.uint16), expected.view(np.uint16))


def test_bfloat_arithmetic_is_torch_bit_for_bit(features):
    a, b = torch.randn(2, 2048, generator=torch.manual_seed(3)).bfloat16()
    y = torch.zeros(3, 2048, dtype=torch.bfloat16)
    features.arithmetic_bfloat(a, b, y, threads=2048, group_size=64)
    assert torch.equal(y, torch.stack([a + b, a * b, a / b]))


def test_conversions_round_to_nearest_even(features):
    special = [0.0, -0.0, 65504.0, 65520.0, 6e-8, 2.9e-8, 1e-40, np.inf, 1.0009765, 1.00048828125]
    x = np.concatenate([rng.standard_normal(118) * 100, special]).astype(np.float32)
    h, b, back = np.zeros(128, np.float16), torch.zeros(128).bfloat16(), np.zeros(128, np.float32)
    features.convert(x, h, b, back, threads=128)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(h.view(np.uint16), x.astype(np.float16).view(np.uint16))
    assert torch.equal(b, torch.from_numpy(x).bfloat16())


def test_every_half_survives_the_way_to_float_and_back(features):
    h = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16)
    x = h[~np.isnan(h)].astype(np.float32)
    out, b, back = np.zeros(x.size, np.float16), np.zeros(x.size, np.uint16), np.zeros_like(x)
    features.convert(x, out, b, back, threads=x.size, group_size=1024)
    np.testing.assert_array_equal(out.view(np.uint16), h[~np.isnan(h)].view(np.uint16))


def test_vectors_packed_types_and_swizzles(features):
    n = 32
    x = rng.standard_normal((n, 4)).astype(np.float32)
    bytes_ = rng.integers(0, 256, (n, 4)).astype(np.uint8)
    packed = rng.standard_normal((n, 3)).astype(np.float32)
    y = np.zeros((n, 8), np.float32)
    features.vectors(x, y, bytes_, packed, threads=n)
    v = 2 * x[:, [2, 3, 2, 3]]
    total = v[:, :2] + v[:, 2:]
    joined = np.concatenate([packed, total[:, :1]], axis=1)
    table = np.array([0.5, -1.5, 2.0, 3.25], np.float32)[np.arange(n) & 3]
    expected = np.stack(
        [
            v[:, 0],
            total[:, 1],
            ((bytes_[:, 0] >> 4) | (bytes_[:, 3] & 15)).astype(np.float32) * table,
            joined[:, 2] + joined[:, 3],
            ((v[:, 0] + v[:, 1] * 2) + v[:, 2] * 3) + v[:, 3] * 4,
            (v[:, 1].copy().view(np.uint32) & 0xFFFF).astype(np.float32),
            np.maximum(v, joined)[:, 3] + (v > joined).any(axis=1),
            joined[:, 1].astype(np.float16).astype(np.float32),
        ],
        axis=1,
    )
    np.testing.assert_array_equal(y, expected)


def test_functions(features):
    x = np.linspace(-2, 2, 64).astype(np.float32)
    y = np.zeros((8, 64), np.float32)
    features.functions(x, y, threads=64)
    bits = [bin(u).count("1") for u in x.view(np.uint32)]
    exact = {2: x.clip(-0.5, 0.5), 3: np.where(x > 0, 2, 1), 4: bits, 5: np.rint(4 * x)}
    for row, expected in exact.items():
        np.testing.assert_array_equal(y[row], np.asarray(expected, np.float32))
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(y[1], (wide * wide + 1).astype(np.float32))
    for row, expected in {0: np.exp(wide), 6: np.tanh(wide), 7: np.abs(wide) ** -0.5}.items():
        np.testing.assert_allclose(y[row], expected, rtol=3e-7)


def test_positions_in_three_dimensions_with_tail_groups(features):
    """Threads beyond the grid do not exist: groups at the edge are smaller."""
    threads, group = (7, 5, 3), (4, 2, 2)
    y = np.zeros((*threads[::-1], 8), np.uint32)
    features.positions(y, threads=threads, group_size=group)
    z, yy, x = np.meshgrid(*(np.arange(n) for n in threads[::-1]), indexing="ij")
    where = (x, yy, z)
    base = (1, 100, 10000)
    groups = [(t + g - 1) // g for t, g in zip(threads, group, strict=True)]
    size = [np.minimum(g, t - c // g * g) for c, g, t in zip(where, group, threads, strict=True)]
    index = x % 4 + size[0] * (yy % 2 + size[1] * (z % 2))
    expected = [
        sum(c // g * b for c, g, b in zip(where, group, base, strict=True)),
        sum(c % g * b for c, g, b in zip(where, group, base, strict=True)),
        sum(s * b for s, b in zip(size, base, strict=True)),
        sum(n * b for n, b in zip(groups, base, strict=True)) + 0 * x,
        index,
        index % 32,
        index // 32,
        1 + 0 * x,
    ]
    np.testing.assert_array_equal(y, np.stack(expected, axis=-1))


def test_collectives(features):
    x = rng.integers(-8, 9, (4, 32)).astype(np.float32)  # integers: sums are exact in any order
    y = np.zeros((14, 4, 32), np.float32)
    features.collectives(x, y, threads=128, group_size=64)
    lane = np.arange(32)
    votes = ((x > 0) * (1 << lane)).sum(axis=1, keepdims=True) & 0xFFFF
    whole = np.ones(32)
    expected = [
        x.sum(1, keepdims=True) * whole,
        x.max(1, keepdims=True) * whole,
        x.min(1, keepdims=True) * whole,
        x[:, lane ^ 5],
        np.where(lane + 3 < 32, x[:, np.minimum(lane + 3, 31)], x),
        np.where(lane >= 3, x[:, np.maximum(lane - 3, 0)], x),
        x[:, [7]] * whole,
        x[:, ::-1],
        votes * whole,
        x.cumsum(1) - x,
        x[:, (lane + 4) % 32],
        (x > 2.5).any(1, keepdims=True) + 2.0 * (x > -9).all(1, keepdims=True) * whole,
        np.where(lane + 30 < 32, x[:, np.minimum(lane + 30, 31)], 8.0),
        x[:, [0]] * whole,
    ]
    np.testing.assert_array_equal(y, np.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_simdgroup_matrices(features, dtype):
    """Small integers, so that every order of accumulation gives the same sum."""
    k = 24
    a, b = torch.from_numpy(rng.integers(-8, 9, (2, 8, k))).to(dtype)
    y = torch.zeros(8, 8)
    name = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}[dtype]
    kernel = getattr(features, f"product_{name}")
    kernel(a.contiguous(), b.contiguous(), y, k, threads=32, group_size=32, arg_casts="int32")
    assert torch.equal(y, a.float() @ b.float().T)


def test_results_do_not_depend_on_the_seed(features):
    x = rng.standard_normal(128).astype(np.float32)
    results = []
    for seed in range(10):
        features.seed = seed
        y = np.zeros((14, 128), np.float32)
        features.collectives(x, y, threads=128, group_size=64)
        results.append(y)
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0])


# ---- a kernel in the style of real ones --------------------------------------------------------
def hadamard(n: int) -> np.ndarray:
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantised_matvec(load, check, dtype):
    rows, columns = 6, 96
    words = rng.integers(0, 16, (rows, columns))
    scales = rng.random((rows, columns // 32)).astype(np.float16)
    packed = np.zeros((rows, columns // 32, 18), np.uint8)
    packed[..., :2] = scales.view(np.uint8).reshape(rows, -1, 2)
    nibbles = words.reshape(rows, -1, 16, 2)
    packed[..., 2:] = nibbles[..., 0] | nibbles[..., 1] << 4
    half = [0.1, 0.4, 0.7, 0.9, 1.3, 1.6, 2.1, 2.7]
    centroids = np.array([-v for v in half[::-1]] + half)
    x = torch.from_numpy(rng.standard_normal(columns)).to(dtype)
    y = torch.zeros(rows, dtype=dtype)
    name = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}[dtype]
    kernel = getattr(load("style", check), f"matvec_{name}")
    options = {"threads": rows * 32, "group_size": 64, "arg_casts": {3: "int32"}}
    kernel(torch.from_numpy(packed), x, y, [rows, columns], **options)
    rotated = x.double().numpy().reshape(-1, 32) @ hadamard(32)
    expected = (centroids[words] * np.repeat(scales, 32, 1)) @ rotated.ravel()
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    np.testing.assert_allclose(y.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("check", [False, True])
def test_half_pairs_and_threadgroup_atomics(load, check):
    h = rng.standard_normal((64, 2)).astype(np.float16)
    y, count = np.zeros_like(h), np.zeros(1, np.uint32)
    load("style", check).bits(h.view(np.uint32), y, count, threads=[64, 1], group_size=[64, 1])
    expected = np.stack([h[:, 1], np.where(h[:, 0] < 0, 0, h[:, 0])], axis=1).astype(np.float16)
    np.testing.assert_array_equal(y, expected)
    assert count[0] == (h[:, 0] < 0).sum()
