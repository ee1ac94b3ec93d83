"""The self-test passes what is right, fails what is wrong, and the library then stays safe."""

import json
import re
import shutil
import sys
import warnings

import pytest
import torch

from tqlab import attention, cli, data, formats, metal, ops, rotation, selftest_cases, sentence
from tqlab.ops import marks
from tqlab.selftest import _judged, instead, report, selftest, summary

MODULE = sys.modules["tqlab.selftest"]  # the package exports a function of that name


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Marks and reports in a folder of their own."""
    monkeypatch.setenv("TQLAB_DATA", str(tmp_path))
    yield tmp_path
    marks._load.cache_clear()


def only(monkeypatch, *names):
    """Leave these ops in the self-test's table, and the sentence where it is named."""
    kept = {name: selftest_cases.CASES[name] for name in names if name != sentence.MODEL}
    monkeypatch.setattr(MODULE, "CASES", kept)
    monkeypatch.setattr(MODULE, "TORCH", {})
    if sentence.MODEL not in names:
        monkeypatch.setattr(sentence, "row", lambda *_: SILENT)


SILENT = {"op": sentence.MODEL, "variant": "", "shape": "", "note": "", "path": ""}
SILENT |= dict.fromkeys(("nmse", "limit", "error", "tolerance", "us")) | {"passed": True}


@pytest.fixture
def broken(tmp_path):
    """The shaders, with one butterfly stage of every rotation subtracting the wrong way round."""
    folder = tmp_path / "shaders"
    shutil.copytree(metal.shader_dir(), folder)
    text = (folder / "common.h").read_text()
    wrong = text.replace("other - value : value + other", "value - other : value + other")
    assert wrong != text
    (folder / "common.h").write_text(wrong)
    with metal.shaders_from(folder):
        yield folder


def test_the_command_in_the_simulator(capsys, home):
    assert cli.main(["selftest", "--device", "sim"]) == 0
    printed = capsys.readouterr().out
    assert "simulated: shaders executed lane by lane on the CPU" in printed
    assert "all passed" in printed
    assert "tokens, prompt by torch" in printed
    result = json.loads((home / "results" / "selftest-sim.json").read_text())
    assert result["simulated"]
    others = {"torch.matmul", "torch.sdpa", sentence.MODEL}
    assert {row["op"] for row in result["rows"]} == {*ops.OPS, *others}
    keys = {"op", "variant", "shape", "nmse", "limit", "error", "tolerance", "passed", "us"}
    assert all(keys <= set(row) for row in result["rows"])
    exact = {"quantize_rows"}  # bytes: none may differ where nothing is contracted to FMA
    assert all(row["error"] == 0 for row in result["rows"] if row["op"] in exact)


