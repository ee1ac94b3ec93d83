"""Every op on the user's own device against its torch reference, and torch's own matmul and SDPA.

A case passes when its largest error against the float32 reference is below twice that of the
reference in the case's dtype, plus a small absolute term (the rule of fast-hadamard-transform's
tests); packed bytes pass when at most one block, or 0.02 % of them, differs. An op that fails is
marked (ops.marks): from then on the library runs its reference there, and says so.
"""

import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from . import data, metal, ops, sentence
from . import device as devices
from .ops import marks
from .progress import Progress
from .selftest_cases import CASES, TORCH, Case

_ATOL = 1e-5  # times the largest true value: float sums in another order
_BLOCKS = 2e-4  # spec formats: borderline indices, against another build
_SIMULATED = ("sim", "sim-checked")


def selftest(device: str = "auto", quick: bool | None = None) -> list[dict]:
    """Check every op; mark those that fail, so that the library stops using their shaders.

    `device`: auto, mps, cuda or cpu; sim or sim-checked (shaders executed in the simulator on the
    CPU), nvrtc (the same source on CUDA). `quick` (default: simulated only): fewer sizes.
    Returns rows: op, variant, shape, nmse, limit (a fixed NMSE for this op, or None), error and
    tolerance (largest absolute; for packed bytes differing blocks), passed, us, note, path. The
    last is a sentence by a whole model, as the library now runs it; None in passed: not run.
    Raises: ValueError for a device this machine lacks.
    """
    target, engine = _target(device)
    quick = device in _SIMULATED if quick is None else quick
    with metal.simulate(engine) if engine else contextlib.nullcontext():
        with marks.ignored():
            rows = _rows(target, quick)
            _remember(rows, target)
        return [*rows, sentence.row(target, device in _SIMULATED)]


def _rows(target: torch.device, quick: bool) -> list[dict]:
    rows = []
    with Progress("self-test", len(CASES) + len(TORCH)) as progress:
        for name, run, cases in _all():
            progress.show(name)
            rows += [_row(name, run, case, target) for case in cases(quick)]
            progress.step(name)
    return rows


def _target(device: str) -> tuple[torch.device, str | None]:
    if device in _SIMULATED:
        return torch.device("cpu"), device
    if device == "nvrtc":
        return devices.pick("cuda"), device
    try:
        return devices.pick(device), None
    except ValueError as error:
        raise ValueError(f"{error}; the self-test also knows sim, sim-checked, nvrtc") from None


def _all() -> Iterator[tuple[str, Callable, Callable[[bool], Iterator[Case]]]]:
    """Name, function and cases of every op."""
    for name, cases in CASES.items():
        yield name, getattr(ops, name), cases
    for name, (function, cases) in TORCH.items():
        yield name, function, cases


# ---- one case


def _row(name: str, run: Callable, case: Case, device: torch.device) -> dict:
    row = {"op": name, "variant": case.variant, "shape": case.shape, "limit": case.limit}
    try:
        got, micros = _timed(run, case, device)
        row |= _judged(ops.OPS[name].reference if name in ops.OPS else run, case, got)
    except Exception as error:  # a compiler's refusal is a result too
        row |= {"nmse": None, "error": None, "tolerance": None, "passed": False}
        row["note"] = sentence.refusal(error)
        micros = None
    return row | {"us": micros, "path": "" if row["passed"] else _instead(name, device)}


