"""Bit packing, values first: axis 0 counts values (or bytes), axis 1 counts blocks.

That layout keeps every operation a long contiguous vector, on any device.
"""

import torch
from torch import Tensor


def pack(index: Tensor, bits: int) -> Tensor:
    """Pack small integers into a little-endian bit stream.

    Shapes: index uint8 [n, N] -> uint8 [n * bits / 8, N], n * bits whole bytes (bits 3: 3 bytes);
    for 1, 2 and 4 bits a numpy array gives a numpy array.
    Units: `bits` in {1, 2, 3, 4, 8}; value j occupies bits j*bits .. of its column's stream.
    Source: spec formats 3.1 and 4.1 (nibbles, crumbs, sign bits, 3-byte groups).
    """
    if bits == 8:
        return index
    if bits == 3:
        return _pack3(index)
    per_byte = 8 // bits
    lanes = index.reshape(-1, per_byte, index.shape[1])  # [bytes, per_byte, N]
    out = lanes[:, 0] | (lanes[:, 1] << bits)
    for j in range(2, per_byte):
        out |= lanes[:, j] << (bits * j)
    return out


def unpack(stream: Tensor, bits: int) -> Tensor:
    """Inverse of `pack`.

    Shapes: uint8 [n * bits / 8, N] -> uint8 [n, N]
    """
    if bits == 8:
        return stream
    if bits == 3:
        return _unpack3(stream)
    per_byte = 8 // bits
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=stream.device)[None, :, None]
    lanes = (stream[:, None, :] >> shifts) & ((1 << bits) - 1)
    return lanes.reshape(stream.shape[0] * per_byte, stream.shape[1])


def _pack3(index: Tensor) -> Tensor:
    """Eight 3-bit values to three bytes: 24 bits read as a little-endian integer."""
    i = index.view(-1, 8, index.shape[1]).int()
    word = i[:, 0].clone()
    for j in range(1, 8):
        word |= i[:, j] << (3 * j)
    octets = torch.stack([word & 255, (word >> 8) & 255, word >> 16], 1)  # [groups, 3, N]
    return octets.to(torch.uint8).reshape(-1, index.shape[1])


def _unpack3(stream: Tensor) -> Tensor:
    b = stream.view(-1, 3, stream.shape[1]).int()
    word = b[:, 0] | (b[:, 1] << 8) | (b[:, 2] << 16)
    shifts = torch.arange(0, 24, 3, dtype=torch.int32, device=stream.device)[None, :, None]
    return ((word[:, None] >> shifts) & 7).to(torch.uint8).reshape(-1, stream.shape[1])
