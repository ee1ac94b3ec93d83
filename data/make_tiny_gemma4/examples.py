"""Ten fixed openings and how the model goes on, as Markdown: what data/README.md shows."""

import random

from stories import seed

import tqlab

N_NEW = 150
SAMPLED = {"temperature": 0.7, "top_p": 0.95, "seed": 1}
KINDS = {"Greedy": {}, "Sampled: temperature 0.7, top_p 0.95, seed 1": SAMPLED}


def openings(n: int = 10) -> list[str]:
    """The first `n` openings that the stories' own generator draws, none left out."""
    source = random.Random(0)
    return [seed(source).parts[0] for _ in range(n)]


def show() -> None:
    """Print each opening's story, to its end: the first blank line, or a stop token."""
    model, texts = tqlab.load_model("tiny-gemma4"), openings()
    for title, how in KINDS.items():
        print(f"\n### {title}\n")
        found = tqlab.generate(model, texts, max_new_tokens=N_NEW, **how)
        for start, text in zip(texts, (f.text for f in found), strict=True):
            story, *_ = text.split("\n\n")
            print(f"- **{start}**{story.rstrip()}")
