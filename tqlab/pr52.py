"""Four defects around the fork's pull request 52, as small shaders of our own that can be run.

Each function runs one of shaders/pr52 in the simulator (or on `engine`), as it was and with its
one-line fix (#define FIXED), and returns rows, arrays and what metalsim's checks say.
Source: spec kernels 1, 3, 4 and 6. Nothing here has run on Apple hardware.
"""

import re

import torch
from torch import Tensor

import metalsim

from . import formats, metal
from .rotation import rotate, unrotate

# (31/32)^2: test-backend-ops' error of a result 32 times too large; reported as 0.938.
DOUBLED_NMSE = 0.9384765625
_FIXED = (("FIXED", 1),)
_LANES = 32


def compare(y: Tensor, truth: Tensor) -> dict:
    """How a result relates to the truth.

    Fields: nmse (squared error over squared truth), backend_nmse (over the tested result's square,
    as test-backend-ops does), scale (least squares factor y = scale * truth), cosine.
    """
    y, truth = y.double().flatten(), truth.double().flatten()
    wrong, yy, tt, yt = ((y - truth) ** 2).sum(), y @ y, truth @ truth, y @ truth
    found = {"nmse": wrong / tt, "backend_nmse": wrong / yy, "scale": yt / tt}
    found["cosine"] = yt / (yy * tt).sqrt()
    return {name: float(value) for name, value in found.items()}


def _run(shader: str, kernel: str, *args, threads: int, group: int, defines=(), **how) -> str:
    """Launch a kernel; returns what went wrong, or ""."""
    engine, seed = how.get("engine", "sim"), how.get("seed", 0)
    with metal.simulate(engine):
        metal.library(f"pr52/{shader}", engine, tuple(defines)).seed = seed
        grid = {"threads": threads, "group_size": group, "defines": tuple(defines)}
        try:
            metal.launch(f"pr52/{shader}", kernel, *args, **grid)
        except (metalsim.Diagnostics, RuntimeError) as found:
            return str(found)
    return ""


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- (a) the sum that is reduced twice


