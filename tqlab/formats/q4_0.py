"""q4_0: 32 4-bit values and one fp16 scale, 4.5 bits a value (spec formats 4.6)."""

import torch

from .base import Format, bytes_half, half_bytes


class _Q4_0(Format):
    """d = m / -8 with m the signed value of largest magnitude (the first wins)."""

    def _encode(self, blocks):
        first = blocks.abs().argmax(1, keepdim=True)
        m = blocks.gather(1, first)[:, 0]
        m = torch.where(m == 0, torch.zeros_like(m), m)  # the search starts at +0.0
        d = m / -8
        inv = torch.where(d != 0, 1.0 / d, torch.zeros_like(d))
        q = (blocks * inv[:, None] + 8.5).to(torch.uint8).clamp_(max=15)
        return torch.cat([half_bytes(d), q[:, :16] | (q[:, 16:] << 4)], 1)

    def _decode(self, blocks, out):
        qs, d = blocks[:, 2:], bytes_half(blocks[:, :2])
        torch.mul((qs & 15).float() - 8, d, out=out[:, :16])
        torch.mul((qs >> 4).float() - 8, d, out=out[:, 16:])


Q4_0 = _Q4_0("q4_0", 32, 18, ggml_type=2)
