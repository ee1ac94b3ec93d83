"""Write tqlab/texts/calibration.txt: prose made by SmolLM2-135M-Instruct (Apache-2.0), offline.

    python data/make_calibration_text.py [OUT]

Recipes are calibrated on it when no other text is given. What it says is of no importance (a model
of this size invents freely); its range is: news, encyclopaedia, stories, dialogue, letters, lists,
numbers, code. A seed fixes it on one machine; the committed file is what recipes use.
"""

import sys
from itertools import zip_longest
from pathlib import Path

import tqlab

OUT = Path(__file__).resolve().parents[1] / "tqlab" / "texts" / "calibration.txt"
TOKENS, BATCH = 400, 8
KINDS = {
    "Write a detailed newspaper report about {}.": (
        "a storm that flooded a harbour town",
        "a close election for mayor",
        "a football final decided by penalties",
        "the trial of a banker accused of fraud",
        "talks between two governments over fishing rights",
        "a factory closing after eighty years",
        "a new vaccine tested in three countries",
        "rising prices of bread and fuel",
    ),
    "Write a long encyclopedia article about {}.": (
        "the history of the printing press",
        "the river Danube",
        "the battle of a medieval siege",
        "the life of a composer",
        "volcanoes and how they erupt",
        "the migration of birds",
        "a warship of the First World War",
        "the planet Mars",
    ),
    "Write a story, with dialogue, about {}.": (
        "two sisters who find a locked room",
        "a sailor who comes home after ten years",
        "a detective and a missing painting",
        "a boy who repairs old radios",
    ),
    "Explain step by step, with reasons, {}.": (
        "how to bake sourdough bread",
        "how a bill becomes a law",
        "how photosynthesis works",
        "how to plan a monthly budget, with figures",
    ),
    "Write {}.": (
        "a letter to a landlord about a leaking roof, and the landlord's reply",
        "an interview with a retired astronaut",
        "a Python program that sorts a list of words, and explain every line",
        "a review of a novel, with quotations from it",
    ),
}


def prompts() -> list[list[dict]]:
    """One user's message for every subject; the kinds take turns, so that any stretch has all."""
    kinds = [[kind.format(s) for s in subjects] for kind, subjects in KINDS.items()]
    texts = [text for turn in zip_longest(*kinds) for text in turn if text]
    return [[{"role": "user", "content": text}] for text in texts]


def main(out: Path) -> None:
    model, asked, answers = tqlab.load_model("smollm2", device="cpu"), prompts(), []
    for first in range(0, len(asked), BATCH):
        some = tqlab.generate(
            model,
            asked[first : first + BATCH],
            "f16",
            "f16",
            TOKENS,
            temperature=0.8,
            top_p=0.95,
            seed=first,
        )
        answers += [answer.text.strip() for answer in some]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n\n".join(answers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
