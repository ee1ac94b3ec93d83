"""q8_0: 32 int8 values and one fp16 scale, 8.5 bits a value (spec formats 4.6)."""

import torch

from .base import Format, bytes_half, half_bytes, reciprocal


class _Q8_0(Format):
    """d = amax / 127; q = round half away from zero of x * (1 / d)."""

    def _encode(self, blocks):
        d = blocks.abs().amax(1) / 127
        scaled = blocks * reciprocal(d)[:, None]
        # Not trunc(x + 0.5): 0.49999997 + 0.5 is 1 in float32. Both terms here are exact.
        whole = scaled.trunc()
        q = whole + (scaled.sub_(whole).mul_(2)).trunc_()
        return torch.cat([half_bytes(d), q.to(torch.int8).view(torch.uint8)], 1)

    def _decode(self, blocks, out):
        torch.mul(blocks[:, 2:].view(torch.int8), bytes_half(blocks[:, :2]), out=out)


Q8_0 = _Q8_0("q8_0", 32, 34, ggml_type=8)
