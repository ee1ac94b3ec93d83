"""Prefill and decode speed of SmolLM2 in TQ4_1S, against a bare f32 pass over the same matrices.

    python benchmarks/generate.py [MODEL.gguf]

The bare pass multiplies every dense matrix of the model with one vector, once: what the weights
alone cost a token. It is run over matrices as files have them, row by row, and as the model holds
them. Bars (weights="dense", two cores): prefill 150 tok/s, decode 70 % of that pass.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import tqlab

N_PROMPT, N_NEW, ROUNDS = 512, 64, 3


def matrices(model) -> list[torch.Tensor]:
    """Every dense weight matrix a token is multiplied with."""
    layers = [
        m for layer in model.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down)
    ]
    return [m.weight for m in (*layers, model.unembed)]


@torch.inference_mode()
def bare_pass(weights: list[torch.Tensor]) -> float:
    """Seconds of one matrix-vector product with each."""
    inputs = [torch.randn(1, w.shape[1]) for w in weights]
    start = time.perf_counter()
    for x, w in zip(inputs, weights, strict=True):
        torch.nn.functional.linear(x, w)
    return time.perf_counter() - start


def speeds(model, n_prompt: int, n_new: int) -> tuple[float, float]:
    """(prefill, decode) in tok/s of a greedy run behind `n_prompt` tokens."""
    ids = model.tokenizer.encode(tqlab.data.pydoc_text()[: 8 * n_prompt])[:n_prompt]
    run = tqlab.generate(model, model.tokenizer.decode(ids), max_new_tokens=n_new)
    return run.prefill_tok_s, run.decode_tok_s


def compare(model) -> None:
    """Rounds of prefill, decode and bare passes side by side; the median share counts."""
    held, shares = matrices(model), []
    layouts = [w.contiguous() for w in held], held
    for _ in range(ROUNDS):
        prefill, behind = speeds(model, N_PROMPT, N_NEW // 4)
        before = [[bare_pass(weights) for _ in range(5)] for weights in layouts]
        decode = speeds(model, 8, N_NEW)[1]
        after = [[bare_pass(weights) for _ in range(5)] for weights in layouts]
        by_rows, as_held = (1 / median(a + b) for a, b in zip(before, after, strict=True))
        shares.append((decode / by_rows, decode / as_held))
        line = f"dense   prefill {prefill:7.1f} tok/s  decode {decode:6.2f} tok/s "
        line += f"({behind:.2f} behind {N_PROMPT})  bare pass {by_rows:6.2f} /s by rows, "
        print(f"{line}{as_held:6.2f} as held", flush=True)
    by_rows, as_held = (100 * median(column) for column in zip(*shares, strict=True))
    print(f"decode share of the bare pass, median: {by_rows:.0f} % ({as_held:.0f} % as held)")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            path = Path(sys.argv[1])
        else:
            path = Path(folder) / "smollm2-tq4_1s.gguf"
            tqlab.quantize_gguf(tqlab.data.fetch("smollm2"), path, "tq4_1s", progress=False)
        print(f"{torch.get_num_threads()} threads, prompt of {N_PROMPT}, {N_NEW} new tokens")
        compare(tqlab.load_model(path, "cpu", "dense"))
        prefill, decode = speeds(tqlab.load_model(path, "cpu", "packed"), N_PROMPT, 4)
        print(f"packed  prefill {prefill:7.1f} tok/s  decode {decode:6.2f} tok/s (no bar)")


if __name__ == "__main__":
    main()
