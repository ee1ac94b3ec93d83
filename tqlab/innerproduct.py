"""The paper's inner-product variant: b - 1 bits of MSE quantiser, one bit of QJL. Reference only.

x^ = x~ + |r| sqrt(pi / 2) / d S^T sign(S r),  r = x - x~,  S Gaussian: E_S <y, x^> = <y, x>.
No storage format uses it: attention loses more to its variance than it gains from the lost bias.
Sources: TurboQuant (arXiv 2504.19874) section 3.2 and Theorem 2; QJL (arXiv 2406.03482).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .codebook import lloyd_max
from .rotation import haar


@dataclass(frozen=True)
class Code:
    """What would be stored of N vectors.

    Shapes: index uint8 [N, d] (bits - 1 bits each), sign bool [N, d], residual and norm [N, 1]
    """

    index: Tensor
    sign: Tensor
    residual: Tensor
    norm: Tensor


class InnerProductQuantizer:
    """Two-stage quantiser of d-vectors whose inner products come back without bias.

    Units: `bits` per value in all, 1 to 8; the two scalars a vector come on top.
    Raises: ValueError for another number of bits.
    """

    def __init__(self, dim: int, bits: int, seed: int = 0):
        if not 1 <= bits <= 8:
            raise ValueError(f"the inner-product variant takes 1 to 8 bits, not {bits}")
        self.dim, self.bits = dim, bits
        self.rotation = haar(dim, seed).float()
        g = torch.Generator().manual_seed(seed + 1)
        self.projection = torch.randn(dim, dim, generator=g)  # S
        self._table = [t.float() for t in lloyd_max(bits - 1)] if bits > 1 else None

    def quantize(self, x: Tensor) -> Code:
        """float [N, d] -> Code."""
        norm = x.norm(dim=-1, keepdim=True)
        unit = (x / norm.clamp_min(1e-30)) @ self.rotation.T
        index = self._index(unit)
        residual = unit - self._values(index)
        sign = residual @ self.projection.T >= 0
        return Code(index, sign, residual.norm(dim=-1, keepdim=True), norm)

    def dequantize(self, code: Code) -> Tensor:
        """Code -> float32 [N, d] with E_S <y, x^> = <y, x> for every y.

        Error: E (<y, x^> - <y, x>)^2 = |x|^2 |y|^2 / d * inner_product_distortion(bits), nearly.
        """
        signs = code.sign.float() * 2 - 1
        scale = math.sqrt(math.pi / 2) / self.dim * code.residual
        unit = self._values(code.index) + scale * (signs @ self.projection)
        return (unit @ self.rotation) * code.norm

    def mean_only(self, code: Code) -> Tensor:
        """The first stage alone: the biased MSE quantiser at bits - 1. float32 [N, d]"""
        return (self._values(code.index) @ self.rotation) * code.norm

    def _index(self, unit: Tensor) -> Tensor:
        if self._table is None:
            return torch.zeros_like(unit, dtype=torch.uint8)
        return torch.bucketize(unit * self.dim**0.5, self._table[1], right=True).to(torch.uint8)

    def _values(self, index: Tensor) -> Tensor:
        if self._table is None:
            return torch.zeros(index.shape)
        return self._table[0][index.long()] / self.dim**0.5
