"""Products with packed TQ weights: planted bugs with the numbers they give, and refusals."""

import pytest
import torch
from planted import barriers, first_failure, planted, without_barrier
from shader_cases import gaussian
from shader_cases.linear import dense, nmse, weights

import metalsim
from tqlab import metal, ops, rotation

TWICE = 0.9384765625  # (31/32)^2: the 0.938 reported against the fork's mat-vec
W = weights("tq4_1s", 13, 288)
X = gaussian(3, 288)


def linear(x, w=W, rotated=False, engine="sim"):
    with metal.simulate(engine):
        return ops.tq_linear(x, w, "tq4_1s", rotated)


def backend_nmse(y, truth):
    """test-backend-ops divides by the tested side."""
    return float(((y - truth).square().sum() / y.square().sum()).item())


def test_a_doubled_reduction_gives_exactly_32_times(tmp_path):
    good = linear(X)
    with planted(tmp_path, "linear.h", "simd_sum(sums[r][c])", "simd_sum(simd_sum(sums[r][c]))"):
        bad = linear(X)
    assert torch.equal(bad, 32 * good)
    assert backend_nmse(bad.double(), X.double() @ dense("tq4_1s", W).T) == pytest.approx(
        TWICE, abs=1e-7
    )


def test_stale_activations():
    """What a shared buffer gives when the rotation has not run, or has run twice."""
    truth = X.double() @ dense("tq4_1s", W).T
    assert nmse(linear(X, rotated=True), truth) > 1
    twice = rotation.rotate(X, "wht32")
    assert nmse(linear(twice), truth) > 1
    assert nmse(linear(twice, rotated=True), truth) < 1e-12


@pytest.mark.parametrize("number", barriers("linear.h"))
def test_every_barrier_is_needed(tmp_path, number):
    with without_barrier(tmp_path, "linear.h", number):
        noticed = first_failure("tq_matmul", "sim-checked")
    assert isinstance(noticed, metalsim.Diagnostics)
    assert {f.file for f in noticed.findings} == {"linear.h"}
    assert noticed.kinds <= {"race", "uninitialised"}


BLOCKS = "BITS = {} }};\n  static float scale(device const uchar* block, uint chunk) {{\n    "
BLOCKS += "return float(((device const half*)block)[{}]);"


@pytest.mark.parametrize(
    ("shader", "file", "before", "after"),
    [
        *(
            ("tq_matvec", "blocks.h", BLOCKS.format(n, "chunk >> 1"), BLOCKS.format(n, other))
            for n in (3, 4)
            for other in ("chunk >> 1 ^ 1", "0")
        ),
        ("tq_matvec", "linear.h", "chunk < n_in / CHUNK;", "chunk <= n_in / CHUNK;"),
        ("tq_matvec", "linear.h", "chunk < n_in / CHUNK;", "chunk < n_in / CHUNK - 1;"),
        ("tq_matvec", "linear.h", "load4(from + 4)", "load4(from + 5)"),
        ("tq_matmul", "linear.h", "tokens + k, BLOCK)", "tokens + k + 1, BLOCK)"),
        ("tq_matmul", "linear.h", "ulong2(0, 0), true", "ulong2(0, 0), false"),
        ("tq_moe", "linear.h", "return pairs[first + i] / share;", "return pairs[first + i];"),
        ("tq_moe", "tq_moe.metal", "i.y / sizes[3]", "i.y"),
    ],
)
def test_wrong_results_are_noticed(tmp_path, shader, file, before, after):
    with planted(tmp_path, file, before, after):
        assert isinstance(first_failure(shader), AssertionError)


@pytest.mark.parametrize(
    ("shader", "before", "after"),
    [
        ("tq_matvec", "min(first + r, n_out - 1)", "min(first + r, n_out)"),
        ("tq_matvec", "min(c, n_cols - 1)", "c"),
        ("tq_matmul", "min(first_out + c / 4, n_out - 1)", "first_out + c / 4"),
        ("tq_matmul", "min(t / 4, rows.count - 1)", "t / 4"),
    ],
)
def test_reading_past_the_end_is_noticed(tmp_path, shader, before, after):
    """The result is right: only the checked simulator sees it."""
    with planted(tmp_path, "linear.h", before, after):
        assert "out of bounds" in str(first_failure(shader, "sim-checked"))


E8 = weights("tq3_1s", 4, 5, 64)
IDS = torch.tensor([[0, 3]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.tq_linear(X.double(), W, "tq4_1s"), "x must be float32, float16, bfloat16"),
        (lambda: ops.tq_linear(X[:, ::2], W, "tq4_1s"), "x must be contiguous, not strided"),
        (lambda: ops.tq_linear(X[:, :250].clone(), W, "tq4_1s"), "x: the last axis.* 32: 250"),
        (lambda: ops.tq_linear(X, W.float(), "tq4_1s"), "w must be uint8, not float32"),
        (lambda: ops.tq_linear(X, W[0], "tq4_1s"), r"w must have 2 axes, not shape \(180,\)"),
        (lambda: ops.tq_linear(X, W, "tq3_1s"), "w has rows of 180 bytes, but 288.* are 144 bytes"),
        (lambda: ops.tq_linear(X, W.flatten()[2:182].view(1, 180), "tq4_1s"), "w must start"),
        (lambda: ops.tq_linear(X, W, "q8_0"), "type is tq3_1s or tq4_1s, not 'q8_0'"),
        (lambda: ops.tq_linear(X, W[:0], "tq4_1s"), "w has no rows"),
        (lambda: ops.tq_linear(X, W.to("meta"), "tq4_1s"), "w is on meta, the other.* on cpu"),
        (lambda: ops.tq_moe_linear(X[:1, :64].clone(), E8, "tq3_1s", IDS.float()), "experts must"),
        (lambda: ops.tq_moe_linear(X[:1, :64].clone(), E8, "tq3_1s", IDS[0]), r"experts.*\[T, k\]"),
        (lambda: ops.tq_moe_linear(X[:, :64].clone(), E8, "tq3_1s", IDS), r"x must be \[T, in\]"),
        (lambda: ops.tq_moe_linear(X[:1, :64].clone(), E8[0], "tq3_1s", IDS), "w must have 3 axes"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("engine", ["sim", "sim-checked"])
def test_no_rows_launch_nothing(engine):
    assert linear(X[:0], engine=engine).shape == (0, 13)
    with metal.simulate(engine):
        none = ops.tq_moe_linear(X[:0, :64], E8, "tq3_1s", IDS[:0])
    assert none.shape == (0, 2, 5)


def test_routes():
    """Every pair once, under its expert; no tile over 32 pairs; unknown experts together."""
    experts = torch.tensor([2] * 40 + [0, -1, 7, 2, 5], dtype=torch.int32)
    pairs, tiles = ops.linear._route(experts, 6)
    assert sorted(pairs.tolist()) == list(range(45))
    seen = [
        (group, pair)
        for group, first, count in tiles.tolist()
        for pair in pairs[first : first + count].tolist()
    ]
    wanted = [(e if 0 <= e < 6 else 6, p) for p, e in enumerate(experts.tolist())]
    assert sorted(seen) == sorted(wanted)
    assert tiles[:, 2].max() == 32
    assert tiles.dtype == pairs.dtype == torch.int32
