"""f32, f16 and bf16: plain little-endian floats behind the same interface as the block formats."""

from dataclasses import dataclass

import torch

from .base import Format, reinterpret


@dataclass(frozen=True)
class Float(Format):
    """A float type stored as it is: one value a block."""

    dtype: torch.dtype = torch.float32

    def quantize(self, x):
        if not x.is_floating_point():
            raise ValueError(f"{self.name} stores floating-point tensors, got {x.dtype}")
        kept = x.detach().to(self.dtype, memory_format=torch.contiguous_format, copy=True)
        return kept.view(torch.uint8)

    def dequantize(self, b, rotated=False):
        if b.dtype != torch.uint8:
            raise ValueError(f"{self.name} reads uint8 tensors, got {b.dtype}")
        if b.shape[-1] % self.block_bytes:
            raise ValueError(
                f"{self.name} needs a multiple of {self.block_bytes} bytes, got {b.shape[-1]}"
            )
        return reinterpret(b, self.dtype).float()


F32 = Float("f32", 1, 4, ggml_type=0, dtype=torch.float32)
F16 = Float("f16", 1, 2, ggml_type=1, dtype=torch.float16)
BF16 = Float("bf16", 1, 2, ggml_type=30, dtype=torch.bfloat16)
