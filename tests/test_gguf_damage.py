"""Bad GGUF files: one clear line for every kind of damage, and never much memory."""

import math
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from ggufwriter import ROWS, File, Tensor, refuses, small
from hypothesis import given, settings
from hypothesis import strategies as st

from tqlab import formats
from tqlab.gguf_file import GGUFError, GGUFFile


def test_truncated_anywhere(tmp_path):
    """Every prefix of a valid file is refused (the last tensor's padding may be missing)."""
    sections = small(pad_end=False).sections()
    whole = b"".join(sections)
    path = tmp_path / "x.gguf"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        refuses(path)
    path.write_bytes(whole)
    assert len(GGUFFile(path).tensors) == 2


def test_truncated_at_every_section(tmp_path):
    """Boundaries are where a reader is most easily fooled: each names the file and the trouble."""
    sections = small(pad_end=False).sections()
    path = tmp_path / "x.gguf"
    for i in range(1, len(sections)):
        path.write_bytes(b"".join(sections[:i]))
        text = refuses(path)
        assert any(word in text for word in ("truncated", "can hold", "bytes"))


@settings(max_examples=300)
@given(data=st.data())
def test_any_damage_gives_a_clear_error_or_a_file(data, tmp_path):
    """Random bytes anywhere: GGUFError or a readable file, never another error, never much RAM."""
    raw = bytearray(b"".join(small().sections()))
    header = len(raw) - 60 - 8 * 68
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, header))
        new = data.draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x09", b"\x80", b"\x2d"]))
        raw[at : at + len(new)] = new
    raw = raw[: data.draw(st.sampled_from([len(raw), data.draw(st.integers(0, len(raw)))]))]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        file = GGUFFile(path)
        for name in file.tensors:
            file.dequantize(name)
    except GGUFError:
        pass  # any other error fails the test
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20, f"{peak} bytes for a file of {len(raw)}"


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\3\4 a zip", b"<!DOCTYPE html>", b"FUGG" * 9])
def test_other_files(tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    refuses(path, "not a GGUF file")


@pytest.mark.parametrize("version", [0, 1, 4, 2**24 * 3])
def test_other_versions(tmp_path, version):
    """The last one is version 3 in big-endian order."""
    refuses(small(version=version).write(tmp_path / "x.gguf"), f"GGUF version {version}")


def test_version_2_is_read(tmp_path):
    assert len(GGUFFile(small(version=2).write(tmp_path / "x.gguf")).tensors) == 2


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 10**6])
def test_absurd_counts(tmp_path, count):
    path = tmp_path / "x.gguf"
    refuses(small(n_tensors=count).write(path), f"tensor count {count}")
    refuses(small(n_keys=count).write(path), f"metadata count {count}")


def test_absurd_lengths(tmp_path):
    path = tmp_path / "x.gguf"
    raw = b"".join(small().sections())
    huge = struct.pack("<Q", 2**62)
    path.write_bytes(raw.replace(struct.pack("<Q", 5) + b"llama", huge + b"llama"))
    refuses(path, "truncated", str(2**62))
    path.write_bytes(raw.replace(struct.pack("<IQ", 5, 3), struct.pack("<IQ", 5, 2**62)))
    refuses(path, "length of array 'a.numbers'", str(2**62))


@pytest.mark.parametrize(
    ("ne", "word"),
    [
        ((), "0 dimensions"),
        ((1, 1, 1, 1, 32), "5 dimensions"),
        ((64, 0), "empty dimension"),
        ((2**40, 2**40), "bytes"),
        ((2**63, 2), "bytes"),
        ((32, 2**64 - 1), "bytes"),
        ((33, 8), "rows of 33"),
    ],
)
def test_absurd_dims(tmp_path, ne, word):
    path = File(tensors=[Tensor("w", ne, 8, bytes(34 * 16))]).write(tmp_path / "x.gguf")
    refuses(path, "'w'", word)


