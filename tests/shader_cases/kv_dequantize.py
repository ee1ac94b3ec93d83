"""kv_dequantize.metal: every code of every format, both domains, all three output types."""

import torch

from tqlab import formats, ops
from tqlab.ops.rows import DEQUANTIZED

from . import DTYPES, case


def packed(format: str, blocks: int = 7) -> torch.Tensor:
    """Random codes with finite, different scales: uint8 [blocks * block_bytes]."""
    fmt = formats.get(format)
    generator = torch.Generator().manual_seed(11)
    b = torch.randint(0, 256, (blocks, fmt.block_bytes), generator=generator, dtype=torch.uint8)
    scales = torch.rand(blocks, generator=generator).half() + 0.25
    b[:, :2] = scales.view(torch.uint8).view(blocks, 2)
    return b.flatten()


def dequantizes(format: str, dtype: torch.dtype, rotated: bool) -> None:
    b = packed(format)
    got = ops.dequantize_rows(b, format, rotated, dtype)
    expected = formats.get(format).dequantize(b, rotated).to(dtype)
    assert got.dtype == dtype
    assert torch.equal(got, expected), f"off by {(got - expected).abs().max()}"


ROTATED = [f for f in DEQUANTIZED if formats.get(f).rotation]
CASES = [case(dequantizes, f, dtype, False) for f in DEQUANTIZED for dtype in DTYPES]
CASES += [case(dequantizes, f, torch.float32, True) for f in ROTATED]
