"""Attention over packed keys and values: planted bugs, strict pass of every format, refusals."""

import pytest
import torch
from planted import barriers, first_failure, planted, without_barrier
from shader_cases import gaussian
from shader_cases.attention import PAIRS, Setting, attends, define, pack
from shader_cases.linear import nmse

import metalsim
from tqlab import attention, formats, kvcache, metal, ops

N = 40
Q = gaussian(1, 4, 2, 128)
K, V = (pack("turbo3", gaussian(1, 2, N, 128, seed=seed)) for seed in (1, 2))


def attend(q=Q, k=K, v=V, k_format="turbo3", v_format="turbo3", n=N, **more):
    return ops.kv_attention(q, k, v, k_format, v_format, n, 128**-0.5, **more)


def test_reference_is_the_attention_of_the_cache():
    """The op's reference and attention.attend agree on a sliding view with padding."""
    shape = kvcache.LayerShape(2, 128, window=9)
    cache = kvcache.KVCache([shape], "q8_0", "turbo3", N, batch=2, pads=[0, 3])
    k, v, q = (gaussian(2, h, 12, 128, seed=h) for h in (2, 2, 4))
    view = cache.update_and_fetch(0, k, v)
    expected = attention.attend(q, view, 0.1)
    pads = (view.pads - view.first).clamp(min=0).int()
    args = (view.k.data.contiguous(), view.v.data.contiguous(), "q8_0", "turbo3", view.n, 0.1)
    got = ops.kv_attention(q, *args, view.window, pads)
    visible = torch.ones(2, 1, 12, 1, dtype=torch.bool)
    visible[1, :, :3] = False  # queries that are padding themselves: zeros here
    torch.testing.assert_close(got * visible, expected * visible, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 9])
def test_a_double_inverse_rotation_destroys_the_output(tmp_path, steps):
    """NMSE 2.0 and cosine 0: what the fork's TurboFlash does."""
    q = gaussian(1, 4, steps, 128)
    sides = [formats.get("turbo3").dequantize(x).double() for x in (K, V)]
    truth = define(q.double(), *sides, 128**-0.5, Setting(steps, N))
    with metal.simulate("sim"):
        y = attend(q)
        twice = ops.wht(y, "wht128", True).double()
    assert nmse(y, truth) < 1e-12
    assert nmse(twice, truth) == pytest.approx(2.0, abs=0.3)
    assert abs(torch.cosine_similarity(twice.flatten(), truth.flatten(), 0)) < 0.15


@pytest.mark.parametrize(
    ("shader", "number"),
    [(name, i) for name in ("kv_decode", "kv_prefill") for i in barriers(f"{name}.metal")],
)
def test_every_barrier_is_needed(tmp_path, shader, number):
    with without_barrier(tmp_path, f"{shader}.metal", number):
        noticed = first_failure(shader, "sim-checked")
    assert isinstance(noticed, metalsim.Diagnostics)
    assert noticed.kinds <= {"race", "uninitialised"}


@pytest.mark.parametrize(
    ("shader", "before", "after"),
    [
        ("kv_decode", "simd_sum(total[r])", "simd_sum(simd_sum(total[r]))"),
        ("kv_decode", "slot <= last_slot(s, row);", "slot <= last_slot(s, row) + 1;"),
        ("kv_decode", "total[r] * decay + weight;", "total[r] + weight;"),
        ("kv_decode", "weights[r * KEYS + j]", "weights[r * KEYS + j ^ 1]"),
        ("kv_prefill", "slot <= last_slot(s, row);", "slot < last_slot(s, row);"),
        ("kv_prefill", "simd_sum(total[i])", "simd_sum(simd_sum(total[i]))"),
        ("kv_prefill", "r / 8 * 64 + r % 8 * 9", "r / 8 * 64 + r % 8 * 8"),
        ("kv_prefill", "ulong2(0, 0), true", "ulong2(0, 0), false"),
    ],
)
def test_wrong_results_are_noticed(tmp_path, shader, before, after):
    with planted(tmp_path, f"{shader}.metal", before, after):
        assert isinstance(first_failure(shader), AssertionError)


@pytest.mark.parametrize(
    ("shader", "before"), [("kv_decode", "min(slot, stop - 1)"), ("kv_prefill", "stop - 1)")]
)
def test_reading_past_the_end_is_noticed(tmp_path, shader, before):
    """Spare slots hold NaN, and a cache without any ends where the last key does."""
    with planted(tmp_path, f"{shader}.metal", before, before.replace("stop - 1", "stop")):
        assert first_failure(shader, "sim-checked") is not None


@pytest.mark.parametrize("shader", ["kv_decode", "kv_prefill"])
def test_strict_with_every_format(shader):
    """Nothing that Apple's compiler would refuse about address spaces, whatever the #defines."""
    for k_format, v_format, dim in PAIRS[1:5]:
        defines = (("K_FORMAT", k_format), ("V_FORMAT", v_format), ("K_DIM", dim), ("V_DIM", 128))
        source = metal.source(shader, marked=False)
        head = "".join(f"#define {key} {value}\n" for key, value in defines)
        assert metalsim.strict_check(head + source, shader) == []


@pytest.mark.parametrize("steps", [1, 9])
def test_static_threadgroup_memory(steps):
    """At the largest head, below the 32 KiB that a threadgroup has."""
    args = ("turbo4_lm", "turbo2", 512, torch.float32, Setting(steps, 9, group=4))
    with metal.simulate("sim"):
        attends(*args)  # the simulator refuses more than 32 KiB


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attend(Q.double()), "q must be float32, float16, bfloat16, not float64"),
        (lambda: attend(Q.mT), "q must be contiguous, not strided"),
        (lambda: attend(Q[0]), r"q must be \[B, H, T, D\]"),
        (lambda: attend(k=K.float()), "k must be uint8"),
        (lambda: attend(v=V[:, :, ::2]), "v must be contiguous"),
        (lambda: attend(v=V[0]), r"v must be \[B, H_kv, slots, bytes\]"),
        (lambda: attend(k_format="q4_0"), "k_format is one of f16, .*, not 'q4_0'"),
        (lambda: attend(v_format="turbo4"), "v has heads of 50 bytes, but 128 values.* are 68"),
        (lambda: attend(k=K.repeat(2, 1, 1, 1)), "k has a batch of 2, q of 1"),
        (lambda: attend(Q[:, :3].clone()), "k has 2 heads, which do not divide the 3 of q"),
        (lambda: attend(v=V[:, :1].clone()), "v has 1 heads, k 2"),
        (lambda: attend(n=41), "n must lie between T = 2 and 40 slots: 41"),
        (lambda: attend(n=1), "n must lie between T = 2"),
        (lambda: attend(window=0), "window must be positive, not 0"),
        (lambda: attend(pads=torch.zeros(1)), "pads must be int32"),
        (lambda: attend(pads=torch.zeros(2, dtype=torch.int32)), r"pads must be \[B\]"),
        (lambda: attend(k=K.to("meta")), "k is on meta, the other arguments on cpu"),
        (lambda: attend(Q[..., :80].clone(), k_format="f16"), "q: heads of 80 values are no mult"),
        (lambda: attend(Q.repeat(1, 1, 1, 5)), "q: heads of 640 values; at most 512"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
