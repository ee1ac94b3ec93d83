"""What kernels and libraries of both back ends share: they are called as torch.mps's are."""

from __future__ import annotations

from typing import Any

from ._arguments import check_casts, grid_of


class CallableKernel:
    """A kernel that binds argument i to buffer i and runs `threads` threads."""

    thread_execution_width = 32
    max_threads_per_threadgroup: int

    def __call__(
        self,
        *args: Any,
        threads: int | list[int] | tuple[int, ...] | None = None,
        group_size: int | list[int] | tuple[int, ...] | None = None,
        arg_casts: str | dict[int, str] | None = None,
        error_buf_idx: int | None = None,
    ) -> None:
        """Launches the kernel.

        Raises:
            Diagnostics: in checked mode, when the kernel breaks a rule.
            RuntimeError: for arguments that cannot be bound, a crash, a time-out, a driver error.
            ValueError: for too large a group.
        """
        check_casts(arg_casts)
        bound, numel = self._bind(args, arg_casts)
        grid, group = grid_of(threads, group_size, numel, self.max_threads_per_threadgroup)
        if 0 not in grid:
            self._launch(bound, grid, group)

    def _bind(self, args: tuple[Any, ...], arg_casts: Any) -> tuple[Any, int | None]:
        """What _launch needs, and the number of elements of the first tensor."""
        raise NotImplementedError

    def _launch(self, bound: Any, grid: list[int], group: list[int]) -> None:
        raise NotImplementedError


class Library:
    """Kernels as attributes, by host name."""

    _kernels: dict[str, CallableKernel]

    def __getattr__(self, name: str) -> Any:
        kernels = self.__dict__.get("_kernels", {})
        if name not in kernels:
            raise AttributeError(f"no kernel named {name}; there are {', '.join(kernels)}")
        return kernels[name]

    def __dir__(self) -> list[str]:
        return list(self._kernels)
