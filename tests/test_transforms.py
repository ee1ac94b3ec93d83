"""Key transforms: exact where nothing is rounded, optimal where they claim to be."""

import pytest
import torch

from tqlab import formats
from tqlab.attention import attend
from tqlab.calibration import LayerStats
from tqlab.kvcache import KVCache, LayerShape, Policy
from tqlab.models.base import rope_interleaved, rope_neox
from tqlab.models.turn import Turn
from tqlab.rotation import unrotate
from tqlab.transforms import KINDS, RANGE, balance, mean_position, mean_product, regular

HEADS, DIM, N = 2, 64, 40
ROTATIONS = {"interleaved": rope_interleaved, "neox": rope_neox}


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turning(x, positions, frequencies, kind):
    """Rope from its definition: x float [..., T, D], positions [T]; pairs past the end stay."""
    half, out = len(frequencies), x.clone().double()
    for j, frequency in enumerate(frequencies.tolist()):
        a, b = (2 * j, 2 * j + 1) if kind == "interleaved" else (j, j + half)
        angle = positions.double() * frequency
        p, q = x[..., a].double(), x[..., b].double()
        out[..., a] = p * angle.cos() - q * angle.sin()
        out[..., b] = p * angle.sin() + q * angle.cos()
    return out


def frequencies(n_rot):
    return 1000.0 ** -(torch.arange(0, n_rot, 2, dtype=torch.float64) / n_rot)


@pytest.fixture(params=[("interleaved", DIM), ("neox", DIM), ("neox", 48), ("interleaved", 32)])
def turn(request):
    kind, n_rot = request.param
    made = Turn(frequencies(n_rot), ROTATIONS[kind], DIM, torch.device("cpu"))
    made.kind = kind
    made.reserve(4000)
    return made


@pytest.fixture
def stats():
    """Keys with an offset and an uneven spread, queries with another."""
    factor = random(7, 2, HEADS, DIM, DIM)
    products = factor @ torch.diag(torch.logspace(-2, 1, DIM)) @ factor.mT
    cov, second = (products + products.mT) / 2
    return LayerStats(3 * random(8, HEADS, DIM), cov, second)


# ---- rope to any position


def test_turning_is_rope(turn):
    x, positions = random(1, 2, HEADS, 5, DIM), torch.tensor([0, 7, 7, 333, 3999])
    expected = turning(x, positions, turn.frequencies, turn.kind).float()
    torch.testing.assert_close(turn(x, positions), expected, atol=1e-5, rtol=0)
    back = turn(turn(x, positions), positions, back=True)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    with pytest.raises(IndexError):
        turn(x, positions + 1)


def test_columns_and_factors_are_the_product_with_a_turned_vector(turn):
    q, mean, positions = random(1, 1, HEADS, 6, DIM), random(2, HEADS, 1, DIM), torch.arange(50)
    found = turn.factors(q, mean) @ turn.columns(positions).T
    expected = q @ turn(mean, positions).mT
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# ---- statistics


def test_means_over_positions_are_those_of_turned_vectors(turn, stats):
    """Against rope written out at every position."""
    mean, positions = stats.mean[:, None].double(), torch.arange(RANGE)
    every = turning(mean.expand(-1, RANGE, -1), positions, turn.frequencies, turn.kind)
    found = mean_position(mean, turn)
    torch.testing.assert_close(found, every.mean(1, keepdim=True), atol=1e-4, rtol=0)
    fast = turn.frequencies[:3] > 0.3  # such pairs have lost their offset
    assert found[..., turn.first[:3][fast]].abs().max() < 0.01


def test_moments_over_positions_are_those_of_turned_vectors(turn, stats):
    """Against rope written out; 256 random positions leave a sixteenth of what averages out."""
    root = torch.linalg.cholesky(stats.cov.double()).mT
    every = [
        turning(root, torch.full((DIM,), p), turn.frequencies, turn.kind)
        for p in range(0, RANGE, 31)
    ]
    expected = sum(y.mT @ y for y in every) / len(every)
    scale = expected.diagonal(dim1=1, dim2=2).mean()
    found = mean_product(stats.cov.double(), turn)
    assert (found - expected).abs().mean() < 0.1 * scale
    assert (stats.cov - expected).abs().mean() > 0.1 * scale


def test_balance_is_the_geometric_mean_and_its_inverse_is_one(stats):
    cov, second = regular(stats)
    forward, inverse = balance(cov, second)
    eye = torch.eye(DIM, dtype=torch.float64).expand(HEADS, -1, -1)
    torch.testing.assert_close(inverse @ forward, eye, atol=1e-8, rtol=0)
    mean = forward.mT @ forward  # G = C^-1 # A is the solution of G C G = A
    scale = second.abs().max()
    torch.testing.assert_close(mean @ cov @ mean / scale, second / scale, atol=1e-9, rtol=0)


