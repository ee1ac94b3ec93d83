"""The caller's side of the worker process: shared memory, requests, and what its death means."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("_worker.py")
_MAX_LIBRARIES = 32  # each keeps its stacks: start afresh before they add up
_lock = threading.Lock()


class SharedMemory:
    """A file that caller and worker both map. It only grows, by being replaced."""

    def __init__(self) -> None:
        self.path = ""
        self.size = 0
        self._map: mmap.mmap | None = None

    def reserve(self, size: int) -> int:
        """Makes room for `size` bytes and returns the address of the first.

        Raises:
            MemoryError: when no file system has the room.
        """
        if size > self.size:
            self.close()
            self._create(max(size, 1 << 20))
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))  # type: ignore[arg-type]

    def _create(self, size: int) -> None:
        for folder in ("/dev/shm", tempfile.gettempdir()):
            if not os.path.isdir(folder):
                continue
            fd, path = tempfile.mkstemp(prefix="metalsim-", dir=folder)
            try:
                _allocate(fd, size)
                self._map = mmap.mmap(fd, size)
            except OSError:
                os.unlink(path)
                continue
            finally:
                os.close(fd)
            self.path, self.size = path, size
            return
        raise MemoryError(f"no room for {size} bytes of kernel buffers")

    def close(self) -> None:
        """Removes the file; the mapping goes with its last user."""
        if self.path:
            os.unlink(self.path)
        self.path, self.size, self._map = "", 0, None


def _allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)  # a full /dev/shm says so here, not as a later SIGBUS
    else:
        os.ftruncate(fd, size)


class Worker:
    """A worker process and the memory shared with it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.memory = SharedMemory()
        self._process: subprocess.Popen[str] | None = None
        self._libraries: set[str] = set()

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends one launch and waits for its answer.

        Raises:
            RuntimeError: when the worker crashed or ran out of time.
        """
        process = self._running(message["library"])
        try:
            process.stdin.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            line = process.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            line = ""
        except BaseException:  # interrupted: the worker is still busy with this launch
            self.stop()
            raise
        if not line:
            raise RuntimeError(self._obituary(message))
        return json.loads(line)

    def _running(self, library: str) -> subprocess.Popen[str]:
        if self._process and self._process.poll() is not None:
            self.stop()
        if library not in self._libraries and len(self._libraries) >= _MAX_LIBRARIES:
            self.stop()
        self._libraries.add(library)
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is the caller's to handle
            )
        return self._process

    def _obituary(self, message: dict[str, Any]) -> str:
        code = self._process.wait() if self._process else 0
        self.stop()
        kernel = message["kernel"]
        if code == -signal.SIGPROF:
            used = f"{message['timeout']} s of processor time"
            return f"kernel {kernel} did not finish within {used} and was stopped"
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        hint = {
            "SIGFPE": " (integer division by zero)",
            "SIGSEGV": " (an access outside every buffer; check=True says where)",
            "SIGBUS": " (an access outside every buffer; check=True says where)",
        }.get(cause, "")
        return f"kernel {kernel} crashed with {cause}{hint}"

    def stop(self) -> None:
        """Ends the process; the next request starts another."""
        process, self._process = self._process, None
        self._libraries.clear()
        if process:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]


_worker: Worker | None = None


def worker() -> Worker:
    """This process's worker. A fork gets one of its own."""
    global _worker
    if _worker is None or _worker.pid != os.getpid():
        _worker = Worker()
    return _worker


def lock() -> threading.Lock:
    """Held for a whole launch: the shared memory belongs to one at a time."""
    return _lock


def _at_exit() -> None:
    if _worker and _worker.pid == os.getpid():
        _worker.stop()
        _worker.memory.close()


atexit.register(_at_exit)