def double_reduction(rows: int = 16, columns: int = 256, engine: str = "sim") -> dict:
    """Outputs of the fused mat-vec by variant, the truth, and how they compare.

    Returns: truth float64 [rows]; outputs {variant: float32 [rows]}; table: a row a variant.
    Variants: bug, serial (one lane does all the work: right), fixed.
    """
    fmt, x = formats.get("tq4_1s"), 2 * torch.rand(columns, generator=_generator(1)) - 1
    w = fmt.quantize(2 * torch.rand(rows, columns, generator=_generator(2)) - 1)
    truth = fmt.dequantize(w).double() @ x.double()
    outputs, table = {}, []
    for variant, defines in (("bug", ()), ("serial", (("SERIAL", 1),)), ("fixed", _FIXED)):
        y = torch.zeros(rows)
        args = (w, x, y, [rows, columns // 32])
        grid = {"threads": -(-rows // 4) * 64, "group": 64}
        said = _run(
            "double_reduction", "fused_matvec", *args, **grid, defines=defines, engine=engine
        )
        outputs[variant] = y
        table.append({"variant": variant, **compare(y, truth), "metalsim": said})
    return {"truth": truth, "outputs": outputs, "table": table}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- (b) activations rotated in place beside a reader


def rotated_in_place(seeds: int = 8, rows: int = 24, columns: int = 256) -> dict:
    """A TQ projection that rotates x in place, and a sibling that reads x at the same time.

    Returns: truth float64 [rows] of the sibling; bug and fixed float32 [seeds, rows], its outputs
    under different schedules; table: a row a variant and seed; diagnostics {variant: what metalsim
    says}.
    """
    x, w = _gaussian(columns, seed=1), _gaussian(rows, columns, seed=2)
    found = {"truth": w.double() @ x.double(), "table": [], "diagnostics": {}}
    for variant, defines in (("bug", ()), ("fixed", _FIXED)):
        outputs = [_beside_sibling(x, w, defines, "sim", seed)[0] for seed in range(seeds)]
        found[variant] = torch.stack(outputs)
        for seed, y in enumerate(outputs):
            row = {"variant": variant, "seed": seed, **compare(y, found["truth"])}
            found["table"].append(row)
        found["diagnostics"][variant] = _beside_sibling(x, w, defines, "sim-checked", 0)[1]
    return found


def _beside_sibling(x, w, defines, engine, seed) -> tuple[Tensor, str]:
    x, y, blocks = x.clone(), torch.zeros(len(w)), x.numel() // 32
    args = (x, torch.zeros_like(x), w, y, [len(w), blocks])
    grid = {"threads": (blocks + len(w)) * _LANES, "group": _LANES}
    how = {"defines": defines, "engine": engine, "seed": seed}
    return y, _run("rotated_in_place", "rotate_beside_sibling", *args, **grid, **how)


# ---- (c) a kernel instantiated for blocks of another size


def wrong_block(rows: int = 16, columns: int = 256) -> dict:
    """mul_mv_ext instantiated for blocks of 2 values, and of 32.

    Returns: truth float64 [rows]; outputs {variant: float32 [rows]}; table: a row a variant, with
    what metalsim says. The bug divides by zero: its outputs stay NaN, nothing was written.
    """
    fmt, x = formats.get("tq4_1s"), _gaussian(columns, seed=1)
    w = fmt.quantize(_gaussian(rows, columns, seed=2))
    truth = fmt.dequantize(w).double() @ x.double()
    outputs, table = {}, []
    for variant, defines in (("bug", ()), ("fixed", _FIXED)):
        y, said = torch.full((rows,), torch.nan), ""
        for engine in ("sim-checked", "sim"):
            args = (w, rotate(x, "wht32"), y, [rows, columns // 32])
            grid = {"threads": rows * _LANES, "group": _LANES}
            how = {"defines": defines, "engine": engine}
            said = said or _run("wrong_block", "ext_matvec", *args, **grid, **how)
        outputs[variant] = y
        table.append({"variant": variant, **compare(y, truth), "metalsim": said})
    return {"truth": truth, "outputs": outputs, "table": table}


# ---- (d) an output un-rotated twice


def double_inverse(rows: int = 64, splits: int = 4) -> dict:
    """The last pass of an attention over rotated values, followed by the graph's un-rotation.

    Returns: truth float64 [rows, 128]; outputs {variant: float32 [rows, 128]} after the graph's
    un-rotation; table: a row a variant. metalsim finds nothing: the kernel is sound, its contract
    is not.
    """
    values = _gaussian(rows, splits, 128, seed=1)
    weights = _gaussian(rows, splits, seed=2).softmax(1)
    truth = (weights[..., None].double() * values.double()).sum(1)
    part = rotate(values, "wht128").contiguous()
    outputs, table = {}, []
    for variant, defines in (("bug", ()), ("fixed", _FIXED)):
        y = torch.zeros(rows, 128)
        args, grid = (part, weights, y, [rows, splits]), {"threads": rows * 32, "group": 32}
        said = _run(
            "double_inverse", "combine", *args, **grid, defines=defines, engine="sim-checked"
        )
        outputs[variant] = unrotate(y, "wht128")
        table.append({"variant": variant, **compare(outputs[variant], truth), "metalsim": said})
    return {"truth": truth, "outputs": outputs, "table": table}


def source(name: str) -> str:
    """The text of one of the four shaders, for reading beside its results."""
    return (metal.shader_dir() / "pr52" / f"{name}.metal").read_text("ascii")


def lines(name: str, start: str, end: str) -> str:
    """Part of a shader with its line numbers, as metalsim's findings count them.

    From the first line that contains `start` through the next that contains `end`.
    Raises: ValueError when there is no such part.
    """
    text = source(name).splitlines()
    first = next((i for i, line in enumerate(text) if start in line), len(text))
    last = next((i for i in range(first, len(text)) if end in text[i]), None)
    if last is None:
        raise ValueError(f"{name}.metal has no lines from {start!r} to {end!r}")
    return "\n".join(f"{i + 1:3}  {text[i]}" for i in range(first, last + 1))


def summary(found: dict[str, dict]) -> list[dict]:
    """A row for each defect of {its name: what its function returned}, its worst run.

    Fields: defect, those of `compare`, fixed (nmse of the repaired shader), metalsim (the kinds of
    findings).
    """
    rows = []
    for name, result in found.items():
        runs = {"bug": [], "fixed": []}
        for row in result["table"]:
            runs.setdefault(row["variant"], []).append(row)
        bug, fixed = (max(runs[v], key=lambda row: row["nmse"]) for v in ("bug", "fixed"))
        said = result["diagnostics"]["bug"] if "diagnostics" in result else bug["metalsim"]
        measured = {k: bug[k] for k in ("nmse", "backend_nmse", "scale", "cosine")}
        rows.append({"defect": name, **measured, "fixed": fixed["nmse"], "metalsim": _kinds(said)})
    return rows


def _kinds(said: str) -> str:
    found = re.findall(r"^([a-z -]+): \S+\.metal:\d+", said, re.M)
    return ", ".join(dict.fromkeys(found)) or said or "no finding"
