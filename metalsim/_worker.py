"""The process in which kernels run: started by path, it uses the standard library alone.

One JSON request a line on standard input, one JSON answer a line on standard output. A kernel that
crashes ends this process; one that hangs is ended by a timer. The caller starts another.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys


class Region(ctypes.Structure):
    """Mirrors struct Region of runtime/runtime.h."""

    _fields_ = [
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("read_only", ctypes.c_bool),
        ("name", ctypes.c_char_p),
    ]


class Library:
    """One compiled shader, with the buffers file as it has mapped it."""

    def __init__(self, path: str) -> None:
        self.dll = ctypes.CDLL(path)
        self.dll.msl_map.restype = ctypes.c_void_p
        self.dll.msl_findings.restype = ctypes.c_char_p
        self.dll.msl_failure.restype = ctypes.c_char_p
        self.dll.msl_threadgroup_memory.restype = ctypes.c_size_t
        self.mapped: tuple[str, int] | None = None
        self.base = 0

    def map(self, path: str, size: int) -> None:
        if self.mapped != (path, size):
            self.base = self.dll.msl_map(path.encode(), ctypes.c_size_t(size)) or 0
            if not self.base:
                raise MemoryError(f"cannot map {size} bytes of buffers")
            self.mapped = (path, size)

    def launch(self, r: dict) -> dict:
        self.map(r["file"], r["size"])
        for at, target in r["pointers"]:
            ctypes.c_uint64.from_address(self.base + at).value = self.base + target
        buffers = [self.base + a if a >= 0 else None for a in r["arguments"]]
        regions = [Region(self.base + s, n, ro, name.encode()) for s, n, ro, name in r["regions"]]
        self.dll.msl_launch(
            r["kernel"].encode(),
            (ctypes.c_void_p * max(1, len(buffers)))(*buffers),
            (Region * max(1, len(regions)))(*regions),
            len(regions),
            (ctypes.c_uint * 3)(*r["grid"]),
            (ctypes.c_uint * 3)(*r["group"]),
            ctypes.c_uint64(r["seed"]),
            int(r["check"]),
            int(r["allow_partial"]),
        )
        return {
            "findings": self.dll.msl_findings().decode(),
            "failure": self.dll.msl_failure().decode(),
            "threadgroup_memory": self.dll.msl_threadgroup_memory(),
        }


def serve(requests, answers) -> None:
    """Answers requests until the caller is gone."""
    libraries: dict[str, Library] = {}
    for line in requests:
        request = json.loads(line)
        # Processor time: a busy machine is no hang. SIGPROF ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, request["timeout"])
        try:
            path = request["library"]
            if path not in libraries:
                libraries[path] = Library(path)
            answer = libraries[path].launch(request)
        except (OSError, MemoryError, AttributeError) as error:
            answer = {"findings": "", "failure": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write into the protocol
    serve(sys.stdin, replies)
