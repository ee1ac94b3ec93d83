"""Every op: torch.library's own checks, errors that name the argument, and which path runs."""

import pytest
import torch

from tqlab import formats, metal, ops, rotation, selftest_cases
from tqlab.kvcache import LayerShape, PackedHeads
from tqlab.ops import base, marks

X = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
PACKED = formats.get("turbo3").quantize(X)
TABLE = formats.get("tq4_1s").quantize(X)


def test_the_self_test_knows_every_op():
    assert set(selftest_cases.CASES) == set(ops.OPS)
    assert all(hasattr(ops, name) for name in ops.OPS)


def variants(name):
    """The first case of every third variant: formats and dtypes, not sizes."""
    first = {case.variant: case for case in reversed(list(selftest_cases.CASES[name](True)))}
    return list(first.values())[::-3][:4]


@pytest.mark.parametrize("name", sorted(ops.OPS))
def test_opcheck(name):
    for case in variants(name):
        done = torch.library.opcheck(getattr(ops, name), case.args)
        assert set(done.values()) == {"SUCCESS"}, done


def test_opcheck_of_the_shader_path():
    with metal.simulate("sim"):
        for name in ("wht", "quantize_rows"):
            (case,) = variants(name)[:1]
            torch.library.opcheck(getattr(ops, name), case.args)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.wht(X.double(), "wht32"), "x must be float32, float16, bfloat16, not float64"),
        (lambda: ops.wht(X.T, "wht32"), "x must be contiguous, not strided"),
        (lambda: ops.wht(X, "wht256"), "rotation is one of .*wht128, not 'wht256'"),
        (lambda: ops.wht(X[:, :100].contiguous(), "wht32"), "x: wht32 needs a multiple of 32.*100"),
        (lambda: ops.wht(torch.tensor(1.0), "wht32"), "x must have at least one axis"),
        (lambda: ops.quantize_rows(X, "turbo5"), "unknown format 'turbo5'; known"),
        (lambda: ops.quantize_rows(X.long(), "turbo3"), "x must be float32"),
        (lambda: ops.quantize_rows(X[:, :64].contiguous(), "turbo3"), "x: turbo3.*128, got 64"),
        (lambda: ops.dequantize_rows(X, "turbo3"), "b must be uint8, not float32"),
        (lambda: ops.dequantize_rows(PACKED[:, :99].clone(), "turbo3"), "b: turbo3.*50 bytes.*99"),
        (lambda: ops.dequantize_rows(PACKED[:, ::2], "turbo3"), "b must be contiguous"),
        (lambda: ops.dequantize_rows(PACKED[0, 50:], "turbo3"), "b starts 50 bytes into"),
        (
            lambda: ops.dequantize_rows(PACKED, "turbo3", False, torch.float64),
            "dtype must be float32, float16 or bfloat16, not torch.float64",
        ),
        (lambda: ops.embedding_rows(TABLE[0], torch.tensor(0), "tq4_1s"), "w must have two axes"),
        (lambda: ops.embedding_rows(TABLE, torch.tensor(0.5), "tq4_1s"), "ids must be int32"),
        (lambda: ops.embedding_rows(TABLE, torch.tensor([0, 5]), "tq4_1s"), "ids run from 0 to 5"),
        (
            lambda: ops.embedding_rows(TABLE, torch.tensor([0], device="meta"), "tq4_1s"),
            "ids is on meta, the other arguments on cpu",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_references():
    assert torch.equal(ops.wht(X, "wht128"), rotation.rotate(X, "wht128"))
    assert torch.equal(ops.quantize_rows(X, "turbo3"), PACKED)
    unpacked = formats.get("tq4_1s").dequantize(TABLE)
    assert torch.equal(ops.dequantize_rows(TABLE, "tq4_1s"), unpacked)
    ids = torch.tensor([[3], [1]])
    assert torch.equal(ops.embedding_rows(TABLE, ids, "tq4_1s"), unpacked[ids])


@pytest.mark.parametrize("engine", ["sim", "sim-checked"])
def test_empty_tensors_launch_nothing(engine):
    with metal.simulate(engine):
        assert ops.wht(X[:0], "wht32").shape == (0, 256)
        assert ops.quantize_rows(X[:0], "turbo4").shape == (0, 136)
        assert ops.dequantize_rows(PACKED[:0], "turbo3").shape == (0, 256)
        assert ops.embedding_rows(TABLE, torch.zeros(0, dtype=torch.int64), "tq4_1s").numel() == 0


def test_formats_without_a_shader_take_the_reference():
    with metal.simulate("sim"):
        packed = ops.quantize_rows(X, "bf16")
        assert torch.equal(ops.dequantize_rows(packed, "bf16"), X.bfloat16().float())
        fmt = formats.get("trellis3")  # packed by the reference, unpacked by a shader
        assert torch.equal(ops.quantize_rows(X, "trellis3"), fmt.quantize(X))


# ---- which path runs


def test_reference_is_forced_inside_a_with_block(launches):
    with metal.simulate("sim"):
        with ops.reference():
            ops.wht(X, "wht32")
        assert launches == []
        ops.wht(X, "wht32", True)
    assert launches == ["wht_inverse_float_32"]


def test_cpu_tensors_take_the_reference_by_default(launches, monkeypatch):
    monkeypatch.delenv("TQLAB_METAL", raising=False)
    ops.wht(X, "wht32")
    assert launches == []


@pytest.mark.parametrize("name", ["turbo3", "q8_0", "f16"])
def test_a_cache_packs_and_reads_through_the_ops(name, launches):
    x = torch.randn(2, 3, 5, 96)
    plain, shaders = (PackedHeads(name, 2, LayerShape(3, 96), 8, "cpu") for _ in range(2))
    plain.write(2, x)
    with metal.simulate("sim"):
        shaders.write(2, x)
        read = shaders.read(1, 7)
    assert torch.equal(shaders.data, plain.data)
    assert torch.equal(read, plain.read(1, 7))
    kernels = [f"quantize_{name}_float", f"dequantize_{name}_float"]
    assert launches == ([] if name == "f16" else kernels)


def test_every_op_has_a_kernel_for_mps():
    for name in ops.OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tqlab::{name}", "MPS")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Marks in a folder of their own."""
    monkeypatch.setenv("TQLAB_DATA", str(tmp_path))
    yield tmp_path
    marks._load.cache_clear()


def test_a_marked_op_warns_once_and_takes_the_reference(home, launches, recwarn):
    marks.update({marks.key("wht", ("wht",), "sim"): "wht32 float32, 3 x 96"})
    with metal.simulate("sim"):
        for _ in range(2):
            assert torch.equal(ops.wht(X, "wht32"), rotation.rotate(X, "wht32"))
    assert launches == []
    (warning,) = (str(w.message) for w in recwarn)
    assert "tqlab::wht runs its torch reference on sim" in warning
    assert "3 x 96" in warning
    with metal.simulate("sim"), marks.ignored():
        ops.wht(X, "wht32")
    assert launches == ["wht_float_32"]


@pytest.mark.parametrize("change", ["engine", "shader", "cleared"])
def test_a_mark_holds_for_one_shader_text_and_engine(home, launches, change, tmp_path):
    key = marks.key("wht", ("wht",), "sim-checked" if change == "engine" else "sim")
    marks.update({key: "bad"})
    folder = metal.shader_dir()
    if change == "cleared":
        marks.update({key: None})
    if change == "shader":
        folder = tmp_path / "shaders"
        folder.mkdir()
        for file in metal.shader_dir().glob("*.*"):
            (folder / file.name).write_text(file.read_text("ascii") + "\n// changed\n")
    with metal.simulate("sim"), metal.shaders_from(folder):
        ops.wht(X, "wht32")
    assert launches == ["wht_float_32"]


def test_marks_know_torch_and_the_device(monkeypatch):
    key = marks.key("wht", ("wht",), "sim")
    assert f"torch {torch.__version__}" in key
    assert base.OPS["wht"].shaders == ("wht",)
