"""The figures of the four defects draw each output where it belongs, and count them."""

import math

import pytest
import torch

from tqlab import plots


def test_overcounted_draws_the_ratio_and_the_curve():
    truth = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    outputs = {"bug": 32 * truth.float(), "serial": truth.float(), "fixed": truth.float()}
    table = [{"variant": "bug", "scale": 32.0, "backend_nmse": (31 / 32) ** 2}]
    left, right = plots.overcounted({"truth": truth, "outputs": outputs, "table": table}).axes
    ratios = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert ratios["bug"] == [32, 32, 32]
    assert ratios["serial"] == ratios["fixed"] == [1, 1, 1]
    curve, reported, point = right.lines
    assert curve.get_ydata()[31] == pytest.approx(point.get_ydata()[0])
    assert reported.get_ydata()[0] == pytest.approx(curve.get_ydata()[31], abs=5e-4)


def test_schedules_count_what_is_right():
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    bug = torch.tensor([[3.0, 4.0], [3.0, 9.0], [0.0, 4.0]])
    found = {"truth": truth, "bug": bug, "fixed": truth.float().expand(3, 2)}
    fig = plots.schedules(found)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles[:2] == [
        "bug: 4 of 6 outputs right (green)",
        "fixed: 6 of 6 outputs right (green)",
    ]
    drawn = fig.axes[0].images[0].get_array()
    assert drawn.mask.tolist() == [[True, True], [True, False], [False, True]]
    assert drawn[1, 1] == pytest.approx(5 / math.sqrt(12.5))
    assert fig.png()[:4] == b"\x89PNG"


def test_against_truth_says_what_was_not_written():
    truth = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    bug = torch.tensor([math.nan, 2.5, math.nan])
    fig = plots.against_truth({"truth": truth, "outputs": {"bug": bug, "fixed": truth.float()}})
    bug_axis, fixed_axis = fig.axes
    assert bug_axis.lines[0].get_xydata().tolist() == [[2.0, 2.5]]
    assert [text.get_text() for text in bug_axis.texts] == ["2 of 3 outputs\nwere never written"]
    assert not fixed_axis.texts
    assert all(ax.get_xlabel() == "truth" for ax in fig.axes)
