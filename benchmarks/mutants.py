"""Mutation test of the shaders: break each in a fixed list of ways; their test cases must notice.

    python benchmarks/mutants.py [--only SHADER_OR_HEADER ...] [--jobs 2] [--out FILE.json]

A mutant is one change on one line of a .metal file or header. It is run over tests/shader_cases in
the simulator, plain and, if that notices nothing, checked. Killed: a case fails or the simulator
reports something. A mutant that does not compile is left out. Exit status 1 below 90 % killed.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from shader_cases import cases  # noqa: E402

import metalsim  # noqa: E402
from tqlab import metal  # noqa: E402
from tqlab.ops import marks  # noqa: E402

TIMEOUT = 10.0  # seconds a launch may take: a broken loop bound can hang
ENOUGH = 0.9


@dataclass(frozen=True)
class Mutant:
    """One changed line."""

    file: str
    line: int  # from 1
    operator: str
    before: str
    after: str

    def __str__(self) -> str:
        change = f"{self.before.strip()}  ->  {self.after.strip()}"
        return f"{self.file}:{self.line} {self.operator}: {change}"


# ---- operators: each yields changed versions of one line of code


def closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`; -1 when it is on another line."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1


def arguments(text: str, call: str) -> Iterator[list[tuple[int, int]]]:
    """Spans of the arguments of every call of a function whose name matches `call`."""
    for match in re.finditer(rf"\b(?:{call})\(", text):
        end, start, depth = closing(text, match.end() - 1), match.end(), 0
        spans = []
        for i in range(match.end(), end):
            depth += (text[i] in "([{") - (text[i] in ")]}")
            if text[i] == "," and depth == 0:
                spans.append((start, i))
                start = i + 1
        yield [*spans, (start, end)] if end > 0 else []


def _replaced(text: str, span: tuple[int, int], new: str) -> str:
    return text[: span[0]] + new.format(text[slice(*span)].strip()) + text[span[1] :]


def _substituted(pattern: str, *new: str):
    """Every match replaced, one at a time, by each of `new` (a template for re.Match.expand)."""

    def mutate(text: str) -> Iterator[str]:
        for match in re.finditer(pattern, text):
            for template in new:
                yield text[: match.start()] + match.expand(template) + text[match.end() :]

    return mutate


def shuffle(text: str) -> Iterator[str]:
    for spans in arguments(text, r"simd_shuffle\w*|simd_broadcast"):
        if len(spans) > 1:
            yield _replaced(text, spans[-1], " ({}) ^ 1")
            yield _replaced(text, spans[-1], " ({}) ^ 2")


def index(text: str) -> Iterator[str]:
    if re.match(r"\s*(?:threadgroup|thread|const|constexpr)?\s*\w+ \w+(\[[^=]*\])+;", text):
        return  # a declaration
    for match in re.finditer(r"(?<=[\w\])])\[(?!\[)", text):
        end = closing(text, match.start())
        if end > 0:
            yield _replaced(text, (match.end(), end), "({}) + 1")
            yield _replaced(text, (match.end(), end), "({}) - 1")


def further(text: str) -> Iterator[str]:
    """A pointer handed on one element further."""
    for call, which in ((r"load4|store4|half_at|put_half", 0), (r"simdgroup_(?:load|store)", 1)):
        for spans in arguments(text, call):
            if len(spans) > which:
                yield _replaced(text, spans[which], " ({}) + 1")


def doubled(text: str) -> Iterator[str]:
    for spans in arguments(text, r"simd_sum"):
        if spans:
            yield _replaced(text, spans[0], "simd_sum({})")


def bound(text: str) -> Iterator[str]:
    loop = re.search(r"\bfor \(([^;]*);([^;]*?)(<=?|>=?)([^;]*);", text)
    if loop and loop[4].strip() != "0":
        yield text[: loop.end(4)] + " + 1" + text[loop.end(4) :]
        yield text[: loop.end(4)] + " - 1" + text[loop.end(4) :]


def other_half(text: str) -> Iterator[str]:
    """The scale of the other half-block of tq3_1s and tq4_1s."""
    yield from _substituted(r"\bchunk >> 1\b", r"(chunk >> 1 ^ 1)")(text)
    for spans in arguments(text, r"(?:\w+::)?scale"):
        if len(spans) == 2 and "uint chunk" not in text:
            yield _replaced(text, spans[1], " ({}) ^ 2")


OPERATORS = {
    "barrier removed": _substituted(r"\b(?:threadgroup|simdgroup)_barrier\([^;]*\);", ";"),
    "barrier narrowed": _substituted(r"\bthreadgroup_barrier\b", "simdgroup_barrier"),
    "memory flag": _substituted(r"mem_flags::mem_threadgroup", r"mem_flags::mem_device"),
    "memory flag off": _substituted(
        r"mem_flags::mem_(?:threadgroup|device)", "mem_flags::mem_none"
    ),
    "shuffle": shuffle,
    "mask": _substituted(r"\b(lane|t|i) & (\w+)", r"\1 & (\2 << 1)"),
    "index": index,
    "one further": further,
    "loop bound": bound,
    "sign": lambda text: (
        new
        for pattern, other in (
            (r"(?<=[\w)\]]) \+ (?=[\w(])", " - "),
            (r"(?<=[\w)\]]) - (?=[\w(])", " + "),
        )
        for new in _substituted(pattern, other)(text)
    ),
    "other half": other_half,
    "reduction doubled": doubled,
}


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of one file, in order of lines; tables, macros and signatures are left alone."""
    for number, line in enumerate(path.read_text("ascii").split("\n"), 1):
        code, comment = (*line.split("//", 1), "")[:2]
        skipped = not code.strip() or code.lstrip().startswith("#") or line.endswith("\\")
        if skipped or code.startswith(("constant", " " * 20 + "device")) or "[[" in code:
            continue
        for operator, mutate in OPERATORS.items():
            for new in dict.fromkeys(mutate(code)):
                yield Mutant(
                    path.name, number, operator, line, f"{new}//{comment}" if comment else new
                )


