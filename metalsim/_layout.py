"""Where the arguments of a launch lie in the memory shared with the worker."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

from ._arguments import Span, encode_value, is_tensor, span_of
from ._signatures import Kernel, Parameter

PAGE = 4096


@dataclass
class Block:
    """Overlapping tensors: one stretch of memory, as on the device."""

    address: int
    end: int
    writable: bool
    name: str
    offset: int = 0


@dataclass
class Layout:
    """Offsets into the shared memory, and what has to be copied there and back."""

    size: int = 0
    arguments: list[int] = field(default_factory=list)
    regions: list[tuple[int, int, bool, str]] = field(default_factory=list)
    pointers: list[tuple[int, int]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    values: list[tuple[int, bytes]] = field(default_factory=list)
    first_numel: int | None = None

    def copy_in(self, base: int) -> None:
        """Puts every argument into the memory at `base`."""
        for offset, data in self.values:
            ctypes.memmove(base + offset, data, len(data))
        for block in self.blocks:
            ctypes.memmove(base + block.offset, block.address, block.end - block.address)

    def copy_out(self, base: int) -> None:
        """Puts what the kernel may have written back into the caller's tensors."""
        for block in self.blocks:
            if block.writable:
                ctypes.memmove(block.address, base + block.offset, block.end - block.address)


def lay_out(kernel: Kernel, args: tuple[Any, ...], arg_casts: Any) -> Layout:
    """Binds argument i to buffer i. Arguments that the kernel does not have are ignored.

    Raises:
        RuntimeError: for a missing argument, or one that compile_shader could not bind.
    """
    parameters = kernel.buffers()
    if missing := [i for i in parameters if i >= len(args)]:
        names = ", ".join(f"{i} ({parameters[i].name})" for i in missing)
        raise RuntimeError(f"kernel {kernel.host_name} lacks arguments for buffer {names}")
    layout = Layout()
    spans: list[tuple[int, Span]] = []
    lists: list[tuple[int, int, list[Span]]] = []
    for i, value in enumerate(args):
        parameter = parameters.get(i, Parameter("unused", index=i, const=True))
        _bind(layout, parameter, i, value, arg_casts, spans, lists)
    _place_tensors(layout, parameters, spans, lists)
    return layout


def _bind(layout, parameter, i, value, arg_casts, spans, lists) -> None:
    if is_tensor(value):
        span = span_of(value)
        if span.device != "cpu":
            raise RuntimeError(f"argument {i} is on {span.device}; this library runs on cpu")
        layout.first_numel = span.numel if layout.first_numel is None else layout.first_numel
        layout.arguments.append(-1)
        spans.append((i, span))
        return
    is_list = isinstance(value, (list, tuple)) and value and is_tensor(value[0])
    data = bytes(8 * len(value)) if is_list else encode_value(value, i, arg_casts)
    offset = _reserve(layout, len(data), 0)
    layout.values.append((offset, data))
    layout.arguments.append(offset)
    layout.regions.append((offset, len(data), parameter.const, f"buffer {i} ({parameter.name})"))
    if is_list:
        lists.append((i, offset, [span_of(v) for v in value]))


def _reserve(layout: Layout, nbytes: int, misalignment: int) -> int:
    """A new stretch, a page away from the last so that an overrun lands in between."""
    offset = (layout.size + 2 * PAGE - 1) // PAGE * PAGE + misalignment
    layout.size = offset + nbytes
    return offset


def _place_tensors(layout, parameters, spans, lists) -> None:
    pieces = []
    for i, span in spans:
        parameter = parameters.get(i)
        name = f"buffer {i} ({parameter.name})" if parameter else f"argument {i}"
        pieces.append((span, bool(parameter) and not parameter.const, name))
    for i, _, members in lists:
        pieces += [(s, True, f"tensor {j} of buffer {i}") for j, s in enumerate(members)]
    layout.blocks = _merge(pieces)
    for block in layout.blocks:
        nbytes = block.end - block.address
        block.offset = _reserve(layout, nbytes, block.address % 64)
        layout.regions.append((block.offset, nbytes, not block.writable, block.name))
    for i, span in spans:
        layout.arguments[i] = _locate(layout.blocks, span)
    for _, offset, members in lists:
        places = [_locate(layout.blocks, span) for span in members]
        layout.pointers += [(offset + 8 * j, place) for j, place in enumerate(places)]


def _merge(pieces: list[tuple[Span, bool, str]]) -> list[Block]:
    """Tensors that share memory must share it in the kernel too."""
    blocks: list[Block] = []
    for span, writable, name in sorted(pieces, key=lambda p: p[0].address):
        end = span.address + span.nbytes
        if not span.nbytes:
            continue
        if blocks and span.address < blocks[-1].end:
            last = blocks[-1]
            last.end, last.writable = max(last.end, end), last.writable or writable
            last.name += f" = {name}"
        else:
            blocks.append(Block(span.address, end, writable, name))
    return blocks


def _locate(blocks: list[Block], span: Span) -> int:
    """Offset of a tensor; an empty one gets an address that belongs to no buffer."""
    for block in blocks:
        if span.nbytes and block.address <= span.address < block.end:
            return block.offset + span.address - block.address
    return PAGE // 2
