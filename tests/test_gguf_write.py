"""Writing GGUF: what is read back, exact types, and nothing left behind by a failure."""

import errno
import os

import gguf
import ggufwriter
import numpy as np
import pytest
import torch

from tqlab import gguf_write
from tqlab.gguf_file import GGUFError, GGUFFile
from tqlab.gguf_write import GGUFWriter, TensorPlan, encode

ROWS = np.arange(6 * 64, dtype=np.float32).reshape(6, 64)
PLANS = [TensorPlan("odd", (5,), "f32"), TensorPlan("rows", (2, 3, 64), "f32")]


def write_two(path, metadata=None):
    with GGUFWriter(path, metadata or {}, PLANS) as out:
        out.write("odd", ROWS[0, :5].view(np.uint8))
        for row in ROWS:
            out.write("rows", row.view(np.uint8))


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "a.gguf"
    write_two(path)
    file = GGUFFile(path)
    assert list(file.tensors) == ["odd", "rows"]
    assert file.info("rows").offset % 32 == 0
    assert torch.equal(file.dequantize("odd"), torch.from_numpy(ROWS[0, :5]))
    assert torch.equal(file.dequantize("rows").view(6, 64), torch.from_numpy(ROWS))
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_the_gguf_package_reads_it(tmp_path):
    path = tmp_path / "a.gguf"
    write_two(path, {"a.words": encode("[str]", ["x", "ü"]), "a.n": encode("i16", -3)})
    reader = gguf.GGUFReader(path)
    assert reader.fields["a.words"].contents() == ["x", "ü"]
    assert reader.fields["a.n"].contents() == -3
    assert np.array_equal(reader.tensors[1].data.reshape(6, 64), ROWS)


def test_every_kind_of_value_keeps_its_type(tmp_path):
    source = GGUFFile(ggufwriter.small().write(tmp_path / "a.gguf"))
    copied = {key: source.encoded(key) for key in source.metadata}
    path = tmp_path / "b.gguf"
    with GGUFWriter(path, copied, []):
        pass
    again = GGUFFile(path)
    assert again.metadata == source.metadata
    assert {key: again.encoded(key) for key in again.metadata} == copied


@pytest.mark.parametrize("kind", ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"])
def test_integers_are_encoded_as_the_format_says(kind):
    assert encode(kind, 7) == ggufwriter.value(kind, 7)
    assert encode(f"[{kind}]", [1, 2]) == ggufwriter.value(f"[{kind}]", [1, 2])


@pytest.mark.parametrize(
    ("kind", "content"), [("f32", 0.5), ("f64", 0.1), ("bool", True), ("str", "ü")]
)
def test_other_values_are_encoded_as_the_format_says(kind, content):
    assert encode(kind, content) == ggufwriter.value(kind, content)


def empty_but(path, *names):
    return sorted(p.name for p in path.iterdir()) == sorted(names)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):

    def fails():
        with GGUFWriter(tmp_path / "a.gguf", {}, PLANS) as out:
            out.write("odd", ROWS[0, :5].view(np.uint8))
            raise error

    with pytest.raises(error):
        fails()
    assert empty_but(tmp_path)


def test_an_error_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError), GGUFWriter(path, {}, PLANS):
        raise RuntimeError
    assert path.read_bytes() == b"older"
    assert empty_but(tmp_path, "a.gguf")


class FullDisk:
    """A file that takes `room` bytes, then has none left."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(memoryview(data).cast("B")) if len(memoryview(data)) else 0
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 300, 900])
def test_a_full_disk_leaves_nothing_and_names_the_target(tmp_path, monkeypatch, room):
    path, plain = tmp_path / "a.gguf", gguf_write.Path.open
    monkeypatch.setattr(gguf_write.Path, "open", lambda *a: FullDisk(plain(*a), room))
    with pytest.raises(OSError, match="No space left") as caught:
        write_two(path)
    assert str(path) in str(caught.value)
    assert empty_but(tmp_path)


def test_too_small_a_disk_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_write.shutil, "disk_usage", lambda p: type("U", (), {"free": 100}))
    with pytest.raises(OSError, match="GB are needed"):
        write_two(tmp_path / "a.gguf")
    assert empty_but(tmp_path)


def test_a_missing_folder_and_a_folder_as_target_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_two(tmp_path / "missing" / "a.gguf")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_two(tmp_path)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([("rows", ROWS)], "data for 'rows' came, but 'odd' is due"),
        ([("odd", ROWS[0, :6])], "24 bytes for 'odd', 20 left"),
        ([("odd", ROWS[0, :5]), ("rows", ROWS[:3])], "768 bytes of tensor 'rows' never came"),
        ([("odd", ROWS[0, :5]), ("rows", ROWS), ("rows", ROWS)], "but 'nothing' is due"),
    ],
)
def test_data_must_come_whole_and_in_order(tmp_path, pieces, message):
    def write():
        with GGUFWriter(tmp_path / "a.gguf", {}, PLANS) as out:
            for name, piece in pieces:
                out.write(name, piece.view(np.uint8))

    with pytest.raises(GGUFError, match=message):
        write()
    assert empty_but(tmp_path)


def test_rows_must_fit_the_type():
    with pytest.raises(GGUFError, match="'a' has rows of 40; q8_0 packs 32"):
        _ = TensorPlan("a", (2, 40), "q8_0").nbytes