def test_json_is_one_object(capsys, monkeypatch, home):
    only(monkeypatch, "wht")
    out = home / "mine.json"
    assert cli.main(["selftest", "--device", "cpu", "--quick", "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["engine"] is None


def test_an_unknown_device_is_one_line_and_status_2(capsys):
    assert cli.main(["selftest", "--device", "tpu"]) == 2
    assert re.fullmatch(
        r"tqlab: unknown device 'tpu'.*sim, sim-checked.*\n", capsys.readouterr().err
    )


def test_a_broken_shader_fails_and_is_not_used_again(broken, monkeypatch, capsys):
    only(monkeypatch, "wht", "dequantize_rows")
    assert cli.main(["selftest", "--device", "sim"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED wht: from now on torch reference on cpu" in printed
    x = torch.randn(3, 128)
    with metal.simulate("sim"), pytest.warns(RuntimeWarning, match="tqlab::wht runs its torch ref"):
        assert torch.equal(ops.wht(x, "wht128"), rotation.rotate(x, "wht128"))


def test_a_repaired_shader_is_used_again(broken, monkeypatch):
    only(monkeypatch, "wht")
    assert not all(row["passed"] for row in selftest("sim"))
    text = (broken / "common.h").read_text()
    fixed = text.replace("value - other : value + other", "other - value : value + other")
    (broken / "common.h").write_text(fixed)
    metal._library.cache_clear()
    marks._key.cache_clear()
    assert all(row["passed"] for row in selftest("sim"))
    with metal.simulate("sim"), warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.wht(torch.randn(1, 128), "wht128")


def test_a_shader_that_does_not_compile_is_a_failure_with_a_note(broken, monkeypatch):
    only(monkeypatch, "wht")
    (broken / "wht.metal").write_text("kernel void wht(device float* y) { y[0] = nothing; }")
    rows = selftest("sim")
    assert not any(row["passed"] for row in rows if row is not SILENT)
    assert "SyntaxError" in rows[0]["note"]
    assert "first failure: wht wht32 float32, 1 x 96" in instead(report(rows, "sim"))


def test_the_real_device_leaves_no_marks_where_no_shader_runs(monkeypatch, home):
    only(monkeypatch, "wht")
    monkeypatch.delenv("TQLAB_METAL", raising=False)
    assert all(row["passed"] for row in selftest("cpu", quick=True))
    assert not marks.path().exists()


# ---- the verdict


def verdict(change, dtype=torch.float16, op="wht"):
    case = next(c for c in selftest_cases.CASES[op](True) if str(dtype)[6:] in c.variant)
    reference = ops.OPS[op].reference
    return _judged(reference, case, change(reference(*case.args)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_passes_and_an_error_of_three_roundings_fails(dtype):
    eps = torch.finfo(dtype).eps
    assert verdict(lambda y: y, dtype)["passed"]
    largest = verdict(lambda y: y, dtype)["tolerance"]
    assert not verdict(lambda y: y + 1.5 * largest, dtype)["passed"]
    assert not verdict(lambda y: y * (1 + max(8 * eps, 1e-4)), dtype)["passed"]


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y * 32,  # a simdgroup's sum taken twice
        lambda y: torch.full_like(y, torch.nan),
        lambda y: torch.where(torch.arange(y.shape[-1]) == 5, -y, y),
        lambda y: torch.zeros_like(y),
        lambda y: y[:, :-1],
    ],
)
@pytest.mark.parametrize("op", ["wht", "tq_linear"])
def test_wrong_results_fail(change, op):
    assert not verdict(change, op=op)["passed"]


def test_the_fork_s_0_938(monkeypatch):
    """Outputs 32 times too large: (31/32)^2 with the tested side below, 31^2 with the truth."""
    assert verdict(lambda y: y * 32, torch.float32, "tq_linear")["nmse"] == pytest.approx(
        961, rel=1e-3
    )


def test_one_borderline_block_passes_and_two_fail():
    def flip(count):
        def change(b):
            b = b.clone()
            b.view(-1, formats.get("turbo2").block_bytes)[:count, 5] ^= 1
            return b

        return change

    assert verdict(flip(1), torch.float32, "quantize_rows")["error"] == 1
    assert not verdict(flip(2), torch.float32, "quantize_rows")["passed"]


def test_the_summary_shows_the_worst_case(monkeypatch):
    only(monkeypatch, "wht")
    rows = selftest("cpu", quick=True)
    rows[1] |= {"passed": False, "error": 3.0}
    line = summary(rows)[0]
    assert line["verdict"] == f"FAILED 1 of {line['cases']}"
    assert line["worst at"] == rows[1]["shape"]


# ---- the sentence


def last(monkeypatch, device="cpu"):
    """The row of a self-test that is about the sentence only."""
    only(monkeypatch, sentence.MODEL)
    (row,) = selftest(device)
    return row


def test_the_sentence_is_printed(monkeypatch, capsys):
    only(monkeypatch, sentence.MODEL)
    assert cli.main(["selftest", "--device", "cpu"]) == 0
    wanted, printed = sentence.reference(), capsys.readouterr().out
    assert f"tiny-gemma4: {wanted['prompt']} [...]{wanted['text']}" in printed
    assert f"{len(wanted['tokens'])} tokens" in printed


def test_a_planted_bug_fails_the_sentence(monkeypatch, capsys):
    """Values un-rotated twice. Ops are right, so nothing is marked: the user hears what to do."""
    right = attention.unrotate_product
    monkeypatch.setattr(attention, "unrotate_product", lambda x, r: right(right(x, r), r))
    only(monkeypatch, sentence.MODEL)
    assert cli.main(["selftest", "--device", "cpu"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"token \d+ of \d+ is '.*' \(\d+\), expected '.*' \(\d+\), which lea", printed)
    assert "FAILED tiny-gemma4: from now on trust no generated text" in printed
    assert not marks.path().exists()


def test_a_model_that_cannot_run_is_a_failure_with_a_note(broken, monkeypatch):
    (broken / "wht.metal").write_text("kernel void wht(device float* y) { y[0] = nothing; }")
    row = last(monkeypatch, "sim")
    assert row["passed"] is False
    assert "SyntaxError" in row["note"]


def test_what_failed_is_replaced_before_the_sentence(broken, monkeypatch):
    """It is written as the library runs from now on."""
    only(monkeypatch, "wht")
    here, runs = torch.device("cpu"), []
    monkeypatch.setattr(sentence, "row", lambda *_: runs.append(ops.runs_shader("wht", here)))
    with pytest.warns(RuntimeWarning, match="tqlab::wht runs its torch reference on sim"):
        assert not selftest("sim")[0]["passed"]
    assert runs == [False]


def test_without_the_model_nothing_is_written_and_nothing_passed(monkeypatch, capsys):
    monkeypatch.setitem(data.SHIPPED, "tiny-gemma4", "nosuch.gguf")
    row = last(monkeypatch)
    assert row["passed"] is None
    assert "tiny-gemma4 was not run: tiny-gemma4 is nosuch.gguf" in row["note"]
    assert summary([row])[0]["verdict"] == "not run"
    assert instead(report([row], "cpu")).startswith("all that was run passed")


def test_a_reference_of_another_file_is_not_compared(monkeypatch, tmp_path):
    wanted = sentence.reference() | {"model_sha256": "0" * 64}
    monkeypatch.setattr(sentence, "reference_path", lambda: tmp_path / "r.json")
    assert "r.json is missing; in a checkout, python data/make" in last(monkeypatch)["note"]
    (tmp_path / "r.json").write_text(json.dumps(wanted))
    row = last(monkeypatch)
    assert row["passed"] is None
    assert "r.json is of a model of sha256 000000000000" in row["note"]
