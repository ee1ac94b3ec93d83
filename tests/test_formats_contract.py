"""What every format promises whatever its bytes: shapes, dtypes, strides, sizes, clear errors."""

import pytest
import torch

from tqlab import formats

NAMES = formats.names()
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [128, 256, 640])
@pytest.mark.parametrize("name", NAMES)
def test_matrix(name, n, dtype, device):
    """Formats x dims x dtypes: sizes, bound on the error, and the same bytes as from float32."""
    if dtype == torch.float64 and device.type == "mps":
        pytest.skip("mps has no float64")
    fmt = formats.get(name)
    x = gaussian(2, 3, n, dtype=dtype).to(device)
    packed = fmt.quantize(x)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, n // fmt.block_size * fmt.block_bytes)
    assert packed.shape[-1] == fmt.nbytes(n) == n * fmt.bits_per_value / 8
    assert torch.equal(packed, fmt.quantize(x.float()))
    values = fmt.dequantize(packed)
    assert (values.dtype, values.shape) == (torch.float32, x.shape)
    error = (values - x.float()).square().mean() / x.float().square().mean()
    # Half of the stored bits spent well is the least a format must do (bf16 has 8 of 16).
    assert error <= 4.0 ** (-fmt.bits_per_value / 2)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_independent(name, device):
    """Batch shape, neighbours and tiling never change a block's bytes.

    Constant and integer rows put many values on a threshold: one sum in another order shows.
    """
    fmt = formats.get(name)
    x = gaussian(7, 4, 256, seed=1).to(device)
    x[1], x[2] = x[1, :, :1], x[2].round()
    packed = fmt.quantize(x)
    one_by_one = [fmt.quantize(row) for row in x.reshape(-1, fmt.block_size)]
    assert torch.equal(packed.flatten(), torch.cat(one_by_one))
    assert torch.equal(fmt.dequantize(packed[2, 3]), fmt.dequantize(packed)[2, 3])


@pytest.mark.parametrize("columns", [1, 2, 3, 8, 100])
def test_sums_run_in_index_order(columns, device):
    x = gaussian(128, columns, seed=7) * torch.logspace(-4, 4, 128)[:, None]
    expected = x[0].clone()
    for row in x[1:]:
        expected += row
    assert torch.equal(formats.base.serial_sum(x.to(device)).cpu(), expected)
    assert not torch.equal(x.T.contiguous().sum(1), expected)  # pairwise differs


