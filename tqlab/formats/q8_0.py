"""q8_0: 32 int8 values and one fp16 scale, 8.5 bits a value (spec formats 4.6)."""

import numpy as np
import torch

from .base import Format, bytes_half, half_bytes, reciprocal


class _Q8_0(Format):
    """d = amax / 127; q = round half away from zero of x * (1 / d)."""

    few = 256

    def _encode(self, blocks):
        d = blocks.abs().amax(1) / 127
        scaled = blocks * reciprocal(d)[:, None]
        # Not trunc(x + 0.5): 0.49999997 + 0.5 is 1 in float32. Both terms here are exact.
        whole = scaled.trunc()
        q = whole + (scaled.sub_(whole).mul_(2)).trunc_()
        return torch.cat([half_bytes(d), q.to(torch.int8).view(torch.uint8)], 1)

    @np.errstate(all="ignore")
    def _encode_few(self, blocks):
        d = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
        scaled = blocks * np.where(d > 0, 1 / d, np.float32(0))
        q = np.add(scaled, np.copysign(np.float32(0.5), scaled), dtype=np.float64)  # exact
        out = np.empty((len(blocks), self.block_bytes), np.uint8)
        out[:, :2] = d.astype(np.float16).view(np.uint8)
        out[:, 2:] = q.astype(np.int8).view(np.uint8)
        return out

    def _decode(self, blocks, out):
        torch.mul(blocks[:, 2:].view(torch.int8), bytes_half(blocks[:, :2]), out=out)


Q8_0 = _Q8_0("q8_0", 32, 34, ggml_type=8)
