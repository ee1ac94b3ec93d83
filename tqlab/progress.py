"""One line of progress, updated in place: a display handle in notebooks, stderr in terminals.

In a saved notebook exactly one line is left; where nobody watches (a pipe) nothing is printed.
"""

import sys
import time


class Progress:
    """`with Progress("sweep", 9) as p: p.step("q8_0/turbo4")`: "sweep 1/9  2.1 s  q8_0/turbo4"."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done = label, total, 0
        self._start = time.perf_counter()
        self._handle = _notebook_handle()
        self._line = ""

    def __enter__(self) -> "Progress":
        self.show("")
        return self

    def __exit__(self, *error) -> None:
        self.show("")
        if self._handle is None and sys.stderr.isatty():
            print(file=sys.stderr)

    def show(self, detail: str) -> None:
        """Redraw the line with `detail` at its end."""
        seconds = time.perf_counter() - self._start
        line = f"{self.label} {self.done}/{self.total}  {seconds:.1f} s  {detail}".rstrip()
        if self._handle is not None:
            self._handle.update({"text/plain": line}, raw=True)
        elif sys.stderr.isatty():
            print(f"\r{line:<{len(self._line)}}", end="", file=sys.stderr, flush=True)
        self._line = line

    def step(self, detail: str = "") -> None:
        """One more unit is done."""
        self.done += 1
        self.show(detail)


def say(line: str) -> None:
    """A line of news: in the cell's output in notebooks, on stderr elsewhere."""
    print(line, file=sys.stdout if _shell() else sys.stderr)


def _shell():
    """The running notebook kernel's shell, or None."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def _notebook_handle():
    """An IPython display handle when a notebook kernel runs this, else None."""
    if _shell() is None:
        return None
    from IPython.display import display

    return display({"text/plain": ""}, raw=True, display_id=True)
