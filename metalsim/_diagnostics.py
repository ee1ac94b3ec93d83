"""What a checked launch raises."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = (
    "race",
    "wrong memory flag",
    "divergent barrier",
    "divergent collective",
    "inactive lane",
    "out of bounds",
    "uninitialised",
    "write through const",
    "misaligned",
)


@dataclass(frozen=True)
class Finding:
    """One distinct mistake: its kind (one of KINDS), the place, and what was seen there."""

    kind: str
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}:{self.line}: {self.message}"


class Diagnostics(RuntimeError):
    """A checked launch broke the rules; the caller's tensors are as they were before it."""

    def __init__(self, kernel: str, findings: list[Finding]) -> None:
        self.kernel, self.findings = kernel, findings
        super().__init__("\n".join([f"kernel {kernel}:", *map(str, findings)]))

    @property
    def kinds(self) -> set[str]:
        """The kinds of all findings."""
        return {f.kind for f in self.findings}


def parse_findings(text: str) -> list[Finding]:
    """Findings as the runtime writes them: kind, file, line and text between tabs."""
    rows = [line.split("\t", 3) for line in text.splitlines()]
    return [Finding(kind, file, int(line), message) for kind, file, line, message in rows]


for _public in (Finding, Diagnostics):
    _public.__module__ = __package__  # what a traceback should say
