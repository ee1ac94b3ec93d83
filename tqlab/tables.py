"""Rows (a list of dicts) as a compact table: HTML in a notebook, aligned text elsewhere."""

from html import escape

_NUMBER = {"bits": "{:.3f}", "reproduces": "{}"}


class Table:
    """A table of rows; `columns` picks and names them: {key: header} or a list of keys.

    `formats` overrides how a column is written, for example {"kld_mean": "{:.4f}"}.
    """

    def __init__(self, rows, columns=None, formats: dict[str, str] | None = None):
        keys = columns if columns is not None else list(rows[0]) if rows else []
        self.headers = list(keys.values()) if isinstance(keys, dict) else list(keys)
        specs = _NUMBER | (formats or {})
        self.cells = [[_text(row.get(k), specs.get(k)) for k in keys] for row in rows]
        self.numeric = [all(_is_number(row.get(k)) for row in rows) for k in keys]

    def __repr__(self) -> str:
        lines = [self.headers, *self.cells]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headers))]
        return "\n".join(self._line(line, widths) for line in lines)

    def _line(self, cells, widths) -> str:
        aligned = zip(cells, widths, self.numeric, strict=True)
        return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in aligned).rstrip()

    def _repr_html_(self) -> str:
        head = "".join(self._cell("th", i, h) for i, h in enumerate(self.headers))
        body = (
            "".join(self._cell("td", i, text) for i, text in enumerate(row)) for row in self.cells
        )
        rows = "".join(f"<tr>{row}</tr>" for row in body)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _cell(self, tag: str, column: int, text: str) -> str:
        side = "right" if self.numeric[column] else "left"
        return f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>'


def _is_number(value) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value, spec: str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (spec or "{:.4g}").format(value)
    return str(value)
