"""One line, updated in place: by a display handle in notebooks, by a carriage return elsewhere."""

import io
import sys

from tqlab import progress
from tqlab.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Handle:
    def __init__(self):
        self.shown = []

    def update(self, data, raw):
        self.shown.append(data["text/plain"])


def work():
    with Progress("sweep", 2) as bar:
        bar.step("f16/f16")
        bar.step("q8_0/turbo4")


def test_a_terminal_sees_one_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work()
    assert terminal.getvalue().count("\n") == 1
    assert "sweep 1/2" in terminal.getvalue()


def test_a_pipe_sees_nothing(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    work()
    assert pipe.getvalue() == ""


def test_a_notebook_keeps_the_last_line(monkeypatch):
    handle = Handle()
    monkeypatch.setattr(progress, "_notebook_handle", lambda: handle)
    work()
    assert handle.shown[-1].startswith("sweep 2/2")
    assert handle.shown[-1].endswith(" s")
