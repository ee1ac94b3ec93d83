"""Where the time of a sweep goes: nine K/V pairs on SmolLM2, 8 chunks of 512 tokens.

The baseline of the same run is a bare dense pass: torch's float32 products over the same matrices
with the same numbers of rows and nothing else.

    .venv/bin/python benchmarks/sweep.py
"""

import argparse
import json
import tempfile
import time

import torch
from torch.nn.functional import linear

import tqlab
from tqlab import metrics

# Seconds of the llama.cpp fork's CPU build on 2 cores (quoted, another machine: for scale only).
FORK_SECONDS = {
    "f16/f16": 6,
    "q8_0/q8_0": 12,
    "q4_0/q4_0": 17,
    "turbo4/turbo4": 55,
    "turbo3/turbo3": 58,
    "turbo2/turbo2": 51,
    "q8_0/turbo4": 20,
    "q8_0/turbo3": 31,
    "q8_0/turbo2": 20,
}
CTX = 512


def dense_pass(model, repeats: int) -> float:
    """Seconds of `repeats` bare passes of a chunk through every weight matrix."""
    x = {n: torch.randn(CTX, n) for n in (model.config.n_embd, 1536)}
    weights = [m.weight for layer in model.layers for m in vars(layer).values() if _is_matrix(m)]
    head = model.unembed.weight
    rows = torch.randn(CTX // 2 - 1, model.config.n_embd)
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(repeats):
            for weight in weights:
                linear(x[weight.shape[1]], weight)
            for part in rows.split(metrics.HEAD_ROWS):
                linear(part, head)
    return time.perf_counter() - start


def _is_matrix(value) -> bool:
    return hasattr(value, "weight") and value.weight.dim() == 2


def profiled_share(model, tokens, pair) -> float:
    """Share of one chunk's time inside torch's matrix products, attention's own included."""
    from torch.profiler import ProfilerActivity, profile

    metrics.perplexity(model, tokens, CTX, 1, *pair, reference=("f16", "f16"))
    with profile(activities=[ProfilerActivity.CPU]) as run:
        metrics.perplexity(model, tokens, CTX, 1, *pair, reference=("f16", "f16"))
    events = run.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    return sum(e.self_cpu_time_total for e in events if e.key in PRODUCTS) / total


PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=8)
    chunks = parser.parse_args().chunks
    model = tqlab.load_model("smollm2", device="cpu", weights="dense")
    tokens = model.tokenizer.encode(tqlab.data.load_text("pydoc-topics").text)
    dense_pass(model, 1)
    rows, baseline = [], []
    with tempfile.TemporaryDirectory() as folder:
        print("K/V                seconds   bare dense pass   ratio   in products   fork, quoted")
        for name, fork in FORK_SECONDS.items():
            pair = tuple(name.split("/"))
            baseline.append(dense_pass(model, chunks))
            result = tqlab.sweep(model, tokens, [pair], CTX, chunks, f"{folder}/{pair[0]}.jsonl")
            seconds, share = result[0]["seconds"], profiled_share(model, tokens, pair)
            rows.append({"pair": name, "seconds": seconds, "dense": baseline[-1], "share": share})
            print(
                f"{name:<16}{seconds:>9.1f}{baseline[-1]:>16.1f}{baseline[-1] / seconds:>10.2f}"
                f"{share:>13.0%}{fork:>13} s"
            )
    total, dense = sum(r["seconds"] for r in rows), sum(baseline)
    print(
        f"{'all':<16}{total:>9.1f}{dense:>16.1f}{dense / total:>10.2f}{'':>13}"
        f"{sum(FORK_SECONDS.values()):>13} s"
    )
    print("\n" + json.dumps({"threads": torch.get_num_threads(), "chunks": chunks, "rows": rows}))


if __name__ == "__main__":
    main()
