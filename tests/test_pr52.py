"""The four defects: the numbers they give, what the simulator says, and their one-line fixes."""

import pytest
import torch

import metalsim
from tqlab import metal, pr52

NAMES = ("double_reduction", "rotated_in_place", "wrong_block", "double_inverse")


def rows_of(found, variant):
    return [row for row in found["table"] if row["variant"] == variant]


def is_right(row):
    return row["nmse"] < 1e-12 and row["scale"] == pytest.approx(1, abs=1e-6)


def test_a_sum_reduced_twice_is_32_times_too_large():
    found = pr52.double_reduction()
    (bug,), (serial,), (fixed,) = (rows_of(found, v) for v in ("bug", "serial", "fixed"))
    assert torch.equal(found["outputs"]["bug"], 32 * found["outputs"]["fixed"])
    assert bug["backend_nmse"] == pytest.approx(pr52.DOUBLED_NMSE, abs=1e-7)
    assert bug["nmse"] == pytest.approx(961, abs=1e-3)
    assert bug["cosine"] == pytest.approx(1, abs=1e-9)
    assert is_right(serial)
    assert is_right(fixed)


def test_no_race_in_a_sum_reduced_twice():
    """The checked simulator is silent: this defect is arithmetic, and a comparison finds it."""
    found = pr52.double_reduction(rows=6, columns=96, engine="sim-checked")
    assert {row["metalsim"] for row in found["table"]} == {""}


def test_a_reader_beside_a_rotation_in_place():
    found = pr52.rotated_in_place(seeds=4)
    assert all(row["nmse"] > 0.1 for row in rows_of(found, "bug"))
    assert all(is_right(row) for row in rows_of(found, "fixed"))
    assert len(found["bug"].unique(dim=0)) > 1  # other schedules, other results
    assert len(found["fixed"].unique(dim=0)) == 1
    assert "race: rotated_in_place.metal:" in found["diagnostics"]["bug"]
    assert found["diagnostics"]["fixed"] == ""


def test_a_kernel_made_for_another_block_size():
    (bug,), (fixed,) = (rows_of(found := pr52.wrong_block(), v) for v in ("bug", "fixed"))
    assert "integer division by zero" in bug["metalsim"]
    assert found["outputs"]["bug"].isnan().all()
    assert fixed["metalsim"] == ""
    assert is_right(fixed)


def test_an_output_unrotated_twice():
    (bug,), (fixed,) = (rows_of(pr52.double_inverse(), v) for v in ("bug", "fixed"))
    assert bug["nmse"] == pytest.approx(2, abs=0.1)
    assert abs(bug["cosine"]) < 0.05
    assert is_right(fixed)
    assert bug["metalsim"] == fixed["metalsim"] == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fixed", [False, True])
def test_strict(name, fixed):
    text = metal.source(f"pr52/{name}", marked=False)
    assert metalsim.strict_check("#define FIXED 1\n" * fixed + text, name) == []
    assert "#define FIXED" in pr52.source(name)


def test_lines_are_numbered_as_findings_count_them():
    text = pr52.lines("rotated_in_place", "x[at] = rotate", "#endif")
    assert text == " 27      x[at] = rotate_32(x[at], lane);\n 28  #endif"
    with pytest.raises(ValueError, match="no lines from 'return' to 'nowhere'"):
        pr52.lines("rotated_in_place", "return", "nowhere")


def test_summary_takes_the_worst_run_and_names_kinds():
    race = {
        "table": [{"variant": v, "nmse": n} for v, n in (("bug", 1.0), ("bug", 3.0), ("fixed", 0))],
        "diagnostics": {"bug": "kernel k:\nrace: a.metal:1: x\nout of bounds: a.metal:2: y\n"},
    }
    crash = {"table": [{"variant": "bug", "nmse": 2.0, "metalsim": "kernel k crashed"}]}
    crash["table"] += [{"variant": "fixed", "nmse": 0.5, "metalsim": ""}]
    for row in race["table"] + crash["table"]:
        row |= {"backend_nmse": 0.9, "scale": 1.0, "cosine": 1.0}
    b, c = pr52.summary({"b": race, "c": crash})
    assert (b["defect"], b["nmse"], b["fixed"], b["metalsim"]) == (
        "b",
        3.0,
        0,
        "race, out of bounds",
    )
    assert (c["nmse"], c["fixed"], c["metalsim"]) == (2.0, 0.5, "kernel k crashed")
