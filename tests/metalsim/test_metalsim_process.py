"""Kernels that hang or crash, callers of every kind, and the cache."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

import metalsim
from metalsim import _process, _toolchain

ROOT = Path(metalsim.__file__).parents[1]
SHADER = (Path(__file__).parent / "shaders" / "features.metal").read_text()


def assert_copies(library) -> None:
    """The next launch works."""
    y = torch.zeros(8)
    library.copy(torch.arange(8.0), y)
    assert y.tolist() == list(range(8))


def test_a_kernel_that_hangs_is_stopped(features):
    features.timeout, before = 0.5, features.timeout
    start = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match=r"hang did not finish within 0\.5 s"):
            features.hang(torch.zeros(32))
    finally:
        features.timeout = before
    assert time.monotonic() - start < 10
    assert_copies(features)


def test_time_in_which_the_kernel_does_not_run_is_no_hang(features):
    """A worker that stands still keeps its whole allowance: it is one of processor time."""
    worker, before = _process.worker(), features.timeout
    worker.stop()
    assert_copies(features)
    pid, used = worker._process.pid, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    timers = [
        threading.Timer(after, os.kill, (pid, number))
        for after, number in ((0.1, signal.SIGSTOP), (1.0, signal.SIGCONT))
    ]
    features.timeout = 0.5
    try:
        for timer in timers:
            timer.start()
        with pytest.raises(RuntimeError, match="did not finish"):
            features.hang(torch.zeros(32))
    finally:
        features.timeout = before
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used > 0.4


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86 traps on division by zero")
def test_a_kernel_that_divides_by_zero_leaves_the_caller_alive(features):
    x = torch.tensor([1, 0], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="SIGFPE"):
        features.divide(x, torch.zeros(2, dtype=torch.int32))
    assert_copies(features)


def test_a_wild_write_crashes_the_worker_only(load):
    with pytest.raises(RuntimeError, match=r"SIG(SEGV|BUS)"):
        load("features", check=False).far_write(torch.zeros(4), 1 << 29)
    with pytest.raises(metalsim.Diagnostics, match="out of bounds"):
        load("features", check=True).far_write(torch.zeros(4), 1 << 29)
    assert_copies(load("features", check=False))


def test_a_worker_that_was_killed_is_replaced(features):
    assert_copies(features)
    process = _process.worker()._process
    process.kill()
    process.wait()
    assert_copies(features)


def test_many_libraries(compiler, monkeypatch):
    monkeypatch.setattr(_process, "_MAX_LIBRARIES", 2)
    sources = [f"kernel void k{i}(device int* y) {{ *y = {i}; }}" for i in range(4)]
    libraries = [metalsim.compile_shader(s) for s in sources]
    for i, library in enumerate(libraries):
        y = torch.zeros(1, dtype=torch.int32)
        getattr(library, f"k{i}")(y)
        assert y.item() == i


def test_threads_take_turns(features):
    results: list[bool] = []

    def launch(value: float) -> None:
        for _ in range(10):
            y = torch.zeros(64)
            features.copy(torch.full((64,), value), y)
            results.append(bool((y == value).all()))

    callers = [threading.Thread(target=launch, args=(float(i),)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [True] * 40


def test_buffers_larger_than_the_first_mapping(features):
    n = 1 << 20
    x, y = torch.arange(n).float(), torch.zeros(n)
    features.copy(x[:1000], y, threads=8)
    features.copy(x, y, threads=(4096,), group_size=(1024,))
    assert torch.equal(y[:4096], x[:4096])


PROGRAM = """
import metalsim, torch
library = metalsim.compile_shader({source!r})
y = torch.zeros(4)
library.fill(y, 2.5)
print(y.tolist())
"""
FILL = (
    "kernel void fill(device float* y, constant float& v, uint i [[thread_position_in_grid]])"
    " { y[i] = v; }"
)


@pytest.mark.parametrize("how", ["stdin", "script", "command"])
def test_from_standard_input_a_script_or_a_command(compiler, tmp_path, how):
    """No `if __name__ == "__main__"` is needed anywhere."""
    program = PROGRAM.format(source=FILL)
    script = tmp_path / "script.py"
    script.write_text(program)
    arguments = {"stdin": ["-"], "script": [str(script)], "command": ["-c", program]}[how]
    result = subprocess.run(
        [sys.executable, *arguments],
        input=program if how == "stdin" else "",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "[2.5, 2.5, 2.5, 2.5]\n", result.stderr


def test_a_forked_child_gets_its_own_worker(compiler, tmp_path):
    program = textwrap.dedent(
        """
        import os
        child = os.fork()
        z = torch.zeros(4)
        library.fill(z, 1.0 if child else 2.0)
        assert z.tolist() == [1.0 if child else 2.0] * 4
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM.format(source=FILL) + program]
    subprocess.run(command, env=env, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)


# ---- the cache ---------------------------------------------------------------------------------
@pytest.fixture
def counted(compiler, tmp_path, monkeypatch):
    """An empty cache, and the list of compiler runs."""
    monkeypatch.setenv("METALSIM_CACHE", str(tmp_path / "cache"))
    runs: list[list[str]] = []
    attempt = _toolchain.Compiler.attempt

    def count(self, arguments, text=""):
        runs.append(arguments)
        return attempt(self, arguments, text)

    monkeypatch.setattr(_toolchain.Compiler, "attempt", count)
    return runs


def test_a_shader_is_compiled_once(counted, tmp_path):
    for _ in range(2):
        y = torch.zeros(4)
        metalsim.compile_shader(FILL).fill(y, 3.0)
        assert y.tolist() == [3.0] * 4
    assert len(counted) == 4  # preprocess, runtime, shader, link
    metalsim.compile_shader(FILL + "\n")
    assert len(counted) == 7  # the source changed; the runtime is there
    metalsim.compile_shader(FILL, check=True)
    assert len(counted) == 10  # checked libraries are their own
    assert not list((tmp_path / "cache").glob("building-*"))


def test_a_failed_compile_leaves_nothing_behind(counted, tmp_path):
    for _ in range(2):
        with pytest.raises(SyntaxError):
            metalsim.compile_shader(FILL.replace("= v", "= w"))
    built = [p for p in (tmp_path / "cache").iterdir() if (p / "shader.so").exists()]
    assert built == []


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("METALSIM_CACHE", str(tmp_path))
    assert metalsim.cache_directory() == tmp_path
    monkeypatch.delenv("METALSIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert metalsim.cache_directory() == tmp_path / "metalsim"


def test_no_compiler_is_said_plainly(monkeypatch):
    _toolchain.find_compiler.cache_clear()
    monkeypatch.setenv("METALSIM_CXX", "no-such-compiler")
    try:
        with pytest.raises(metalsim.CompilerNotFound, match="pip install ziglang"):
            metalsim.compile_shader(FILL)
    finally:
        _toolchain.find_compiler.cache_clear()
