"""Every committed notebook passes the lint, and the lint sees what it is meant to see."""

import json
from pathlib import Path

import nblint
import pytest

ROOT = Path(__file__).resolve().parents[1]
FIGURE = [{"output_type": "display_data", "data": {"image/png": "…"}, "metadata": {}}]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebook(path):
    assert nblint.problems(json.loads(path.read_text("utf-8"))) == []


def code(source, count=1, outputs=(), keep_output=None):
    """A code cell as the file format has it."""
    metadata = {} if keep_output is None else {"keep_output": keep_output}
    lines = source.splitlines(keepends=True)
    return {
        "cell_type": "code",
        "source": lines,
        "execution_count": count,
        "outputs": list(outputs),
        "metadata": metadata,
    }


def notebook(*cells, **metadata):
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


IMPORTS = code("import tqlab\nfrom tqlab import plots, widgets\n%matplotlib inline")
SLIDER = code("widgets.bits(rows)", keep_output=False)


@pytest.mark.parametrize(
    "good",
    [
        notebook(),
        notebook({"cell_type": "markdown", "source": "word\n" * 50, "metadata": {}}),
        notebook(IMPORTS, code("def f(x):\n    return x\n\nf(1)")),
        notebook(IMPORTS, code("plots.rate(rows)", outputs=FIGURE), SLIDER),
        notebook(IMPORTS, code("", count=None)),
        notebook(IMPORTS, widgets={nblint.WIDGET_STATE: {"state": {"a": {}}}}),
    ],
)
def test_the_lint_accepts(good):
    assert nblint.problems(good) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (notebook(IMPORTS, code("class A:\n    pass")), "class A"),
        (notebook(IMPORTS, code("if 1:\n    class B: pass")), "class B"),
        (notebook(code("def f():\n" + "    x = 1\n" * 8)), "def f has 9 lines"),
        (notebook(code("x = 1\n" * 21)), "21 lines, at most 20"),
        (notebook(IMPORTS, code("import os")), "'import os'"),
        (notebook(IMPORTS, code("def f():\n    from os import path")), "first code cell only"),
        (notebook(code("1 + 1", count=None)), "never run"),
        (notebook(code("1 / 0", outputs=[{"output_type": "error", "ename": "E"}])), "an error: E"),
        (notebook(widgets={}), "Invalid Notebook"),
        (notebook(widgets={nblint.WIDGET_STATE: {}}), "Invalid Notebook"),
        (notebook(IMPORTS, SLIDER), "without a static figure"),
        (notebook(IMPORTS, code("a", outputs=FIGURE), SLIDER, SLIDER), "cell 4: a widget without"),
        (notebook(IMPORTS, code("a", outputs=FIGURE), code("widgets.b()")), "keep_output: false"),
        (notebook(code("from tqlab.widgets import bits"), code("bits()")), "static figure"),
        (notebook(code("import ipywidgets as w"), code("w.IntSlider()")), "static figure"),
        (notebook(IMPORTS, code("tqlab.widgets.bits()")), "static figure"),
    ],
)
def test_the_lint_refuses(bad, message):
    assert any(message in line for line in nblint.problems(bad)), nblint.problems(bad)
