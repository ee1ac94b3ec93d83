"""Rows (a list of dicts) as a compact table: HTML in a notebook, aligned text elsewhere."""

import math
from html import escape
from statistics import fmean, stdev

from .sweep import pair_name

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


PADDING_NOTE = (
    "K and V bits are measured: bytes of the cache over the values in it. The turbo formats pad "
    "each head with zeros\nto a multiple of 128, so heads of 64 cost twice the format's own bits."
)


def sweep_table(rows: list[dict]) -> Table:
    """Rows of `sweep`: formats, measured bits and bytes, quality with standard errors."""
    cells = [
        {
            "K / V": pair_name(r, " / "),
            "K bits": f"{r['k_bits']:.4g}",
            "V bits": f"{r['v_bits']:.4g}",
            "cache MB": f"{r['cache_nbytes'] / 1e6:.2f}",
            "perplexity": f"{r['ppl']:.3f} ± {r['ppl_se']:.3f}",
            "KL, nats/token": _with_error(r["kld_mean"], r["kld_se"]),
            "same top": _percent(r["same_top"]),
            "Δp rms": _percent(r["dp_rms"]),
            "seconds": f"{r['seconds']:.1f}",
        }
        for r in rows
    ]
    return Table(cells)


def needle_table(needles, sweep_rows: list[dict] = ()) -> Table:
    """What every cache recalls, a line a recipe and context, and its KL divergence where swept.

    `needles`: those of `measure.needles`, f16/f16 among them; `sweep_rows`: rows of `sweep`, of any
    context. A line that f16 does not recall says little of another cache: those that it does are
    counted beside all. logp (nats a digit) is compared line by line: mean and standard error.
    """
    known, groups = {}, {}
    for x in needles:
        groups.setdefault((x.model, x.k, x.v, x.ctx), []).append(x)
        if (x.k, x.v) == ("f16", "f16"):
            known[x.model, x.ctx, x.chunk, x.depth] = x
    kl = {(r["model"], r["k"], r["v"], r["ctx"]): r for r in sweep_rows if not r.get("offset")}
    columns = {f"KL at {ctx}": ctx for ctx in sorted({key[-1] for key in kl})}
    cells = []
    for (*cache, _), group in groups.items():
        pairs = [(x, known.get((x.model, x.ctx, x.chunk, x.depth))) for x in group]
        swept = {name: kl.get((*cache, at), {}) for name, at in columns.items()}
        divergence = {
            name: _with_error(row.get("kld_mean"), row.get("kld_se")) for name, row in swept.items()
        }
        cells.append(_needle_cells(group, pairs) | divergence)
    return Table(cells)


def _needle_cells(group, pairs) -> dict:
    """One line of the table: needles of one cache and context, each beside f16's (or None)."""
    x, kept = group[0], [a for a, b in pairs if b is not None and b.recalled]
    change = [a.logp - b.logp for a, b in pairs if b is not None]
    error = stdev(change) / math.sqrt(len(change)) if len(change) > 1 else 0.0
    return {
        "K / V": pair_name(vars(x), " / "),
        "context": x.ctx,
        "bits": f"{(x.k_bits + x.v_bits) / 2:.4g}",
        "recalled": f"{sum(a.recalled for a in group)} of {len(group)}",
        "of f16's": f"{sum(a.recalled for a in kept)} of {len(kept)}",
        "logp": f"{fmean(a.logp for a in group):.3f}",
        "logp - f16's": f"{fmean(change):+.3f} ± {error:.3f}" if change else None,
    }


def sweep_notes(rows: list[dict]) -> str:
    """What the rows were measured on, one line a source, and why bits exceed a format's own."""
    parts = [row["recipe"] for row in rows if row.get("recipe")]
    return "\n".join([*dict.fromkeys([_source(row) for row in rows] + parts), PADDING_NOTE])


def _with_error(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "–"
    digits = max(4, 1 - math.floor(math.log10(error)) - 1) if error > 0 else 4
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _source(row: dict) -> str:
    chunks = f", {row['chunks']} chunks" if "chunks" in row else ""
    sha = f" (sha256 {row['text_sha256'][:12]})" if row.get("text_sha256") else ""
    python = f" of Python {row['text_python']}" if row.get("text_python") else ""
    text = row.get("text") or "unnamed tokens"
    moved = f", positions from {row['offset']} on" if row.get("offset") else ""
    return f"{row['model']} on {text}{python}{sha}: {row['ctx']} tokens a chunk{chunks}{moved}."
