"""Ways to break one line of a shader: a fixed list of operators, each yielding changed lines."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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


DECLARATION = re.compile(
    r"\s*(?!return\b)(?:\w+ )*[\w:]+(?:<[^;=]*>)? \w+(?:\[[^=;]*\])*(?:, \w+(?:\[[^=;]*\])*)*;"
)

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
    if DECLARATION.match(text):
        return
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