# ---- running one


def files() -> list[Path]:
    """Every shader and header."""
    return sorted(p for p in metal.shader_dir().iterdir() if p.suffix in (".metal", ".h"))


def users(file: str) -> list[str]:
    """The shaders whose text holds this file."""
    if file.endswith(".metal"):
        return [file.removesuffix(".metal")]
    return [name for name in metal.names() if f'"{file}"' in metal.source(name)]


def run(mutant: Mutant) -> tuple[Mutant, str]:
    """killed (how), survived or invalid."""
    os.environ.setdefault("METALSIM_CACHE", tempfile.gettempdir() + "/metalsim-mutants")
    compile_shader = metalsim.compile_shader
    metalsim.compile_shader = functools.partial(compile_shader, timeout=TIMEOUT)
    try:
        with tempfile.TemporaryDirectory() as folder, marks.ignored():
            _write(mutant, Path(folder))
            with metal.shaders_from(Path(folder)):
                return mutant, _verdict(mutant)
    finally:
        metalsim.compile_shader = compile_shader


def _write(mutant: Mutant, folder: Path) -> None:
    for path in metal.shader_dir().glob("*.*"):
        shutil.copy(path, folder)
    lines = (folder / mutant.file).read_text("ascii").split("\n")
    lines[mutant.line - 1] = mutant.after
    (folder / mutant.file).write_text("\n".join(lines), "ascii")


def _verdict(mutant: Mutant) -> str:
    for engine in ("sim", "sim-checked"):
        for shader in users(mutant.file):
            for case in cases(shader):
                try:
                    with metal.simulate(engine):
                        case()
                except SyntaxError:
                    return "invalid"
                except Exception as error:
                    return f"killed by {engine}: {shader} {case.__name__}: {type(error).__name__}"
    return "survived"


# ---- all of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", help="files, e.g. wht.metal common.h")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--out", type=Path, help="results as JSON")
    args = parser.parse_args()
    chosen = [p for p in files() if not args.only or p.name in args.only]
    mutants = [m for path in chosen for m in mutants_of(path)]
    if args.list:
        print("\n".join(map(str, mutants)))
        return 0
    results = []
    with ProcessPoolExecutor(args.jobs) as pool, contextlib.suppress(KeyboardInterrupt):
        for mutant, verdict in pool.map(run, mutants):
            results.append((mutant, verdict))
            if verdict == "survived":
                print(f"survived: {mutant}", flush=True)
    return _report(results, args.out)


def _report(results: list[tuple[Mutant, str]], out: Path | None) -> int:
    valid = [(m, v) for m, v in results if v != "invalid"]
    total, lived = Counter(m.operator for m, _ in valid), Counter()
    lived.update(m.operator for m, v in valid if v == "survived")
    for name in OPERATORS:
        print(f"{name:>18}: {total[name] - lived[name]} of {total[name]} killed")
    killed = len(valid) - lived.total()
    left_out = len(results) - len(valid)
    share = killed / max(1, len(valid))
    print(f"{killed} of {len(valid)} mutants killed ({share:.1%}); {left_out} do not compile")
    if out:
        rows = [asdict(m) | {"verdict": v} for m, v in results]
        out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return int(share < ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