@pytest.mark.parametrize("offset", [2**64 - 32, 2**63, 4096, 32])
def test_past_the_end(tmp_path, offset):
    tensors = [Tensor("w", (16,), 0, bytes(64), offset=offset)]
    refuses(File(tensors=tensors).write(tmp_path / "x.gguf"), "'w'", "truncated or damaged")


def test_overlap(tmp_path):
    tensors = [Tensor("a", (16,), 0, bytes(64)), Tensor("b", (16,), 0, bytes(64), offset=32)]
    refuses(File(tensors=tensors).write(tmp_path / "x.gguf"), "'a'", "damaged")


def test_unaligned(tmp_path):
    tensors = [Tensor("w", (4,), 0, bytes(64), offset=4)]
    refuses(File(tensors=tensors).write(tmp_path / "x.gguf"), "'w'", "unaligned offset 4")


@pytest.mark.parametrize(
    ("kind", "content"),
    [("u32", 0), ("u32", 7), ("u64", 2**40), ("i32", -32), ("str", "32"), ("f32", 32.0)],
)
def test_absurd_alignment(tmp_path, kind, content):
    made = small()
    made.metadata.append(("general.alignment", kind, content))
    refuses(made.write(tmp_path / "x.gguf"), "general.alignment", repr(content))


def test_duplicates(tmp_path):
    path = tmp_path / "x.gguf"
    made = small()
    made.tensors[1].name = "plain"
    refuses(made.write(path), "'plain' appears twice")
    made = small()
    made.metadata.append(("a.count", "u32", 8))
    refuses(made.write(path), "'a.count' appears twice")


@pytest.mark.parametrize("kind", [4, 5, 99, 2**31])
def test_unknown_tensor_type(tmp_path, kind):
    path = File(tensors=[Tensor("w", (64,), kind, bytes(256))]).write(tmp_path / "x.gguf")
    refuses(path, "'w'", f"unknown type id {kind}")


def test_unknown_value_type(tmp_path):
    raw = b"".join(small().sections())
    path = tmp_path / "x.gguf"
    path.write_bytes(raw.replace(b"a.count" + struct.pack("<I", 4), b"a.count\x2a\0\0\0"))
    refuses(path, "'a.count'", "unknown value type 42")


def test_text_that_is_not_utf8(tmp_path):
    made = small()
    made.metadata.append((b"b.\xff\xfe", "u32", 1))
    refuses(made.write(tmp_path / "x.gguf"), "not UTF-8")


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            GGUFFile(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 511])
def test_non_finite_weights(tmp_path, bad, place):
    values = ROWS.copy()
    values.flat[place] = bad
    file = GGUFFile(File(tensors=[Tensor.f32("w", values)]).write(tmp_path / "x.gguf"))
    with pytest.raises(GGUFError, match=r"x.gguf: tensor 'w' holds NaN or infinite values"):
        file.dequantize("w")


def test_non_finite_scales(tmp_path):
    data = bytearray(formats.get("q8_0").quantize(torch.from_numpy(ROWS)).numpy().tobytes())
    data[34:36] = np.float16(np.nan).tobytes()
    path = File(tensors=[Tensor("w", (64, 8), 8, bytes(data))]).write(tmp_path / "x.gguf")
    with pytest.raises(GGUFError, match="NaN or infinite"):
        GGUFFile(path).dequantize("w")


@pytest.mark.parametrize("qtype", ["I32", "F64", "I8", "Q8_K"])
def test_types_that_are_no_weights(tmp_path, qtype):
    """Known to ggml, carried in the table, but nothing dequantises them."""
    kind = gguf.GGMLQuantizationType[qtype]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    path = File(tensors=[Tensor("w", (256,), kind, bytes(256 // block * size))])
    file = GGUFFile(path.write(tmp_path / "x.gguf"))
    with pytest.raises(GGUFError, match=rf"tensor 'w'.*{qtype.lower()}"):
        file.dequantize("w")