@pytest.mark.parametrize("name", NAMES)
def test_tiles_join(name, monkeypatch):
    fmt = formats.get(name)
    x = gaussian(11, 128, seed=2)
    packed, values = fmt.quantize(x), fmt.dequantize(fmt.quantize(x))
    monkeypatch.setattr(formats.base, "_CPU_TILE_VALUES", 3 * 128)  # 11 rows: a ragged last tile
    assert torch.equal(fmt.quantize(x), packed)
    assert torch.equal(fmt.dequantize(packed), values)


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name, device):
    fmt = formats.get(name)
    x = gaussian(3, 256, 5, seed=3).to(device).mT  # [3, 5, 256], last axis strided
    assert not x.is_contiguous()
    packed = fmt.quantize(x)
    assert torch.equal(packed, fmt.quantize(x.contiguous()))
    wide = torch.zeros(3, 5, 2 * packed.shape[-1], dtype=torch.uint8, device=device)
    wide[..., ::2] = packed
    assert torch.equal(fmt.dequantize(wide[..., ::2]), fmt.dequantize(packed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_bytes_may_start_anywhere(name, shift):
    """A slice of a larger buffer need not be aligned to the size of a float."""
    fmt = formats.get(name)
    packed = fmt.quantize(gaussian(128, seed=4))
    buffer = torch.zeros(len(packed) + 4, dtype=torch.uint8)
    buffer[shift : shift + len(packed)] = packed
    assert torch.equal(fmt.dequantize(buffer[shift : shift + len(packed)]), fmt.dequantize(packed))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name, monkeypatch):
    """Nothing is written to, and packed bytes share no memory with the values they came from."""
    fmt = formats.get(name)
    x = gaussian(2, 256, seed=5)
    kept = x.clone()
    monkeypatch.setattr(formats.base, "_CPU_TILE_VALUES", fmt.block_size)  # tiles of one block
    monkeypatch.setattr(type(fmt), "few", 0)
    packed = fmt.quantize(x)
    assert torch.equal(x, kept)
    packed_kept = packed.clone()
    fmt.dequantize(packed)
    assert torch.equal(packed, packed_kept)
    packed.zero_()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_stop(name):
    """Keys and values of a model under training can be cached."""
    x = gaussian(128, seed=6)
    packed = formats.get(name).quantize(x.clone().requires_grad_())
    assert torch.equal(packed, formats.get(name).quantize(x))


@pytest.mark.parametrize("shape", [(0, 128), (3, 0, 256), (2, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_packs_to_nothing(name, shape):
    fmt = formats.get(name)
    packed = fmt.quantize(torch.zeros(shape))
    assert packed.shape == (*shape[:-1], fmt.nbytes(shape[-1]))
    assert fmt.dequantize(packed).shape == shape


@pytest.mark.parametrize("name", [n for n in NAMES if formats.get(n).block_size > 1])
def test_odd_sizes_are_refused(name):
    fmt = formats.get(name)
    for size in (1, fmt.block_size - 1, fmt.block_size + 1, 5 * fmt.block_size // 2):
        with pytest.raises(ValueError, match=rf"{name}.*{fmt.block_size} values, got {size}$"):
            fmt.quantize(torch.zeros(2, size))
    with pytest.raises(ValueError, match=rf"{fmt.block_bytes} bytes, got {fmt.block_bytes + 1}$"):
        fmt.dequantize(torch.zeros(fmt.block_bytes + 1, dtype=torch.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_are_refused(name):
    fmt = formats.get(name)
    with pytest.raises(ValueError, match=rf"{name}.*got torch.int64$"):
        fmt.quantize(torch.zeros(128, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"{name}.*got torch.float32$"):
        fmt.dequantize(torch.zeros(fmt.block_bytes))


@pytest.mark.parametrize("name", ["turbo5", "", "TURBO3", None, 3, ["f16"]])
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError, match="unknown format") as caught:
        formats.get(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in NAMES)


def test_registry():
    assert {"f32", "f16", "bf16", "q8_0", "q4_0", "turbo2", "turbo3", "turbo4"} <= set(NAMES)
    assert all(formats.get(name).name == name for name in NAMES)
    ids = [formats.get(name).ggml_type for name in NAMES]
    stored = [i for i in ids if i is not None]
    assert len(stored) == len(set(stored)), "two formats share a GGUF type id"


@pytest.mark.parametrize(
    ("name", "bits", "ggml_type"),
    [
        ("f32", 32, 0),
        ("f16", 16, 1),
        ("bf16", 16, 30),
        ("q8_0", 8.5, 8),
        ("q4_0", 4.5, 2),
        ("turbo2", 2.125, 42),
        ("turbo3", 3.125, 43),
        ("turbo4", 4.25, 44),
        ("turbo4_lm", 4.125, None),
        ("trellis2", 2.125, None),
        ("trellis3", 3.125, None),
        ("trellis4", 4.125, None),
        ("trellis2_h64", 2.25, None),
        ("trellis3_h64", 3.25, None),
        ("trellis4_h64", 4.25, None),
        ("turbo2_h64", 2.25, None),
        ("turbo3_h64", 3.25, None),
        ("turbo4_lm_h64", 4.25, None),
        ("tq3_1s", 4, 45),
        ("tq4_1s", 5, 46),
    ],
)
def test_sizes_and_ids(name, bits, ggml_type):
    fmt = formats.get(name)
    assert (fmt.bits_per_value, fmt.ggml_type) == (bits, ggml_type)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_floats_are_plain_little_endian(name, dtype):
    x = torch.tensor([1.0, -2.5, 65504.0, 1e-8, float("inf")])
    packed = formats.get(name).quantize(x)
    assert torch.equal(packed.view(dtype), x.to(dtype))
    assert torch.equal(formats.get(name).dequantize(packed), x.to(dtype).float())
    assert formats.get("f32").quantize(torch.tensor([1.0])).tolist() == [0, 0, 128, 63]


@pytest.mark.parametrize("name", [n for n in formats.names() if formats.get(n).few])
@pytest.mark.parametrize("set_name", ["gauss", "zero", "huge1e4"])
def test_a_few_blocks_pack_as_many_do(golden, name, set_name):
    """The path for a single token gives the bytes of the one for whole prompts."""
    f = formats.get(name)
    sets = {k.split("/")[1] for k in golden if k.startswith("x/")}
    chosen = next(s for s in sorted(sets) if s.startswith(set_name))
    x = torch.from_numpy(golden[f"x/{chosen}"]).reshape(-1, 128)[:40]
    many = f.quantize(x.repeat(1 + 3 * f.few // len(x), 1))[: len(x)]
    assert torch.equal(f.quantize(x), many)
    assert torch.equal(torch.cat([f.quantize(row) for row in x]), many.flatten())
