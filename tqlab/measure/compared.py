"""Rows of several models, and of sweeps beside each other."""

from collections.abc import Callable, Iterable

from ..sweep import pair_name

Row = dict
# What two rows must share before one is set in proportion to the other.
_SAME = ("model_sha256", "tokens_sha256", "ctx", "chunks", "reference", "device")


def of_models(models: Iterable, rows_of: Callable[..., list[Row]]) -> list[Row]:
    """Rows of every model, each with the name of its model's file (model_file)."""
    return [{"model_file": m.path.name} | row for m in models for row in rows_of(m)]


def times_below(rows: list[Row], base: str = "turbo3/turbo3") -> list[Row]:
    """Rows of sweeps, with how many times their KL lies below the base's.

    Row: the sweep's, and name, times (None where the base was not measured on the same text, model
    and positions, and for a KL of 0).
    """
    found = {_place(r): r["kld_mean"] for r in rows if pair_name(r) == base}
    return [r | {"name": pair_name(r), "times": _ratio(found.get(_place(r)), r)} for r in rows]


def _place(row: Row) -> tuple:
    return (*(row[key] for key in _SAME), row.get("offset", 0))


def _ratio(base: float | None, row: Row) -> float | None:
    return base / row["kld_mean"] if base and row["kld_mean"] else None


def moved_rows(rows: list[Row]) -> list[Row]:
    """KL of every pair at offset positions beside its KL at the first ones.

    Row: model_file, name, offset, kld_mean, kld_se, start and start_se (without the offset), ratio.
    """
    first = {_twin(r): r for r in rows if not r.get("offset")}
    pairs = [(r, first[_twin(r)]) for r in rows if r.get("offset") and _twin(r) in first]
    return [
        {key: moved[key] for key in ("model_file", "offset", "kld_mean", "kld_se")}
        | {"name": pair_name(moved), "start": row["kld_mean"], "start_se": row["kld_se"]}
        | {"ratio": moved["kld_mean"] / row["kld_mean"] if row["kld_mean"] else None}
        for moved, row in pairs
    ]


def _twin(row: Row) -> tuple:
    return (*(row[key] for key in _SAME), row["k"], row["v"], row.get("recipe"))
