"""Reading GGUF: what valid files mean, and the type ids that changed meaning."""

import gguf
import numpy as np
import pytest
import torch
from ggufwriter import ROWS, File, Tensor, refuses, small

from tqlab import formats
from tqlab.gguf_file import GGUFError, GGUFFile

# ---- valid files


def test_metadata(tmp_path):
    file = GGUFFile(small().write(tmp_path / "x.gguf"))
    assert file.metadata == {
        "general.architecture": "llama",
        "a.count": 7,
        "a.ratio": 0.5,
        "a.flag": True,
        "a.big": 2**63,
        "a.words": ["one", "zwei", "três"],
        "a.numbers": [1, -2, 3],
        "a.nested": [[1, 2], [], [3]],
    }
    assert file.need("a.count") == file.get("a.count") == 7
    assert file.get("a.missing", 3) == 3
    with pytest.raises(GGUFError, match=r"metadata key 'a.missing' is missing"):
        file.need("a.missing")


def test_tensors(tmp_path):
    file = GGUFFile(small().write(tmp_path / "x.gguf"))
    assert list(file.tensors) == ["plain", "packed"]
    assert (file.info("packed").shape, file.info("packed").type) == ((8, 64), "q8_0")
    assert file.info("packed").bits_per_value == 8.5
    assert (file.dequantize("plain").numpy() == ROWS[:3, :5]).all()
    q8 = formats.get("q8_0")
    packed = q8.quantize(torch.from_numpy(ROWS))
    assert torch.equal(file.raw("packed"), packed)
    assert torch.equal(file.dequantize("packed"), q8.dequantize(packed))
    with pytest.raises(GGUFError, match=r"tensor 'absent' is missing"):
        file.dequantize("absent")


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
@pytest.mark.parametrize("pad_end", [True, False])
def test_alignment(tmp_path, alignment, pad_end):
    made = small(alignment=alignment, pad_end=pad_end)
    made.metadata.append(("general.alignment", "u32", alignment))
    file = GGUFFile(made.write(tmp_path / "x.gguf"))
    assert (file.dequantize("plain").numpy() == ROWS[:3, :5]).all()
    assert file.info("packed").offset % alignment == 0


def test_written_by_the_gguf_package(tmp_path):
    """An independent writer, all types it can quantise to, and its own values."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "Näme")
    writer.add_array("a.list", ["x", "y"])
    kinds = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    expected = {}
    for kind in kinds:
        qtype = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(x, qtype)
        writer.add_tensor(kind, data, raw_dtype=qtype)
        expected[kind] = gguf.quants.dequantize(data, qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    assert (file.get("general.name"), file.get("a.list")) == ("Näme", ["x", "y"])
    assert list(file.tensors) == kinds
    for kind, values in expected.items():
        assert file.info(kind).shape == (4, 256)
        assert (file.dequantize(kind).numpy() == values).all(), kind


@pytest.mark.parametrize("name", ["turbo2", "turbo3", "tq3_1s", "tq4_1s"])
def test_types_the_gguf_package_refuses(tmp_path, name):
    fmt = formats.get(name)
    data = fmt.quantize(torch.from_numpy(ROWS).view(4, 128))
    tensor = Tensor("w", (128, 4), fmt.ggml_type, data.numpy().tobytes())
    file = GGUFFile(File(tensors=[tensor]).write(tmp_path / "x.gguf"))
    assert file.info("w").type == name
    assert torch.equal(file.raw("w"), data)
    assert torch.equal(file.dequantize("w"), fmt.dequantize(data))


# ---- old and new type ids


def tq_file(ids_and_names, rows=16, **more) -> File:
    """Tensors of 16 x 64 (or other) values: 512 or 640 bytes, so that sizes tell them apart."""
    data = {n: bytes(rows * formats.get(n).nbytes(64)) for n in ("tq3_1s", "tq4_1s")}
    tensors = [
        Tensor(f"w{i}", (64, rows), kind, data[name])
        for i, (kind, name) in enumerate(ids_and_names)
    ]
    return File(tensors=tensors, **more)


@pytest.mark.parametrize("pad_end", [True, False])
def test_ids_resolve_by_size(tmp_path, pad_end):
    """44 is old TQ3_1S; 45 is old TQ4_1S or new TQ3_1S; 46 is new TQ4_1S. Also the last tensor."""
    written = [(44, "tq3_1s"), (45, "tq4_1s"), (45, "tq3_1s"), (46, "tq4_1s"), (45, "tq4_1s")]
    for order in (written, written[::-1]):
        file = GGUFFile(tq_file(order, pad_end=pad_end).write(tmp_path / "x.gguf"))
        assert [t.type for t in file.tensors.values()] == [name for _, name in order]


@pytest.mark.parametrize(("file_type", "name"), [(43, "tq3_1s"), (44, "tq4_1s")])
def test_file_type_resolves_small_tensors(tmp_path, file_type, name):
    """One block of 16 or of 20 bytes both fill one 32-byte slot: only general.file_type tells."""
    metadata = [("general.file_type", "u32", file_type)]
    tensors = [Tensor("w", (32,), 45, bytes(formats.get(name).block_bytes))]
    file = GGUFFile(File(metadata, tensors).write(tmp_path / "x.gguf"))
    assert file.info("w").type == name


@pytest.mark.parametrize(
    "metadata",
    [[], [("general.file_type", "u32", 7)], [("general.file_type", "[u32]", [43])]],
)
def test_ambiguity_is_refused(tmp_path, metadata):
    path = File(metadata, [Tensor("w", (32,), 45, bytes(20))]).write(tmp_path / "x.gguf")
    refuses(path, "'w'", "type id 45", "tq3_1s and tq4_1s")


def test_a_size_that_fits_neither_is_refused(tmp_path):
    path = File(tensors=[Tensor("w", (64, 16), 45, bytes(1000))]).write(tmp_path / "x.gguf")
    refuses(path, "'w'", "type id 45", "neither")
