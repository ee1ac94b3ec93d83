"""Trellis tables by the generalised Lloyd algorithm, beside the ones that the formats use.

python benchmarks/trellis_tables.py [--rounds 100] [--seeds 3] [--out FILE.npz]

Start: the 256 quantiles of N(0, 1), dealt to the states at random. A round encodes fresh N(0, 1)
vectors by Viterbi, then moves every state's value to the mean of what it was chosen for. The best
of all seeds, judged on other vectors, is kept. Relative MSE, dimensionless (spec beyond 3 and 4).
"""

import argparse

import numpy as np
import torch

from tqlab.formats.trellis import STATES, table, viterbi

VALUES, VECTORS, JUDGED = 128, 1024, 4096


def gaussian(vectors: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(VALUES, vectors, generator=generator)


def lloyd(bits: int, seed: int, rounds: int) -> torch.Tensor:
    """A table for `bits` bits a value: float32 [256]."""
    generator = torch.Generator().manual_seed(seed)
    quantiles = (torch.arange(STATES, dtype=torch.float64) + 0.5) / STATES
    dealt = torch.randperm(STATES, generator=generator)
    values = torch.special.ndtri(quantiles).float()[dealt]
    for _ in range(rounds):
        z = gaussian(VECTORS, generator)
        states = viterbi(z, values, bits).flatten()
        count = torch.bincount(states, minlength=STATES)
        sums = torch.zeros(STATES).scatter_add_(0, states, z.flatten())
        values = torch.where(count > 0, sums / count, values)
    return values


def error(values: torch.Tensor, bits: int) -> float:
    """Relative MSE on vectors that no table was made from."""
    z = gaussian(JUDGED, torch.Generator().manual_seed(1 << 20))
    return float((values[viterbi(z, values, bits)] - z).square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", help="write the best tables here, as the formats keep theirs")
    options = parser.parse_args()
    best = {}
    print("bits   in use    made here, one a seed")
    for bits in (2, 3, 4):
        made = [lloyd(bits, seed, options.rounds) for seed in range(options.seeds)]
        errors = [error(values, bits) for values in made]
        best[f"L8_R{bits}"] = made[int(np.argmin(errors))].numpy()
        columns = "  ".join(f"{e:.5f}" for e in errors)
        print(f"{bits}    {error(table(bits), bits):.5f}    {columns}", flush=True)
    if options.out:
        np.savez(options.out, **best)


if __name__ == "__main__":
    main()
