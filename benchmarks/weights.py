"""What packing tiny-gemma4's weights costs: bits, perplexity, KL from the F16 weights, one text.

    python benchmarks/weights.py [SOURCE.gguf] [--text NAME] [--out FILE]

The F16 file is what data/make_tiny_gemma4 makes. The rows of all recipes replace those of `--out`.
"""

import argparse
import json
from pathlib import Path

import tqlab
from tqlab.measure import weight_rows
from tqlab.tables import Table

RECIPES = ("f16", "q8_0", "config-i", "tq4_1s", "tq3_1s")
REQUEST = "Tell me a story about Lily, a brave rabbit who lost her red ball."
COLUMNS = {
    "recipe": "weights",
    "nbytes": "bytes",
    "bits": "bits a weight",
    "ppl": "perplexity",
    "ppl_se": "±",
    "kld_mean": "KL, nats/token",
    "kld_se": "±",
    "same_top": "same top",
}


def main() -> None:
    data = Path(__file__).resolve().parents[1] / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = data / "models" / "tiny-gemma4-96e.f16.gguf"
    parser.add_argument("source", nargs="?", type=Path, default=source)
    parser.add_argument("--text", default="tiny-stories")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--request", default=REQUEST, help="what the model is asked to write")
    parser.add_argument("--tokens", type=int, default=160)
    out = data / "published" / "tiny-gemma4-weights.jsonl"
    parser.add_argument("--out", type=Path, default=out)
    a = parser.parse_args()
    prompt = [{"role": "user", "content": a.request}]
    text = tqlab.data.load_text(a.text)
    rows = weight_rows(a.source, a.recipes, text, a.ctx, a.chunks, prompt, a.tokens)
    print(Table(rows, COLUMNS))
    for row in rows:
        print(f"--- {row['recipe']}\n{row['written']}")
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
