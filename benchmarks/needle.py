"""Needle retrieval of a model under every recipe, beside f16 and turbo3, and KL where swept.

python benchmarks/needle.py [--model NAME] [--ctx N ...] [--needles N] [--chunks N] [--kl ROWS]
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import tqlab
from tqlab.measure import needles
from tqlab.sweep import read_rows
from tqlab.tables import needle_table

CHOICES = ("f16", "turbo3", "cw3", "cw4", "best3", "best4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", default=tqlab.data.PYDOC_TOPICS, help="what the lines lie in")
    parser.add_argument("--ctx", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--needles", type=int, default=12)
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="f16 first: the reference")
    parser.add_argument("--kl", help="rows of tqlab sweep, for their KL divergence")
    parser.add_argument("--out", type=Path, help="a file that each answer is appended to, as JSON")
    args = parser.parse_args()
    model = tqlab.load_model(args.model)
    tokens = model.tokenizer.encode(tqlab.data.load_text(args.text).text)
    rows = []
    for ctx in args.ctx:
        for name in args.choices:
            new = needles(model, tokens, [(name, name)], ctx, args.needles, args.chunks)
            rows += new
            if args.out:  # at once: a run takes long
                with args.out.open("a") as file:
                    file.writelines(f"{json.dumps(asdict(r))}\n" for r in new)
    print(needle_table(rows, read_rows(args.kl) if args.kl else ()))


if __name__ == "__main__":
    main()
