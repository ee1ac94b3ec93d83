"""Recipes: two formats, and what is done for keys and exact tokens around them.

A recipe is one line below or one TOML file. It is declarative: what it needs to know of a model
comes from a calibration (`tqlab.calibrate`).
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from . import formats
from .transforms import KINDS

SINKS, WINDOW = 4, 32  # tokens that the named recipes keep exact
_WHOLE, _HALF = 128, 64  # values a rotation group of the fork's formats has, and of their _h64


@dataclass(frozen=True)
class Recipe:
    """What a cache does to keys and values.

    Fields: k, v (formats; on 64-dim heads their _h64 kin, which do not pad); sinks, window (tokens
    kept in f16: the first, and a query's last, its own included); transform of keys ("none",
    "centre", "pair-scale", "bal": before rope, "x": behind it); calibration (a file; None: the
    model's own, made when first needed).
    Raises: ValueError naming what is wrong.
    """

    name: str
    k: str
    v: str
    sinks: int = 0
    window: int = 0
    transform: str = "none"
    calibration: str | None = None

    def __post_init__(self):
        for field in fields(self):
            self._check(field.name, field.type, getattr(self, field.name))
        for fmt in (self.k, self.v):
            formats.get(fmt)
        if self.transform not in KINDS:
            raise ValueError(
                f"recipe {self.name}: unknown transform {self.transform!r}; "
                f"known: {', '.join(KINDS)}"
            )

    def _check(self, field: str, kind, value) -> None:
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = "a whole number" if kind is int else "a text"
            raise ValueError(f"recipe {self.name}: {field} is {value!r}, expected {wanted}")
        if kind is int and not 0 <= value < 1 << 31:
            raise ValueError(f"recipe {self.name}: {field} is {value}, expected 0 or more")

    def formats(self, head_dim: int) -> tuple[str, str]:
        """The formats of K and V on heads of this size."""
        return fitted(self.k, head_dim), fitted(self.v, head_dim)

    @property
    def needs_calibration(self) -> bool:
        """Whether it depends on statistics of the model."""
        return self.transform != "none"

    def __str__(self) -> str:
        keys = "" if self.transform == "none" else f" {_DONE[self.transform]}"
        kept = [f"{self.sinks} first"] * (self.sinks > 0) + [f"last {self.window}"] * bool(
            self.window
        )
        exact = f", {' and '.join(kept)} tokens f16" if kept else ""
        return f"{self.name}: K {self.k}{keys}, V {self.v}{exact}"


_DONE = {
    "centre": "centred",
    "pair-scale": "centred and pair-scaled",
    "bal": "balanced before rope",
    "x": "balanced behind rope",
}

_EXACT = {"sinks": SINKS, "window": WINDOW}
_REGISTRY = {
    r.name: r
    for r in (
        Recipe("w3", "turbo3", "turbo3", **_EXACT),
        Recipe("cw3", "turbo3", "turbo3", **_EXACT, transform="centre"),
        Recipe("cw4", "turbo4_lm", "turbo4_lm", **_EXACT, transform="centre"),
        Recipe("xw3", "turbo3", "turbo3", **_EXACT, transform="x"),
        Recipe("best2", "trellis2", "trellis2", **_EXACT, transform="bal"),
        Recipe("best3", "trellis3", "trellis3", **_EXACT, transform="bal"),
        Recipe("best4", "trellis4", "trellis4", **_EXACT, transform="bal"),
    )
}


def fitted(name: str, head_dim: int) -> str:
    """The format a recipe means on such heads: blocks of 64 where those of 128 would pad."""
    half = f"{name}_h64"
    pads = head_dim % _WHOLE and head_dim % _HALF == 0
    return half if pads and half in formats.names() else name


def names() -> tuple[str, ...]:
    """Every named recipe."""
    return tuple(_REGISTRY)


def names_one(text: str | Path) -> bool:
    """Whether this is the name of a recipe, or would be that of a recipe's file."""
    return text in _REGISTRY or str(text).endswith(".toml")


def get(name_or_file: str | Path) -> Recipe:
    """A named recipe, or one from a TOML file. Raises: ValueError, FileNotFoundError."""
    if not names_one(name_or_file):
        known = f"{', '.join(_REGISTRY)}, or a .toml file"
        raise ValueError(f"unknown recipe {str(name_or_file)!r}; known: {known}")
    return _REGISTRY[name_or_file] if name_or_file in _REGISTRY else load(name_or_file)


def load(path: str | Path) -> Recipe:
    """A recipe from a TOML file; its calibration file is looked for beside it.

    Raises: ValueError naming the file and the key that is wrong; FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe file {path}; named recipes: {', '.join(_REGISTRY)}")
    known = {field.name for field in fields(Recipe)}
    try:
        keys = {"name": path.stem} | tomllib.loads(path.read_text("utf-8"))
        if unknown := keys.keys() - known:
            raise ValueError(f"unknown key {min(unknown)!r}; known: {', '.join(sorted(known))}")
        if missing := {"k", "v"} - keys.keys():
            raise ValueError(f"no {min(missing)!r}: a recipe needs a format for k and for v")
        if isinstance(keys.get("calibration"), str):
            keys["calibration"] = str(path.parent / keys["calibration"])
        return Recipe(**keys)
    except ValueError as error:  # what tomllib and Recipe say, too
        raise ValueError(f"{path}: {error}") from None


Side = str | Sequence[str] | Recipe


def side(choice: Side) -> Side:
    """A format, formats one a layer, or a recipe, for K or V; a recipe's name becomes the recipe.

    Raises: ValueError listing what is known.
    """
    if isinstance(choice, str) and choice not in formats.names():
        if names_one(choice):
            return get(choice)
        raise ValueError(
            f"unknown format {choice!r}; known: {', '.join(formats.names())}; "
            f"recipes: {', '.join(_REGISTRY)}"
        )
    return choice


def label(choice: Side) -> str:
    """A short name: of the recipe, the format, or the formats in use."""
    if isinstance(choice, Recipe):
        return choice.name
    return choice if isinstance(choice, str) else "+".join(dict.fromkeys(choice))


def pair_label(k: Side, v: Side) -> str:
    """ "k/v", or the name of the one recipe that both are."""
    return label(k) if isinstance(k, Recipe) and k == v else f"{label(k)}/{label(v)}"
