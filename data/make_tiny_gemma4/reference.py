"""Finds the sentence that `tqlab selftest` lets tiny-gemma4 write, and how clear each token is."""

import json
import re

import torch

from tqlab import data, load_model, ops, sentence
from tqlab.generate import Run, Sampling

STORIES = 150  # of the held-out text, whose beginnings are tried
PROMPT = 32  # tokens: what the simulator's matrix products do at once, in seconds
SHORTEST, LONGEST = 8, 24  # tokens of the sentence
_SENTENCE = re.compile(r'[^.!?]+[.!?]+"?\s*')


def write() -> None:
    """Leave beside the model the clearest of the sentences with which it continues a story.

    Raises: ValueError when some token of every sentence leads by less than sentence.LEAD.
    """
    dense = load_model(sentence.MODEL, "cpu", "dense")
    tried = [f for prompt in prompts(dense.tokenizer) if (f := continued(dense, prompt))]
    best = max(tried, key=lambda found: min(found["gaps"]))
    if min(best["gaps"]) < sentence.LEAD:
        raise ValueError(f"the clearest sentence has a lead of {min(best['gaps']):.2f} logits only")
    with ops.reference():
        again = continued(load_model(sentence.MODEL, "cpu", sentence.WEIGHTS), best["prompt"])
    if again["tokens"] != best["tokens"]:
        raise ValueError(f"packed weights continue {best['prompt']!r} in another way than dense")
    sha256 = data.file_sha256(data.fetch(sentence.MODEL))
    text = json.dumps({"model_sha256": sha256, **again}, indent=1)
    sentence.reference_path().write_text(text + "\n", "utf-8")
    print(f"{len(tried)} sentences; {again['prompt']} [...]{again['text']}")
    print(f"leads of {min(again['gaps'])} logits or more: {sentence.reference_path()}")


def prompts(tokenizer) -> list[str]:
    """The first sentences of held-out stories: one, two and three, where they are short enough."""
    stories = data.load_text("tiny-stories").text.split("\n\n")[:STORIES]
    starts = [_SENTENCE.findall(story)[:n] for story in stories for n in (1, 2, 3)]
    texts = ["".join(start).rstrip() for start in starts]
    return [text for text in texts if len(tokenizer.encode(text)) <= PROMPT]


@torch.inference_mode()
def continued(model, prompt: str) -> dict | None:
    """The next sentence with the lead of each token over the second, logits; None: no sentence."""
    run = Run(model, [prompt], sentence.K, sentence.V, LONGEST, Sampling())
    tokens, ids, spell = run.rows[0], model.tokenizer.encode(prompt), model.tokenizer.decode
    if not any(_ended(spell(tokens)) for _ in run.steps()) or len(tokens) < SHORTEST:
        return None
    cache = model.new_cache(sentence.K, sentence.V, len(ids) + len(tokens))
    logits = model(torch.tensor([ids + tokens[:-1]]), cache)[0, len(ids) - 1 :]
    high = logits.topk(2, -1).values
    gaps = [round(gap, 3) for gap in (high[:, 0] - high[:, 1]).tolist()]
    return {"prompt": prompt, "tokens": tokens, "text": spell(tokens), "gaps": gaps}


def _ended(text: str) -> bool:
    """Whether a sentence is complete, its quotes closed."""
    return bool(re.search(r'[.!?]"?$', text)) and text.count('"') % 2 == 0