def test_no_other_transform_has_a_smaller_expected_error(stats):
    cov, second = regular(stats)

    def error(t):
        gram = t.mT @ t
        first = (second @ torch.linalg.inv(gram)).diagonal(dim1=1, dim2=2).sum(-1)
        return first * (cov @ gram).diagonal(dim1=1, dim2=2).sum(-1)

    forward, _ = balance(cov, second)
    for seed in range(20):
        other = forward + 0.02 * forward.std() * random(seed, HEADS, DIM, DIM).double()
        assert bool((error(other) > error(forward)).all())
    assert bool((error(torch.eye(DIM, dtype=torch.float64)[None]) > 2 * error(forward)).all())


# ---- theorems: without rounding a transform changes nothing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact", [(0, 0), (2, 5)])
@pytest.mark.parametrize("pads", [None, [0, 9]])
def test_with_exact_storage_attention_is_unchanged(kind, exact, pads, turn, stats, monkeypatch):
    """f32 everywhere: centring is a constant, T and T^-1 cancel, the bias is q . RoPE_p(mu)."""
    monkeypatch.setattr("tqlab.kvcache.mixed.EXACT", "f32")
    transform = KINDS[kind](stats, turn, None, DIM)
    policy, shape, start = Policy(*exact, [transform]), LayerShape(HEADS, DIM), 100
    pre, v = random(3, 2, HEADS, N, DIM) + stats.mean[:, None], random(4, 2, HEADS, N, DIM)
    lead = torch.tensor(pads or [0, 0])[:, None]
    positions = start + (torch.arange(N) - lead).clamp(min=0)[:, None]
    k, q = turn(pre, positions), random(5, 2, 6, N, DIM) / 8
    plain = KVCache([shape], "f32", "f32", N, 2, pads=pads)
    mixed = KVCache([shape], "f32", "f32", N, 2, pads=pads, policy=policy, start=start)
    expected = attend(q, plain.update_and_fetch(0, k, v), 1.0)
    for n in (17, 1, N - 18):
        step = slice(mixed.offset, mixed.offset + n)
        out = attend(q[:, :, step], mixed.update_and_fetch(0, k[:, :, step], v[:, :, step]), 1.0)
        mixed.advance(n)
        for row, pad in enumerate(pads or [0, 0]):
            seen = slice(max(0, pad - step.start), None)
            # logits up to 30 with an error of 1e-6 of their largest terms
            torch.testing.assert_close(
                out[row, :, seen], expected[row, :, step][:, seen], atol=2e-4, rtol=0
            )


def test_a_position_off_by_one_would_be_seen(turn, stats):
    """What the theorem would miss if rope turned keys by little: it does not."""
    transform, positions = KINDS["bal"](stats, turn, None, DIM), torch.arange(N)
    k = turn(random(3, 1, HEADS, N, DIM), positions)
    z = transform.encode(k, positions)
    torch.testing.assert_close(transform.decode(z, positions), k, atol=1e-3, rtol=0)
    assert (transform.decode(z, positions + 1) - k).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["none", "pair-scale", "bal", "x"])
@pytest.mark.parametrize("name", ["turbo3", "turbo3_h64"])
def test_products_with_decoded_keys_are_those_with_keys_undone_by_hand(kind, name, turn, stats):
    """Whatever bytes are read: undo the rotation, the padding, T and the centre one by one."""
    fmt, positions = formats.get(name), torch.arange(60, 60 + N)
    padded = 128 if name == "turbo3" else 64
    transform = KINDS[kind](stats, turn, fmt.rotation, padded)
    y, q = random(9, 1, HEADS, N, padded), random(10, 1, HEADS, 3, DIM)
    found = transform.query(q) @ transform.decode(y, positions).mT
    z = unrotate(y, fmt.rotation)[..., :DIM].double()
    expected = q.double() @ by_hand(kind, z, stats, turn, positions).mT
    scale = expected.abs().max()
    torch.testing.assert_close(found.double() / scale, expected / scale, atol=2e-5, rtol=0)


def by_hand(kind, z, stats, turn, positions):
    mean = stats.mean[:, None].double()
    if kind == "none":
        return z
    if kind == "pair-scale":
        return z / KINDS[kind](stats, turn, None, DIM).scale.double()
    if kind == "bal":
        keys = z @ balance(*regular(stats))[1].mT + mean
        return turning(keys, positions, turn.frequencies, turn.kind)
    moments = (mean_product(x, turn) for x in regular(stats))
    bias = turning(mean.expand(-1, N, -1), positions, turn.frequencies, turn.kind)
    return z @ balance(*moments)[1].mT + bias


def test_a_pair_has_one_scale(turn, stats):
    scale = KINDS["pair-scale"](stats, turn, None, DIM).scale
    torch.testing.assert_close(turn.mates(scale), scale)
    assert scale.std() > 0.05
