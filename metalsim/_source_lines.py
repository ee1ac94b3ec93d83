"""From the address of a memory check to the line of the shader it stands for.

The assembler's .loc directives say where each instruction comes from: they become a table beside
the code, so that no debug information has to be read at run time.
"""

from __future__ import annotations

import re
import sys

_LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'\s*\.file\s+(\d+)\s+(?:"[^"]*"\s+)?"([^"]*)"')
_CALL = re.compile(r"\s*(?:callq?|blr?)\s+_*(?:__?tsan_\w+|__?ubsan_\w+|msl_rt_atomic)\b")


def add_source_lines(assembly: str) -> str:
    """`assembly` with a table from the return address of every check to its file and line."""
    files: dict[str, str] = {}
    current, line = "0", "0"
    table: list[tuple[int, str, str]] = []
    result: list[str] = []
    for text in assembly.split("\n"):
        result.append(text)
        if match := _LOC.match(text):
            if (
                match.group(2) != "0"
            ):  # 0: code that the optimiser merged; keep the last known place
                current, line = match.groups()
        elif match := _FILE.match(text):
            files[match.group(1)] = match.group(2)
        elif _CALL.match(text):
            result.append(f"Lmsl_pc_{len(table)}:")
            table.append((len(table), current, line))
    return "\n".join(result + _table(table, files)) + "\n"


def _table(table: list[tuple[int, str, str]], files: dict[str, str]) -> list[str]:
    mach_o = sys.platform == "darwin"
    rows, count = ("_" * mach_o + name for name in ("msl_source_lines", "msl_source_line_count"))
    lines = ["\t.data", "\t.p2align 3", f"\t.globl {rows}", f"\t.globl {count}", f"{rows}:"]
    for pc, file, line in table:
        lines += [f"\t.quad Lmsl_pc_{pc}", f"\t.quad Lmsl_file_{file}", f"\t.quad {line}"]
    lines += [f"{count}:", f"\t.quad {len(table)}"]
    for file in sorted({f for _, f, _ in table}):
        lines += [f"Lmsl_file_{file}:", f'\t.asciz "{files.get(file, "?")}"']
    if not mach_o:
        lines.append('\t.section ".note.GNU-stack","",@progbits')
    return lines
