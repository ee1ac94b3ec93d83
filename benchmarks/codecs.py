"""Codec speed: thousands of 128-value vectors a second, beside a plain copy in the same run.

.venv/bin/python benchmarks/codecs.py
"""

import json
import time

import torch

from tqlab import formats

VECTORS = 100_000


def rate(function, seconds: float = 1.0) -> float:
    """Calls a second, median of repeated timings."""
    function()
    times = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1 / sorted(times)[len(times) // 2]


def main() -> None:
    x = torch.randn(VECTORS, 128, generator=torch.Generator().manual_seed(0))
    target = torch.empty_like(x)
    copy = rate(lambda: target.copy_(x)) * VECTORS / 1e3
    print(f"{torch.get_num_threads()} threads; copy of float32 vectors: {copy:.0f} k/s\n")
    print("format       encode k/s   of copy   decode k/s   of copy   (decode: rotated domain)")
    rows = []
    for name in formats.names():
        fmt = formats.get(name)
        packed = fmt.quantize(x)
        encode = rate(lambda f=fmt: f.quantize(x)) * VECTORS / 1e3
        decode = rate(lambda f=fmt, p=packed: f.dequantize(p, rotated=True)) * VECTORS / 1e3
        rows.append({"format": name, "encode_k_s": encode, "decode_k_s": decode, "copy_k_s": copy})
        print(
            f"{name:<12}{encode:>10.0f}{100 * encode / copy:>9.1f} %{decode:>12.0f}"
            f"{100 * decode / copy:>9.1f} %"
        )
    print("\n" + json.dumps(rows))


if __name__ == "__main__":
    main()
