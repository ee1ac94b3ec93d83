"""Makes tiny-gemma4-96e: stories from SmolLM2, a vocabulary, a trained model, its files.

    python data/make_tiny_gemma4 sample SMOLLM2.gguf stories.jsonl [--seconds 300]
    python data/make_tiny_gemma4 train stories.jsonl [more.jsonl ...] FOLDER [--seconds 400]
    python data/make_tiny_gemma4 reference
    python data/make_tiny_gemma4 examples

The second leaves tiny-gemma4-96e.f16.gguf and held-out.txt in FOLDER. Once model and text are in
data/, the third leaves there what `tqlab selftest` expects the model to write; the fourth prints
what data/README.md shows of it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import corpus  # noqa: E402
import examples  # noqa: E402
import export  # noqa: E402
import model  # noqa: E402
import reference  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402

ENOUGH = 50_000  # stories that say which pieces the vocabulary needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    step = parser.add_subparsers(required=True)
    one = step.add_parser("sample")
    one.add_argument("smollm2", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--rows", type=int, default=6144)
    one.add_argument("--copies", type=int, default=3)
    one.set_defaults(run=sampling, seconds=300)
    two = step.add_parser("train")
    two.add_argument("stories", type=Path, nargs="+")
    two.add_argument("folder", type=Path)
    two.add_argument("--rows", type=int, default=128)
    two.add_argument("--context", type=int, default=1024)
    two.set_defaults(run=training, seconds=400)
    for p in (one, two):
        p.add_argument("--seconds", type=float)
        p.add_argument("--seed", type=int, default=0)
    step.add_parser("examples").set_defaults(run=lambda options: examples.show())
    step.add_parser("reference").set_defaults(run=lambda options: reference.write())
    options = parser.parse_args()
    options.run(options)


def sampling(o: argparse.Namespace) -> None:
    sample.sample(o.smollm2, o.out, o.rows, o.copies, o.seconds, o.seed)


def training(o: argparse.Namespace) -> None:
    rows, held = corpus.split(corpus.read(o.stories), o.seed)
    tokenizer = corpus.vocabulary([f"{r['story']} {r['request']}" for r in rows[:ENOUGH]])
    stream = corpus.spell(tokenizer, rows, o.seed)
    o.folder.mkdir(parents=True, exist_ok=True)
    (o.folder / "held-out.txt").write_text(held)
    shape = model.Shape(vocab=tokenizer.get_vocab_size(), context=o.context)
    ids = tokenizer.encode("<bos>" + held, add_special_tokens=False).ids
    print(f"{len(rows)} stories, {len(stream)} tokens, {shape.vocab} pieces; held out {len(ids)}")
    trained = train.train(stream, np.array(ids), shape, o.rows, o.seconds, o.seed)
    export.write(o.folder / "tiny-gemma4-96e.f16.gguf", trained, tokenizer)


if __name__ == "__main__":
    main()