def _timed(run: Callable, case: Case, device: torch.device) -> tuple[Tensor, float]:
    """The result on the CPU, and microseconds: the median of three calls after a first one."""
    args = [a.to(device) if isinstance(a, Tensor) else a for a in case.args]
    times = []
    for _ in range(4):
        start = time.perf_counter()
        got = run(*args)
        _synchronize(device)
        times.append((time.perf_counter() - start) * 1e6)
    return got.cpu(), statistics.median(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type in ("mps", "cuda"):
        getattr(torch, device.type).synchronize()


def _judged(reference: Callable, case: Case, got: Tensor) -> dict:
    expected = reference(*case.args)
    if got.dtype == torch.uint8:
        return _judged_bytes(case, got, expected)
    truth = reference(*(_widened(a) for a in case.args))
    peer = case.peer(*case.args) if case.peer else expected
    error, own = _largest(got, truth), _largest(peer, truth)
    tolerance = 2 * own + _ATOL * float(truth.nan_to_num().abs().max())
    nmse = _nmse(got, truth)
    passed = error <= tolerance and (case.limit is None or nmse <= case.limit)
    return {"nmse": nmse, "error": error, "tolerance": tolerance, "passed": passed, "note": ""}


def _judged_bytes(case: Case, got: Tensor, expected: Tensor) -> dict:
    """Differing blocks, and how far apart they decode."""
    fmt = case.format
    wrong = int((got != expected).view(-1, fmt.block_bytes).any(1).sum())
    tolerance = max(1.0, _BLOCKS * got.numel() / fmt.block_bytes)
    nmse = _nmse(fmt.dequantize(got), fmt.dequantize(expected))
    close = nmse <= case.limit
    note = f"{wrong} blocks differ" if wrong else ""
    passed = wrong <= tolerance and close
    return {"nmse": nmse, "error": wrong, "tolerance": tolerance, "passed": passed, "note": note}


def _widened(value):
    """The same argument with float32 in place of shorter floats."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return torch.float32 if isinstance(value, torch.dtype) else value


def _largest(y: Tensor, truth: Tensor) -> float:
    """The largest absolute difference; infinite where NaNs are not in the same places."""
    if y.shape != truth.shape or not torch.equal(y.isnan(), truth.isnan()):
        return float("inf")
    apart = (y.double() - truth.double()).abs()[~truth.isnan()]
    return float(apart.max()) if apart.numel() else 0.0


def _nmse(y: Tensor, truth: Tensor) -> float:
    """Squared error over squared truth; infinite for another shape."""
    if y.shape != truth.shape:
        return float("inf")
    y, truth = y.double().nan_to_num(), truth.double().nan_to_num()
    return float((y - truth).square().sum() / truth.square().sum().clamp(min=1e-300))


# ---- what follows


def _instead(name: str, device: torch.device) -> str:
    """What the library runs when an op has failed."""
    return _INSTEAD.get(name, f"torch reference on {device.type}")


_INSTEAD = {
    "kv_attention": "attention by torch, tile by tile",
    "torch.matmul": "nothing else here can replace it: use --device cpu",
    "torch.sdpa": "tqlab's own attention, which does not call it",
}


def _remember(rows: list[dict], device: torch.device) -> None:
    """Set the marks of ops that failed, clear those of ops that passed."""
    engine = metal.engine(device)
    if engine is None:
        return
    results = {}
    for name, group in groupby(rows, key=lambda row: row["op"]):
        if name in ops.OPS:
            bad = [row for row in group if not row["passed"]]
            why = f"{bad[0]['variant']}, {bad[0]['shape']}" if bad else None
            results[marks.key(name, ops.OPS[name].shaders, engine)] = why
    marks.update(results)


# ---- reports


def _failed(row: dict) -> bool:
    return row["passed"] is False


def report(rows: list[dict], device: str) -> dict:
    """The rows with what they were measured on, as plain data."""
    target, _ = _target(device)
    return {
        "device": devices.describe(target),
        "asked": device,
        "simulated": device in _SIMULATED,
        "engine": device if device in (*_SIMULATED, "nvrtc") else metal.engine(target),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "passed": not any(map(_failed, rows)),
        "instead": {row["op"]: row["path"] for row in rows if _failed(row)},
        "rows": rows,
    }


def instead(result: dict) -> str:
    """The verdict in words: what failed, and what the library runs in its place."""
    if result["passed"]:
        note = "" if result["engine"] else " (no shader runs on this device: references only)"
        every = all(row["passed"] for row in result["rows"])
        return f"{'all' if every else 'all that was run'} passed{note}"
    lines = [f"FAILED {op}: from now on {path}" for op, path in result["instead"].items()]
    bad = next(row for row in result["rows"] if _failed(row))
    return "\n".join(
        [*lines, f"first failure: {bad['op']} {bad['variant']}, {bad['shape']} {bad['note']}"]
    )


def write(result: dict, out: Path | None) -> Path:
    """The report as JSON; by default data/results/selftest-<device>.json."""
    asked = result["asked"]
    name = _target(asked)[0].type if asked == "auto" else asked
    path = out or data.data_dir() / "results" / f"selftest-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return path


def summary(rows: list[dict]) -> list[dict]:
    """One row for each op and variant: the worst of its cases."""
    lines = []
    for (op, variant), group in groupby(rows, key=lambda row: (row["op"], row["variant"])):
        group = list(group)
        worst = max(group, key=_badness)
        line = {"op": op, "variant": variant, "cases": len(group), "worst at": worst["shape"]}
        line |= {k: worst[k] for k in ("nmse", "limit", "error", "tolerance")}
        line |= {"verdict": _verdict(group), "us": statistics.median(r["us"] or 0.0 for r in group)}
        lines.append(line)
    return lines


def _verdict(group: list[dict]) -> str:
    if failed := sum(map(_failed, group)):
        return f"FAILED {failed} of {len(group)}"
    return "ok" if all(row["passed"] for row in group) else "not run"


def _badness(row: dict) -> float:
    if row["error"] is None or not row["tolerance"]:
        return float("inf") if not row["passed"] else 0.0
    return row["error"] / row["tolerance"] + (0 if row["passed"] else 1e9)
