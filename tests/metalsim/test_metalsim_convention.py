"""The call convention of torch.mps.compile_shader, with its traps and its error types."""

import numpy as np
import pytest
import torch

import metalsim

COPY = (
    "kernel void copy(device const float* x, device float* y, uint i [[thread_position_in_grid]])"
    " { y[i] = x[i]; }"
)


def test_uncast_ints_are_64_bit(features):
    y = torch.zeros(4, dtype=torch.int32)
    features.read_words([7, 9], y, threads=4)
    assert y.tolist() == [7, 0, 9, 0]
    features.read_words([7, 9], y, threads=2, arg_casts={0: "int32"})
    assert y.tolist() == [7, 9, 9, 0]


def test_negative_and_boolean_ints(features):
    y = torch.zeros(2, dtype=torch.int32)
    features.read_words(-2, y, threads=2)
    assert y.tolist() == [-2, -1]
    features.read_words(True, y, threads=2)
    assert y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("cast", "dtype"),
    [("int8", np.int8), ("uint8", np.uint8), ("int16", np.int16), ("fp16", np.float16)],
)
def test_casts(features, cast, dtype):
    y = np.zeros(1, np.uint32)
    values = [1, -2, 3, 4]
    features.read_words(values, y, threads=1, arg_casts=cast)
    expected = np.array(values).astype(dtype).tobytes()[:4]
    assert y.tobytes()[: len(expected)] == expected


def test_bf16_cast_is_torch_rounding(features):
    values = [1.00390625, 3.14159, -0.1, 1.01171875]
    y = np.zeros(2, np.uint32)
    features.read_words(values, y, threads=2, arg_casts="bf16")
    expected = torch.tensor(values).bfloat16().view(torch.int16).numpy()
    np.testing.assert_array_equal(y.view(np.int16), expected)


def test_floats_are_32_bit_and_lists_may_be_cast(features):
    y = torch.zeros(3)
    features.read_float(0.1, y)
    assert y.tolist() == torch.full((3,), 0.1).tolist()
    h = torch.zeros(3, dtype=torch.float16)
    features.read_half([0.5, 1e6, -2.25], h, arg_casts={0: "fp16"})
    assert h.tolist() == [0.5, float("inf"), -2.25]


def test_threads_default_to_numel_of_the_first_tensor(features):
    x, y = torch.arange(10.0), torch.zeros(20)
    features.copy(x, y)
    assert y.tolist() == [*range(10), *[0] * 10]
    features.copy(x, y, threads=0)
    features.copy(x, y, threads=3, group_size=[2])


def test_views_and_aliases_share_memory(features):
    x = torch.arange(32.0)
    features.copy(x[4:8], x[20:24], threads=4)
    assert x[20:24].tolist() == [4, 5, 6, 7]
    features.copy(x, x, threads=32)
    assert x[:4].tolist() == [0, 1, 2, 3]


def test_list_of_tensors_is_a_list_of_addresses(features):
    rows = [torch.full((4,), float(i)) for i in range(3)]
    y = torch.zeros(3)
    features.gather(rows, y, threads=3)
    assert y.tolist() == [0, 1, 2]


def test_bounds_are_those_of_the_view(load):
    x, y = torch.arange(32.0), torch.zeros(8)
    with pytest.raises(metalsim.Diagnostics, match="out of bounds"):
        load("features").copy(x[:7], y, threads=8)


@pytest.mark.parametrize(
    ("error", "args", "options"),
    [
        (RuntimeError, ([],), {}),
        (RuntimeError, ("text",), {}),
        (RuntimeError, ([1, 2.5],), {}),
        (RuntimeError, (2**63,), {}),
        (RuntimeError, (np.int64(3),), {}),
        (RuntimeError, (1,), {"arg_casts": "uint32"}),
        (RuntimeError, (1,), {"arg_casts": 3}),
        (RuntimeError, (1,), {"threads": [4, 4], "group_size": 4}),
        (RuntimeError, (1,), {"threads": [1, 1, 1, 1]}),
        (RuntimeError, (1,), {"threads": []}),
        (RuntimeError, (1,), {"threads": "4"}),
        (RuntimeError, (1,), {"threads": 4, "group_size": 0}),
        (ValueError, (1,), {"threads": 2048, "group_size": 1025}),
        (ValueError, (1,), {"threads": [64, 64], "group_size": [64, 64]}),
    ],
)
def test_error_types(features, error, args, options):
    with pytest.raises(error) as caught:
        features.read_words(*args, torch.zeros(4, dtype=torch.int32), **options)
    assert not isinstance(caught.value, metalsim.Diagnostics)


def test_no_tensor_and_no_threads(features):
    with pytest.raises(RuntimeError, match="undefined"):
        features.read_float(1.0, 2.0)


def test_missing_argument_is_named(features):
    with pytest.raises(RuntimeError, match=r"1 \(y\)"):
        features.copy(torch.zeros(1))


def test_unknown_kernel(features):
    with pytest.raises(AttributeError, match="no_such"):
        _ = features.no_such
    assert "copy" in dir(features)


def test_thread_limit_of_a_kernel(features):
    assert features.copy.max_threads_per_threadgroup == 1024
    assert features.copy.thread_execution_width == 32
    y = torch.zeros(128)
    features.small_groups(y)
    assert y.sum() == 128
    with pytest.raises(ValueError, match="64"):
        features.small_groups(y, threads=128, group_size=65)


def test_threadgroup_memory_limit(features):
    y = torch.zeros(32)
    features.full(y)
    assert y.sum() == 32
    with pytest.raises(RuntimeError, match="32784 bytes exceed"):
        features.large(y)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (COPY.replace("y[i] = x[i]", "y[i] = z[i]"), "own.metal:1"),
        (COPY + "\n// caf\u00e9", "own.metal:2: .*ASCII"),
        ("\n" + COPY.replace("device const float* x", "const float* x"), "own.metal:2: .*space"),
        (COPY.replace("y[i] =", "double z ="), "double does not exist"),
        (COPY.replace("device float* y", "device float y"), "pointer or reference"),
        (COPY.replace("device float* y", "threadgroup float* y [[threadgroup(0)]]"), "dynamic"),
        ("#include <vector>\n" + COPY, "own.metal:1"),
        ("constant int N [[function_constant(0)]];\n" + COPY, "function constants"),
        (COPY.replace("uint i", "texture2d<float> i [[texture(0)]], uint i"), "textures"),
        (COPY.replace("void", "int"), "returns void"),
    ],
)
def test_a_shader_that_does_not_compile_is_a_syntax_error(compiler, source, message):
    with pytest.raises(SyntaxError, match=message):
        metalsim.compile_shader(source, name="own.metal")


def test_bad_options():
    with pytest.raises(ValueError, match="mps"):
        metalsim.compile_shader(COPY, device="mps")
    with pytest.raises(ValueError, match="check"):
        metalsim.compile_shader(COPY, device="cuda", check=True)
