"""compile_shader and what it returns for the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import _process
from ._convention import CallableKernel, Library
from ._diagnostics import Diagnostics, parse_findings
from ._layout import Layout, lay_out
from ._signatures import Kernel
from ._toolchain import build


class CpuKernel(CallableKernel):
    """One kernel; calling it runs it to completion and writes outputs back."""

    def __init__(self, library: CpuLibrary, kernel: Kernel) -> None:
        self._library, self._kernel = library, kernel
        self.max_threads_per_threadgroup = kernel.max_threads
        self.static_thread_group_memory_length = 0  # known once the kernel has run

    def _bind(self, args: tuple[Any, ...], arg_casts: Any) -> tuple[Layout, int | None]:
        layout = lay_out(self._kernel, args, arg_casts)
        return layout, layout.first_numel

    def _launch(self, bound: Layout, grid: list[int], group: list[int]) -> None:
        with _process.lock():
            worker = _process.worker()
            base = worker.memory.reserve(bound.size)
            bound.copy_in(base)
            answer = worker.request(self._message(bound, grid, group, worker.memory))
            self._raise_for(answer)
            bound.copy_out(base)

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


class CpuLibrary(Library):
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
        self._kernels = {k.host_name: CpuKernel(self, k) for k in kernels}
