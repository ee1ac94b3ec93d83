"""What a notebook may hold: prose, one import cell, calls, committed outputs."""

from __future__ import annotations

import ast
from collections.abc import Iterator

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
MAX_CELL_LINES = 20
MAX_DEF_LINES = 8


def problems(notebook: dict) -> list[str]:
    """Every breach of the house rules in a notebook's JSON, as one line each."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and _source(cell)]
    found = list(_bad_metadata(notebook))
    for number, cell in enumerate(cells, 1):
        found += [f"code cell {number}: {line}" for line in _bad_code(cell, first=number == 1)]
        found += [f"code cell {number}: {line}" for line in _bad_outputs(cell)]
    return found + list(_bad_widgets(cells))


def _source(cell: dict) -> str:
    # The file format allows a string or a list of lines.
    return "".join(cell["source"]).strip()


def _tree(cell: dict) -> ast.Module:
    # A line magic is no Python; its line counts all the same.
    lines = _source(cell).splitlines()
    return ast.parse("\n".join("pass" if line[:1] in "%!" and line else line for line in lines))


def _bad_metadata(notebook: dict) -> Iterator[str]:
    widgets = notebook.get("metadata", {}).get("widgets")
    if widgets is not None and not widgets.get(WIDGET_STATE, {}).get("state"):
        yield "metadata.widgets without state shows as 'Invalid Notebook' on the web: remove it"


def _bad_code(cell: dict, first: bool) -> Iterator[str]:
    if (lines := len(_source(cell).splitlines())) > MAX_CELL_LINES:
        yield f"{lines} lines, at most {MAX_CELL_LINES}: move code into tqlab"
    for node in ast.walk(_tree(cell)):
        if isinstance(node, ast.ClassDef):
            yield f"class {node.name}: move it into tqlab"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_DEF_LINES:
                yield f"def {node.name} has {lines} lines, at most {MAX_DEF_LINES}"
        if isinstance(node, ast.Import | ast.ImportFrom) and not first:
            yield f"{ast.unparse(node)!r}: imports stand in the first code cell only"


def _bad_outputs(cell: dict) -> Iterator[str]:
    if not cell.get("execution_count"):
        yield "was never run: execute the notebook and commit its outputs"
    for output in cell.get("outputs", []):
        if output["output_type"] == "error":
            yield f"holds an error: {output.get('ename')}"


def _bad_widgets(cells: list[dict]) -> Iterator[str]:
    names = _widget_names(cells)
    figure = False
    for number, cell in enumerate(cells, 1):
        if _makes_widget(cell, names):
            if not figure:
                yield f"code cell {number}: a widget without a static figure above it"
            if cell.get("metadata", {}).get("keep_output") is not False:
                yield f"code cell {number}: a widget cell needs metadata keep_output: false"
            figure = False
        figure = figure or _has_figure(cell)


def _has_figure(cell: dict) -> bool:
    kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
    return bool(kinds & {"image/png", "image/svg+xml"})


def _widget_names(cells: list[dict]) -> set[str]:
    """Names in the notebook that stand for a widget library or something imported from one."""
    names = {"widgets", "ipywidgets"}
    for node in (node for cell in cells for node in ast.walk(_tree(cell))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            inside = {"widgets", "ipywidgets"} & set((getattr(node, "module", "") or "").split("."))
            for alias in node.names:
                if inside or alias.name in ("ipywidgets", "tqlab.widgets"):
                    names.add(alias.asname or alias.name)
    return names


def _makes_widget(cell: dict, names: set[str]) -> bool:
    """Whether a cell calls something whose dotted name has a widget library in it."""
    calls = (node.func for node in ast.walk(_tree(cell)) if isinstance(node, ast.Call))
    return any(names & set(ast.unparse(func).split(".")) for func in calls)
