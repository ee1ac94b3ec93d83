"""Quantising speed in weights/s, against a bare read of the same tensors in the same run.

    python benchmarks/quantize.py [MODEL.gguf]

The bare pass reads and expands every matrix to float32 and copies it once: what any quantiser pays.
Bar (two idle cores): tq4_1s 8 M weights/s.
"""

import math
import sys
import tempfile
import time
from pathlib import Path

import torch

import tqlab
from tqlab.gguf_file import GGUFFile, dequantize
from tqlab.policies import TYPES, plan
from tqlab.quantize import row_blocks


def bare_pass(file: GGUFFile, names: list[str]) -> float:
    """Seconds to read and expand every tensor, and copy it."""
    start = time.perf_counter()
    for name in names:
        for block in row_blocks(file, name):
            dequantize(torch.from_numpy(block), file.info(name).type).clone()
    return time.perf_counter() - start


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else tqlab.data.fetch("smollm2")
    file = GGUFFile(path)
    names = [m.source.name for m in plan(file, "tq4_1s") if m.quantized]
    weights = sum(math.prod(file.info(name).shape) for name in names)
    print(f"{path.name}: {weights / 1e6:.1f} M weights in {len(names)} matrices")
    with tempfile.TemporaryDirectory() as folder:
        for type_name in TYPES:
            bare = weights / bare_pass(file, names) / 1e6
            done = tqlab.quantize_gguf(path, Path(folder) / "out.gguf", type_name, progress=False)
            speed = done.weights_per_s / 1e6
            print(f"{type_name:7} {speed:7.1f} M weights/s   bare {bare:7.1f} M weights/s")


if __name__ == "__main__":
    main()
