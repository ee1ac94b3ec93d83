"""Needle retrieval of a model under every recipe, beside f16 and turbo3, and KL where swept.

python benchmarks/needle.py [--model NAME] [--ctx N ...] [--needles N] [--chunks N] [--kl ROWS]
    [--out FILE]

FILE gets every cache's answers at once, and an interrupted run goes on from it: one file for one
text, model and number of lines.
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import tqlab
from tqlab.measure import Needle, needles
from tqlab.sweep import read_rows
from tqlab.tables import needle_table

CHOICES = ("f16", "turbo3", *tqlab.recipes.names())


def kept(out: Path | None, n: int) -> list[Needle]:
    """Answers of earlier runs, of caches that were asked for all `n` lines."""
    lines = out.read_text().splitlines() if out and out.is_file() else []
    rows = [Needle(**json.loads(line)) for line in lines]
    counts = Counter((row.k, row.ctx) for row in rows)
    return [row for row in rows if counts[row.k, row.ctx] == n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", default=tqlab.data.PYDOC_TOPICS, help="what the lines lie in")
    parser.add_argument("--ctx", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--needles", type=int, default=12)
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="f16 first: the reference")
    parser.add_argument("--kl", help="rows of tqlab sweep, for their KL divergence")
    parser.add_argument("--out", type=Path, help="answers as JSON lines: kept, and not asked again")
    args = parser.parse_args()
    model = tqlab.load_model(args.model)
    tokens = model.tokenizer.encode(tqlab.data.load_text(args.text).text)
    rows = kept(args.out, args.needles * args.chunks)
    done = {(row.k, row.ctx) for row in rows}
    for ctx in args.ctx:
        for name in [name for name in args.choices if (name, ctx) not in done]:
            new = needles(model, tokens, [(name, name)], ctx, args.needles, args.chunks)
            rows += new
            if args.out:  # at once: a run takes long
                with args.out.open("a") as file:
                    file.writelines(f"{json.dumps(asdict(r))}\n" for r in new)
    print(needle_table(rows, read_rows(args.kl) if args.kl else ()))


if __name__ == "__main__":
    main()
