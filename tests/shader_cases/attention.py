"""What the cases of kv_decode and kv_prefill share: data, the definition and the tolerance."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tqlab import formats, ops
from tqlab.kvcache import padded_head_dim

from . import gaussian

DATA = Path(__file__).parents[1] / "data"
GOLDEN = {
    "turbo4-turbo4": "fa_turbo4_0_turbo4_0_d128_hq2_hk2_nq4_kv48",
    "turbo3-turbo3": "fa_turbo3_0_turbo3_0_d128_hq4_hk2_nq4_kv48",
    "q8_0-turbo3": "fa_q8_0_turbo3_0_d128_hq2_hk1_nq1_kv64",
}
GOLDEN_ATOL = 2e-6  # outputs are about 0.3
# Every format as K and as V, every head size; 64 is padded to 128 for turbo, 96 fills no tile.
PAIRS = (
    ("turbo4", "turbo4", 128),
    ("f16", "turbo4_lm", 64),
    ("q8_0", "f16", 96),
    ("turbo2", "q8_0", 256),
    ("turbo4_lm", "turbo2", 512),
    ("turbo3", "turbo3", 128),
)


@dataclass(frozen=True)
class Setting:
    """One attention call: rows of a batch, T queries over n slots, what hides keys."""

    steps: int
    n: int
    kv_heads: int = 2
    group: int = 2
    batch: int = 1
    window: int | None = None
    pads: tuple[int, ...] | None = None
    spare: int = 0  # unused slots behind the n, full of NaN
    peak: bool = False  # the last key's score tops the others by more than exp can take

    def __str__(self):
        shape = f"T{self.steps} n{self.n} H{self.kv_heads}x{self.group} B{self.batch}"
        mask = "".join(f" {k}{v}" for k, v in (("w", self.window), ("p", self.pads)) if v)
        return f"{shape}{mask} spare{self.spare}{' peak' * self.peak}"


def pack(name: str, x: torch.Tensor, spare: int = 0) -> torch.Tensor:
    """Heads as a cache holds them, and `spare` slots whose scales are NaN."""
    fmt = formats.get(name)
    bits = fmt.quantize(
        torch.nn.functional.pad(x, (0, padded_head_dim(fmt, x.shape[-1]) - x.shape[-1]))
    )
    return torch.nn.functional.pad(bits, (0, 0, 0, spare), value=255)


def attends(k_format: str, v_format: str, dim: int, dtype: torch.dtype, s: Setting) -> None:
    q = (2 * gaussian(s.batch, s.kv_heads * s.group, s.steps, dim, seed=s.n)).to(dtype)
    shape = (s.batch, s.kv_heads, s.n, dim)
    keys = gaussian(*shape, seed=1)
    if s.peak:
        keys[:, :, -1] = 4 * q[:, :: s.group, -1].float()
    k = pack(k_format, keys, s.spare)
    # Sizes that differ from key to key and from value to value show weights and sums mixed up.
    v = pack(v_format, gaussian(*shape, seed=2) * (torch.arange(s.n)[:, None] % 7 + 1), s.spare)
    pads = None if s.pads is None else torch.tensor(s.pads, dtype=torch.int32)
    scale, kept = 0.9 * dim**-0.5, q.clone()
    y = ops.kv_attention(q, k, v, k_format, v_format, s.n, scale, s.window, pads)
    assert torch.equal(q, kept), "the query changed"
    sides = [
        formats.get(name).dequantize(side[:, :, : s.n])[..., :dim]
        for name, side in ((k_format, k), (v_format, v))
    ]
    truth = define(q.double(), *(side.double() for side in sides), scale, s)
    peer = define(q, *(side.to(dtype) for side in sides), scale, s).double()
    atol = 3e-6 * float(truth.abs().max())
    allowed = 2 * float((peer - truth).abs().max()) + atol
    worst = float((y.double() - truth).abs().max())
    assert y.dtype == dtype, f"dtype {y.dtype}"
    assert worst <= allowed, f"error {worst:.3g}, allowed {allowed:.3g}"


def define(q, k, v, scale: float, s: Setting):
    """One full softmax in q's dtype: K and V un-rotated, [B, H_kv, n, D]."""
    k, v = k.repeat_interleave(s.group, 1), v.repeat_interleave(s.group, 1)
    slot = torch.arange(s.n)
    own = slot[s.n - s.steps :, None]
    hidden = ((slot > own) | (slot <= own - (s.window or s.n)))[None, None]
    if s.pads is not None:
        hidden = hidden | (slot < torch.tensor(s.pads)[:, None])[:, None, None]
    scores = (q @ k.mT * scale).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def golden(pair: str) -> None:
    """The fork's vectors, on whichever path is chosen."""
    with np.load(DATA / "formats-golden.npz") as arrays:
        name = GOLDEN[pair]
        q, k, v, out = (
            torch.from_numpy(arrays[f"{name}/{part}"])
            for part in ("q", "k_bytes", "v_bytes", "out")
        )
        n = arrays[f"{name}/k"].shape[1]
    k_format, v_format = pair.split("-")
    k, v = (b.view(1, -1, n, b.shape[-1]) for b in (k, v))
    if k_format == "q8_0":  # the fork's dot product rounds the query to the keys' format
        q = formats.get("q8_0").dequantize(formats.get("q8_0").quantize(q))
    y = ops.kv_attention(q[None], k, v, k_format, v_format, n, q.shape[-1] ** -0.5)
    torch.testing.assert_close(y[0].transpose(0, 1), out, rtol=0, atol=GOLDEN_ATOL)


@contextlib.contextmanager
def decode_steps(steps: int):
    """Another limit between the two paths inside a with block."""
    kept, ops.attention.DECODE_STEPS = ops.attention.DECODE_STEPS, steps
    try:
        yield
    finally:
        ops.attention.DECODE_STEPS = kept
