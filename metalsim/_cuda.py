"""CUDA back end, experimental: the same source through NVRTC and the driver API, by ctypes."""

from __future__ import annotations

import ctypes
import functools
import glob
import json
import os
import sys
from typing import Any

from ._arguments import encode_value, is_tensor, span_of
from ._convention import CallableKernel, Library
from ._frontend import translate
from ._signatures import Kernel
from ._toolchain import PACKAGE
from ._translate import KERNEL_TABLE

_BLOB_BYTES = 2048
_MAX_BUFFERS = 31


class _Arguments(ctypes.Structure):
    """Mirrors struct msl_arguments of include/msl_cuda.h, where the blob is aligned to 16 bytes."""

    _fields_ = [
        ("pointer", ctypes.c_uint64 * _MAX_BUFFERS),
        ("in_blob", ctypes.c_uint),
        ("grid", ctypes.c_uint * 3),
        ("unused", ctypes.c_uint * 2),
        ("blob", ctypes.c_ubyte * _BLOB_BYTES),
    ]


class CudaKernel(CallableKernel):
    """One kernel; calling it enqueues it on torch's current stream."""

    def __init__(self, kernel: Kernel, function: ctypes.c_void_p) -> None:
        self._kernel, self._function = kernel, function
        self.max_threads_per_threadgroup = min(kernel.max_threads, _max_threads(function))

    def _bind(self, args: tuple[Any, ...], arg_casts: Any) -> tuple[_Arguments, int | None]:
        return _pack(self._kernel, args, arg_casts)

    def _launch(self, bound: _Arguments, grid: list[int], group: list[int]) -> None:
        bound.grid[:] = grid
        blocks = [(t + g - 1) // g for t, g in zip(grid, group, strict=True)]
        sizes = [ctypes.c_uint(n) for n in (*blocks, *group, 0)]
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(bound))
        stream = ctypes.c_void_p(_current_stream())
        code = _driver().cuLaunchKernel(self._function, *sizes, stream, parameters, None)
        if code:
            raise RuntimeError(f"cuLaunchKernel failed with CUDA error {code}")


class CudaLibrary(Library):
    """The kernels of one shader, compiled by NVRTC. Takes Metal source or translate()'s output.

    Raises:
        SyntaxError: when NVRTC refuses the translation.
        RuntimeError: when there is no NVRTC or no device.
    """

    def __init__(
        self, source: str, name: str = "shader.metal", options: tuple[str, ...] = ()
    ) -> None:
        code = source if KERNEL_TABLE in source else translate(source, "cuda", name)
        table = code.rsplit(KERNEL_TABLE, 1)[1]
        kernels = [Kernel.from_json(k) for k in json.loads(table)]
        _ensure_context()
        module = _load_module(compile_cuda(code, _architecture(), options))
        self._kernels = {
            k.host_name: CudaKernel(k, _function(module, f"msl_launch_{n}"))
            for n, k in enumerate(kernels)
        }


def _pack(kernel: Kernel, args: tuple[Any, ...], arg_casts: Any) -> tuple[_Arguments, int | None]:
    """Pointers, and values in a blob that travels with the launch."""
    if missing := [i for i in kernel.buffers() if i >= len(args)]:
        raise RuntimeError(f"kernel {kernel.host_name} lacks arguments for buffers {missing}")
    packed, used, numel = _Arguments(), 0, None
    for i, value in enumerate(args[:_MAX_BUFFERS]):
        if is_tensor(value):
            span = span_of(value)
            if span.device != "cuda":
                raise RuntimeError(f"argument {i} is on {span.device}, not cuda")
            numel = span.numel if numel is None else numel
            packed.pointer[i] = span.address
            continue
        data = encode_value(value, i, arg_casts)
        used = (used + 15) // 16 * 16
        if used + len(data) > _BLOB_BYTES:
            raise RuntimeError(f"argument {i}: more than {_BLOB_BYTES} bytes of values")
        ctypes.memmove(ctypes.addressof(packed.blob) + used, data, len(data))
        packed.pointer[i] = used
        packed.in_blob |= 1 << i
        used += len(data)
    return packed, numel


# ---- NVRTC -------------------------------------------------------------------------------------
def compile_cuda(code: str, architecture: str, options: tuple[str, ...] = ()) -> bytes:
    """A cubin for `architecture` (such as sm_90) from translate(source, "cuda").

    Raises:
        SyntaxError: with NVRTC's log.
    """
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"shader.cu", 0, None, None)
    flags = [f"-arch={architecture}", "-std=c++17", "-default-device", f"-I{PACKAGE / 'include'}"]
    flags += ["-lineinfo", "--fmad=false", "-diag-suppress=161,83,177,550", *options]
    array = (ctypes.c_char_p * len(flags))(*[f.encode() for f in flags])
    failed = nvrtc.nvrtcCompileProgram(program, len(flags), array)
    if failed:
        raise SyntaxError(_nvrtc_bytes(program, "ProgramLog").rstrip(b"\0").decode())
    return _nvrtc_bytes(program, "CUBIN")


def _nvrtc_bytes(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(_nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(_nvrtc(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    for version in ("13.0", "12.9", "12.8", "12.6"):  # NVRTC opens its built-ins by bare name
        _open([f"libnvrtc-builtins.so.{version}"])
    library = _open(["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"])
    if library is None:
        raise RuntimeError("libnvrtc was not found: pip install nvidia-cuda-nvrtc")
    return library


def _open(names: list[str]) -> ctypes.CDLL | None:
    for name in names:
        patterns = [os.path.join(p, "nvidia", "*", "lib", name) for p in sys.path]
        patterns.append(f"/usr/local/cuda*/lib64/{name}")
        for path in [name, *(hit for pattern in patterns for hit in glob.glob(pattern))]:
            try:
                return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
    return None


# ---- driver ------------------------------------------------------------------------------------
@functools.cache
def _driver() -> ctypes.CDLL:
    library = _open(["libcuda.so.1"])
    if library is None:
        raise RuntimeError("no CUDA driver on this machine")
    return library


def _ensure_context() -> None:
    _driver()
    import torch  # its primary context is the one whose tensors we are given

    torch.zeros(1, device="cuda")


def _architecture() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _current_stream() -> int:
    import torch

    return torch.cuda.current_stream().cuda_stream


def _load_module(cubin: bytes) -> ctypes.c_void_p:
    module = ctypes.c_void_p()
    if code := _driver().cuModuleLoadData(ctypes.byref(module), cubin):
        raise RuntimeError(f"cuModuleLoadData failed with CUDA error {code}")
    return module


def _function(module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
    function = ctypes.c_void_p()
    if code := _driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()):
        raise RuntimeError(f"cuModuleGetFunction({name}) failed with CUDA error {code}")
    return function


def _max_threads(function: ctypes.c_void_p) -> int:
    """How many threads the kernel's registers and threadgroup memory allow."""
    value = ctypes.c_int()  # attribute 0: CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
    if code := _driver().cuFuncGetAttribute(ctypes.byref(value), 0, function):
        raise RuntimeError(f"cuFuncGetAttribute failed with CUDA error {code}")
    return value.value
