"""Peak memory of attention over a packed cache of 32k tokens, measured by the operating system.

Each case runs in a process of its own: it fills a cache with synthetic keys and values, attends
with one new token and with a chunk, and reports how far the process's peak rose above the start.

    .venv/bin/python benchmarks/attention_memory.py
"""

import json
import subprocess
import sys

from file_memory import peak_bytes

TOKENS, HEADS, KV_HEADS, DIM, CHUNK = 32768, 8, 2, 128, 64
LIMIT = 1.25


def case(pair: str, layers: int) -> dict:
    """Fill and read one cache; bytes of the cache, of a tile, and of the rise of the peak."""
    import torch

    from tqlab.attention import DECODE_TILE, attend
    from tqlab.kvcache import KVCache, LayerShape

    k_name, v_name = pair.split("/")
    shapes = [LayerShape(KV_HEADS, DIM)] * layers

    def work(tokens):
        cache = KVCache(shapes, k_name, v_name, tokens)
        step = torch.randn(1, KV_HEADS, 512, DIM)
        for _ in range(0, tokens - CHUNK, 512):
            for i in range(layers):
                cache.update_and_fetch(i, step, step)
            cache.advance(512)
        cache.offset = tokens - CHUNK  # the last tokens again, as a chunk and one by one
        for i in range(layers):
            for n in (CHUNK, 1):
                view = cache.update_and_fetch(i, step[:, :, :n], step[:, :, :n])
                attend(torch.randn(1, HEADS, n, DIM), view, DIM**-0.5)
        return cache.nbytes

    with torch.inference_mode():
        work(2048)  # code, thread pools and tables are in place before the measurement
        before = peak_bytes()
        held = work(TOKENS)
    tile = 2 * KV_HEADS * DECODE_TILE * DIM * 4
    return {
        "pair": pair,
        "layers": layers,
        "cache": held,
        "tile": tile,
        "rise": peak_bytes() - before,
    }


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(case(sys.argv[1], int(sys.argv[2]))))
        return
    print(
        "K/V               layers  packed MB   tile MB   peak rise MB   rise / packed   allowed MB"
    )
    failed = False
    for pair in ("f16/f16", "q8_0/turbo4", "turbo3/turbo3"):
        for layers in (1, 4, 16):
            command = [sys.executable, __file__, pair, str(layers)]
            row = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            allowed = LIMIT * row["cache"] + row["tile"]
            failed |= row["rise"] > allowed
            print(
                f"{pair:<18}{layers:>6}{row['cache'] / 1e6:>11.1f}{row['tile'] / 1e6:>10.1f}"
                f"{row['rise'] / 1e6:>15.1f}{row['rise'] / row['cache']:>16.2f}"
                f"{allowed / 1e6:>13.1f}"
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
