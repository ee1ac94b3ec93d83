"""compile_shader and what it returns for the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import _process
from ._arguments import check_casts, grid_of
from ._diagnostics import Diagnostics, parse_findings
from ._layout import lay_out
from ._signatures import Kernel
from ._toolchain import build


class CpuKernel:
    """One kernel; calling it runs it to completion, with torch.mps's call convention."""

    thread_execution_width = 32

    def __init__(self, library: CpuLibrary, kernel: Kernel) -> None:
        self._library, self._kernel = library, kernel
        self.max_threads_per_threadgroup = kernel.max_threads
        self.static_thread_group_memory_length = 0  # known once the kernel has run

    def __call__(
        self,
        *args: Any,
        threads: int | list[int] | tuple[int, ...] | None = None,
        group_size: int | list[int] | tuple[int, ...] | None = None,
        arg_casts: str | dict[int, str] | None = None,
        error_buf_idx: int | None = None,
    ) -> None:
        """Binds argument i to buffer i, runs `threads` threads and writes outputs back.

        Raises:
            Diagnostics: in checked mode, when the kernel breaks a rule.
            RuntimeError: for arguments that cannot be bound, a crash or a time-out.
            ValueError: for too large a group.
        """
        check_casts(arg_casts)
        layout = lay_out(self._kernel, args, arg_casts)
        limit = self._kernel.max_threads
        grid, group = grid_of(threads, group_size, layout.first_numel, limit)
        if 0 in grid:
            return
        with _process.lock():
            worker = _process.worker()
            base = worker.memory.reserve(layout.size)
            layout.copy_in(base)
            answer = worker.request(self._message(layout, grid, group, worker.memory))
            self._raise_for(answer)
            layout.copy_out(base)

    def _message(self, layout, grid, group, memory) -> dict[str, Any]:
        return {
            "library": str(self._library.path),
            "kernel": self._kernel.host_name,
            "file": memory.path,
            "size": memory.size,
            "arguments": layout.arguments,
            "regions": layout.regions,
            "pointers": layout.pointers,
            "grid": grid,
            "group": group,
            "seed": self._library.seed,
            "check": self._library.check,
            "allow_partial": self._kernel.host_name in self._library.partial_collectives,
            "timeout": self._library.timeout,
        }

    def _raise_for(self, answer: dict[str, Any]) -> None:
        name = self._kernel.host_name
        self.static_thread_group_memory_length = answer.get("threadgroup_memory", 0)
        if answer["failure"]:
            raise RuntimeError(f"kernel {name}: {answer['failure']}")
        if findings := parse_findings(answer["findings"]):
            raise Diagnostics(name, findings)


class CpuLibrary:
    """The kernels of one shader as attributes. `seed` may be changed between launches."""

    def __init__(
        self,
        source: str,
        name: str,
        check: bool,
        seed: int,
        timeout: float,
        partial_collectives: tuple[str, ...],
    ) -> None:
        self.path: Path
        self.path, kernels = build(source, name, check)
        self.check, self.seed, self.timeout = check, seed, timeout
        self.partial_collectives = partial_collectives
        self._kernels = {k.host_name: k for k in kernels}

    def __getattr__(self, name: str) -> CpuKernel:
        kernels = self.__dict__.get("_kernels", {})
        if name not in kernels:
            raise AttributeError(f"no kernel named {name}; there are {', '.join(kernels)}")
        return CpuKernel(self, kernels[name])

    def __dir__(self) -> list[str]:
        return list(self._kernels)
