"""Decoding speed of SmolLM2 with every recipe at 2k and 8k tokens, beside f16 and turbo3.

    python benchmarks/recipes.py [--model NAME] [--ctx N ...] [--choices NAME ...]

The cache is filled with random keys and values: what a token costs does not depend on them. Rounds
go over all recipes in turn, so that a busy machine slows all of them; medians count.
"""

import argparse
import platform
import statistics
import time

import torch

import tqlab
from tqlab.models.base import PREFILL_CHUNK
from tqlab.tables import Table

CHOICES = ("f16", "turbo3", *tqlab.recipes.names())


@torch.inference_mode()
def fill(cache, n: int) -> None:
    """Write `n` random tokens to every layer."""
    for start in range(0, n, PREFILL_CHUNK):
        steps = min(PREFILL_CHUNK, n - start)
        for i, shape in enumerate(cache.shapes):
            if shape.donor is None:
                size = (1, shape.n_kv_heads, steps, shape.head_dim)
                cache.update_and_fetch(i, torch.randn(size), torch.randn(size))
        cache.advance(steps)


@torch.inference_mode()
def decode(model, cache, n: int) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of each of `n` tokens."""
    seconds = []
    for _ in range(n):
        start = time.perf_counter(), time.process_time()
        model(torch.ones(1, 1, dtype=torch.int64), cache, last_only=True)
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return seconds


def measure(model, choices, ctx: int, n: int, rounds: int) -> list[dict]:
    """A row for every choice, each with f16's speed of the same run beside it."""
    caches = {name: model.new_cache(name, name, ctx) for name in choices}
    for cache in caches.values():
        fill(cache, ctx - 1 - n * rounds)
        decode(model, cache, 1)
    seconds = {name: [] for name in choices}
    for _ in range(rounds):
        for name, cache in caches.items():
            seconds[name] += decode(model, cache, n)
    wall, cpu = (
        {name: statistics.median(s[i] for s in times) for name, times in seconds.items()}
        for i in (0, 1)
    )
    return [
        {
            "context": ctx,
            "recipe": name,
            "bits": sum(caches[name].stored_bits()) / 2,
            "tok/s": 1 / wall[name],
            "to f16": wall["f16"] / wall[name],
            "CPU ms": 1e3 * cpu[name],
            "CPU to f16": cpu["f16"] / cpu[name],
        }
        for name in choices
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--ctx", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="f16 among them")
    args = parser.parse_args()
    model = tqlab.load_model(args.model, device="cpu")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    size = args.tokens, args.rounds
    rows = [row for n in args.ctx for row in measure(model, args.choices, n, *size)]
    print(Table(rows))


if __name__ == "__main__":
    main()
