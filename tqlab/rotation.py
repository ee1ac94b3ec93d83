"""Rotations: signed Walsh-Hadamard (32, 64 and 128 points, as formats use) and dense Haar.

All are orthogonal, so inner products survive: <R q, R k> = <q, k>.
Source: TurboQuant (arXiv 2504.19874) section 3; sign arrays: spec formats 2.1 and 2.2.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# Bit i of the little-endian words is set where sign i is -1.
_S1_128 = (0xE46A0359, 0x42F85949, 0xA4C63BBB, 0x49F250A9)
_S2_128 = (0x16ACEE90, 0x3F628FDC, 0xB7A5357A, 0xBEA56562)
_T_32 = (0x696B4B4A,)

_FEW_COLUMNS = 64  # up to these, calls cost more than arithmetic
_PAIR = np.array([[1, 1], [1, -1]], np.float32)

# name -> (group size, signs before the transform, signs after it, 1/sqrt(group))
_ROTATIONS = {
    "wht128": (128, _S1_128, _S2_128, 0.08838834764831845),
    "wht64": (64, _S1_128[:2], _S2_128[:2], 0.125),  # the first 64 signs, as the fork's own
    "wht32": (32, _T_32, None, 0.17677669529663688),
}


def group_size(rotation: str) -> int:
    """Number of values that `rotation` ("wht32", "wht64" or "wht128") mixes."""
    return _ROTATIONS[rotation][0]


@lru_cache(maxsize=64)
def _signs(rotation: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two float32 diagonals [group, 1]: before the butterflies, and after (scale included)."""
    n, before, after, scale = _ROTATIONS[rotation]
    c = torch.tensor(scale, dtype=torch.float32)

    def diagonal(words):
        bits = [(words[i >> 5] >> (i & 31)) & 1 for i in range(n)]
        return 1.0 - 2.0 * torch.tensor(bits, dtype=torch.float32)[:, None]

    last = c * (diagonal(after) if after else torch.ones(n, 1))
    return diagonal(before).to(device), last.to(device)


def butterflies(x: Tensor) -> Tensor:
    """Unnormalised Hadamard transform along axis 0, natural (Sylvester) order, not in place.

    Shapes: [n, N], n a power of two -> [n, N]
    Error: bit-identical to the scalar loop h = 1, 2, 4, ... of (a, b) -> (a + b, a - b).
    Raises: ValueError when n is not a power of two.
    """
    n, cols = x.shape
    if n & (n - 1):
        raise ValueError(f"a Walsh-Hadamard transform needs a power of two, not {n} points")
    few = n > 1 and cols <= _FEW_COLUMNS
    if x.device.type == "cpu" and few and x.dtype == torch.float32:
        return torch.from_numpy(small_butterflies(x.T.numpy()))
    src, dst = x, torch.empty_like(x, memory_format=torch.contiguous_format)
    spare = torch.empty_like(dst) if n > 2 else dst
    h = 1
    while h < n:
        a, b = src.view(n // (2 * h), 2, h, cols).unbind(1)
        out = dst.view(n // (2 * h), 2, h, cols)
        torch.add(a, b, out=out[:, 0])
        torch.sub(a, b, out=out[:, 1])
        src, dst = dst, spare if src is x else src
        h *= 2
    return src.clone() if src is x else src


def small_butterflies(x: np.ndarray) -> np.ndarray:
    """The same of rows, in numpy: calls are what a single token costs.

    Shapes: float32 [N, n] -> [n, N]
    A stage is a product with [[1, 1], [1, -1]], whose sums of two terms are rounded once, as ever;
    it takes the lowest bit of the index and leaves it on top, so that the last restores the order.
    """
    rows, n = x.shape
    for _ in range(n.bit_length() - 1):
        x = np.dot(_PAIR, x.reshape(-1, 2).T)
    return x.reshape(n, rows)


def rotate_columns(x: Tensor, rotation: str) -> Tensor:
    """Forward rotation of columns [group, N], float32, bit-exact to the fork's CPU."""
    before, after = _signs(rotation, x.device)
    return butterflies(x * before).mul_(after)


def unrotate_columns(y: Tensor, rotation: str) -> Tensor:
    """Inverse of `rotate_columns`; same shapes."""
    before, after = _signs(rotation, y.device)
    if rotation == "wht32":  # one sign array: butterflies, then c*t as a single float32 factor
        return butterflies(y).mul_(before * after)
    scale = after.abs()
    return butterflies(y * (after / scale)).mul_(before * scale)


@lru_cache(maxsize=16)
def matrix(rotation: str, device: torch.device) -> Tensor:
    """The rotation as a dense matrix, float32 [group, group]: x @ matrix = rotate(x) to 1e-6."""
    return rotate_columns(torch.eye(group_size(rotation), device=device), rotation).T.contiguous()


def rotate(x: Tensor, rotation: str | None) -> Tensor:
    """Rotate the last axis in groups (block-diagonal when it is longer than one group).

    Shapes: float [..., n], n % group == 0 -> float32 [..., n]; `rotation` None returns x.
    Raises: ValueError when n is not a multiple of the group.
    """
    return _grouped(x, rotation, rotate_columns)


def unrotate(y: Tensor, rotation: str | None) -> Tensor:
    """Inverse of `rotate`; same shapes and errors."""
    return _grouped(y, rotation, unrotate_columns)


def _grouped(x: Tensor, rotation: str | None, columns) -> Tensor:
    if rotation is None:
        return x
    n = group_size(rotation)
    if x.shape[-1] % n:
        raise ValueError(f"{rotation} needs a multiple of {n} values, got {x.shape[-1]}")
    flat = x.float().reshape(-1, n)
    return columns(flat.T.contiguous(), rotation).T.reshape(x.shape)


def rotate_product(x: Tensor, rotation: str | None) -> Tensor:
    """`rotate` as a product with a matrix: float32 [..., n] -> [..., n].

    For queries and outputs, where no byte depends on the last bit: on a CPU it takes an eighth of
    the butterflies' time.
    Error: 1e-6 of the largest value.
    """
    if rotation is None:
        return x
    m = matrix(rotation, x.device)
    return (x.reshape(-1, m.shape[0]) @ m).view(x.shape)


def padded(x: Tensor, dim: int) -> Tensor:
    """Heads with zeros behind them, as whole rotation groups want: [..., D <= dim] -> [..., dim]"""
    missing = dim - x.shape[-1]
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def unrotate_product(y: Tensor, rotation: str | None) -> Tensor:
    """Inverse of `rotate_product`; same shapes and error."""
    if rotation is None:
        return y
    m = matrix(rotation, y.device)
    return torch.nn.functional.linear(y.reshape(-1, m.shape[0]), m).view(y.shape)


def haar(n: int, seed: int = 0) -> Tensor:
    """A dense orthogonal matrix drawn from the Haar measure: the paper's own rotation.

    Shapes: -> float64 [n, n], Q @ Q.T = I to 1e-12
    Source: TurboQuant section 3.1; QR of a Gaussian matrix with the signs of R's diagonal fixed.
    """
    g = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(g)
    return q * r.diagonal().sign()
