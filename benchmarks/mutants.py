"""Mutation test of the shaders: break each in a fixed list of ways; their test cases must notice.

    python benchmarks/mutants.py [--only SHADER_OR_HEADER ...] [--jobs 2] [--minutes 10]
                                 [--out FILE.jsonl] [--again] [--list]

A mutant is one change on one line of a .metal file or header. It is run over tests/shader_cases in
the simulator, plain and, if that notices nothing, checked. Killed: a case fails or the simulator
reports something. A mutant that does not compile is left out. Verdicts are appended to FILE as they
come; a mutant of the same text is not run twice. Exit status 1 below 90 % killed or when stopped.
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("METALSIM_CACHE", tempfile.gettempdir() + "/metalsim-mutants")

import torch  # noqa: E402
from mutations import OPERATORS, Mutant, mutants_of  # noqa: E402
from shader_cases import cases  # noqa: E402

import metalsim  # noqa: E402
from tqlab import metal  # noqa: E402
from tqlab.ops import marks  # noqa: E402

TIMEOUT = 10.0  # seconds of processor time a launch may take: a broken loop bound can hang
ENOUGH = 0.9


# ---- running one


def files() -> list[Path]:
    """Every shader and header."""
    return sorted(p for p in metal.shader_dir().iterdir() if p.suffix in (".metal", ".h"))


def users(file: str) -> list[str]:
    """The shaders whose text holds this file, short ones first: they compile sooner."""
    if file.endswith(".metal"):
        return [file.removesuffix(".metal")]
    holds = [name for name in metal.names() if f'"{file}"' in metal.source(name)]
    return sorted(holds, key=lambda name: len(metal.source(name)))


def run(mutant: Mutant) -> str:
    """killed (how), survived, or invalid (why)."""
    with tempfile.TemporaryDirectory() as folder, marks.ignored():
        _write(mutant, Path(folder))
        with metal.shaders_from(Path(folder)):
            return verdict(users(mutant.file))


def _write(mutant: Mutant, folder: Path) -> None:
    for path in metal.shader_dir().glob("*.*"):
        shutil.copy(path, folder)
    lines = (folder / mutant.file).read_text("ascii").split("\n")
    lines[mutant.line - 1] = mutant.after
    (folder / mutant.file).write_text("\n".join(lines), "ascii")


def verdict(shaders: list[str]) -> str:
    """What the cases of some shaders say. Raises whatever is neither a mismatch nor a finding."""
    for engine in ("sim", "sim-checked"):
        for shader in shaders:
            for case in cases(shader):
                try:
                    with metal.simulate(engine):
                        case()
                except SyntaxError as error:
                    return f"invalid: {str(error).splitlines()[0]}"
                except (AssertionError, RuntimeError) as error:
                    if isinstance(error, metalsim.CompilerNotFound):
                        raise
                    return f"killed by {engine}: {shader} {case.__name__}: {type(error).__name__}"
    return "survived"


# ---- all of them


def alone() -> None:
    """Of a process of the pool: one thread, launches that end, and signals left to the parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    metalsim.compile_shader = functools.partial(metalsim.compile_shader, timeout=TIMEOUT)


def verdicts(mutants: list[Mutant], jobs: int, minutes: float) -> Iterator[tuple[Mutant, str]]:
    """Each mutant's, as they come, until the time is up."""
    metalsim.compile_shader("kernel void warm_up() {}")  # builds what the others would all build
    pool = ProcessPoolExecutor(jobs, initializer=alone)
    try:
        for found in pool.map(verdict, [[name] for name in metal.names()]):
            if found != "survived":
                raise SystemExit(f"a shader fails as it is: {found}")
        waiting = {pool.submit(run, mutant): mutant for mutant in mutants}
        for future in as_completed(waiting, timeout=60 * minutes):
            yield waiting[future], future.result()
    except TimeoutError:
        print(f"stopped after {minutes:g} minutes", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def key(mutant: Mutant) -> str:
    """Of the mutated text: changes when its file or the mutant does."""
    text = (metal.shader_dir() / mutant.file).read_text("ascii")
    return hashlib.sha256(f"{text}\0{mutant}\0{mutant.after}".encode()).hexdigest()[:16]


def known(out: Path | None) -> dict[str, str]:
    """Verdicts by key, from an earlier run; the last one counts."""
    text = out.read_text("utf-8") if out and out.exists() else ""
    return {row["key"]: row["verdict"] for row in map(json.loads, text.splitlines())}


def sweep(mutants: list[Mutant], args: argparse.Namespace) -> dict[Mutant, str]:
    """Verdicts of all that have one; new ones are also appended to args.out."""
    old = known(args.out)
    old = {m: old[key(m)] for m in mutants if key(m) in old}
    done = {m: v for m, v in old.items() if not (args.again and v == "survived")}
    todo = [m for m in mutants if m not in done]
    start, new = time.monotonic(), 0
    with open(args.out or os.devnull, "a", buffering=1, encoding="utf-8") as log:
        for mutant, found in verdicts(todo, args.jobs, args.minutes) if todo else ():
            log.write(json.dumps({"key": key(mutant), **asdict(mutant), "verdict": found}) + "\n")
            done[mutant], new = found, new + 1
            if found == "survived":
                print(f"survived: {mutant}", flush=True)
            if new % 25 == 0:
                seconds = time.monotonic() - start
                print(f"{new} of {len(todo)} after {seconds:.0f} s", flush=True)
    return old | done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", help="files, e.g. wht.metal common.h")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after this time")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--out", type=Path, help="verdicts as JSON Lines, kept between runs")
    parser.add_argument("--again", action="store_true", help="run the survivors in --out again")
    args = parser.parse_args()
    chosen = [p for p in files() if not args.only or p.name in args.only]
    mutants = [m for path in chosen for m in mutants_of(path)]
    if args.list:
        print("\n".join(map(str, mutants)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return report(sweep(mutants, args), len(mutants))


def report(results: dict[Mutant, str], wanted: int) -> int:
    """Prints kills by operator; the exit status."""
    valid = {m: v for m, v in results.items() if not v.startswith("invalid")}
    total = Counter(m.operator for m in valid)
    lived = Counter(m.operator for m, v in valid.items() if v == "survived")
    for name in OPERATORS:
        print(f"{name:>18}: {total[name] - lived[name]} of {total[name]} killed")
    killed = len(valid) - lived.total()
    left_out = len(results) - len(valid)
    share = killed / max(1, len(valid))
    print(f"{killed} of {len(valid)} mutants killed ({share:.1%}); {left_out} do not compile")
    if len(results) < wanted:
        print(f"{wanted - len(results)} have not run")
    return int(share < ENOUGH or len(results) < wanted)


if __name__ == "__main__":
    sys.exit(main())
