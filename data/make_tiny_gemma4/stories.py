"""What the stories are about: plots and word lists, requests, and which sentences are kept.

A story is opening, sampled sentences, turn, sampled sentences, ending. The plot keeps it on its
topic and lets it end; the word lists make stories differ. One seeded generator makes every choice.
"""

import random
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

_FILE = tomllib.loads((Path(__file__).parent / "plots.toml").read_text())
HEROES, WORDS, FRAMES, PLOTS = (_FILE[key] for key in ("heroes", "words", "frames", "plot"))
PRONOUN = {"boy": "he", "king": "he", "fisherman": "he", "girl": "she", "queen": "she"}
TELLER = "Write a short story for small children. Use simple words and short sentences."
_OWN = {"he": ("his", "him", "his"), "she": ("her", "her", "hers")}


@dataclass(frozen=True)
class Seed:
    """One story to be: its three fixed parts, what a user would ask, and its names."""

    parts: tuple[str, str, str]
    request: str
    names: tuple[str, str]
    he: str


def seed(source: random.Random) -> Seed:
    """Draw one. The same generator state gives the same seed on every machine."""
    plot, words = source.choice(PLOTS), _words(source)

    def text(templates: list[str] | tuple[str, ...]) -> str:
        said = source.choice(templates).format(**words)
        return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", said)

    words["event"] = text(plot["event"])
    parts = text(FRAMES["openings"]), text(plot["turn"]), text(plot["ending"])
    return Seed(parts, text(FRAMES["requests"]), (words["name"], words["name2"]), words["he"])


def _words(source: random.Random) -> dict[str, str]:
    pick = source.choice
    kind = pick(HEROES["animals" if source.random() < 0.65 else "people"])
    he = PRONOUN.get(kind) or pick(("he", "she"))
    name, name2 = source.sample(HEROES[he], 2)
    words = dict(zip(("his", "him", "own"), _OWN[he], strict=True))
    words |= {"he": he, "kind": kind, "name": name, "name2": name2}
    words["animal2"] = pick([animal for animal in HEROES["animals"] if animal != kind])
    words |= {name: pick(choices) for name, choices in WORDS.items()}
    words["adjective2"] = pick(WORDS["adjective"])
    return words | {word.capitalize(): said.capitalize() for word, said in words.items()}


_SENTENCES = re.compile(r"\s*[^.!?]+[.!?]+[\"']?(?=\s|$)")
_MEDIAL = re.compile(r"(?<=[a-z,] )[A-Z]\w+")
_ODD = re.compile(
    r"[^ A-Za-z,.!?'\"-]|\b(?:story|ending|sentence|reader|kill|die|dead|blood)", re.I
)
_FAMILY = re.compile(
    r"mother|father|mom|dad|sister|brother|man|woman|king|queen|boy|girl", re.IGNORECASE
)


def segment(text: str, s: Seed, story: str, n: int) -> str | None:
    """The first `n` sentences of a sampled text; None when there are fewer, or one is unfit.

    Unfit: odd characters or words, a name that is not the story's, the other pronoun where nobody
    else was named, quotes left open, four words in a row that the story has already.
    """
    found = _SENTENCES.findall(text)[:n]
    if len(found) < n or _ODD.search(said := "".join(found).strip()):
        return None
    other = {"he": r"\b(she|her)\b", "she": r"\b(he|his|him)\b"}[s.he]
    strangers = set(_MEDIAL.findall(said)) - {*s.names, "I"}
    wrong = re.search(other, said, re.I) and not _FAMILY.search(story + said)
    if strangers or wrong or said.count('"') % 2 or _repeats(said, story):
        return None
    return said


def _repeats(said: str, story: str) -> bool:
    words = re.findall(r"\w+", f"{story} {said}".lower())
    new = len(re.findall(r"\w+", said))
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    tail = grams[max(0, len(grams) - new) :]
    return len(set(grams)) < len(grams) and any(grams.count(gram) > 1 for gram in tail)
