"""Needle retrieval: lines planted in a long text and asked for at its end, through any cache.

A recent window flatters local text; this asks for what lies far behind. Answers are scored with the
right digits fed back, so that `recalled` is what greedy decoding would say, digit for digit.
"""

import copy
import random
from dataclasses import dataclass

import torch

from ..calibrate import parts
from ..chunks import cut
from ..kvcache import KVCache
from ..progress import Progress
from ..recipes import Side, label, pair_label, side

QUESTION, DIGITS = "The secret code of the {} is", 5
WORDS = (
    "anchor basket candle dolphin engine feather garden hammer island jacket kettle ladder "
    "mirror needle orchard piano quarry ribbon saddle tunnel umbrella violin window zebra"
)


@dataclass(frozen=True)
class Needle:
    """One question about one planted line.

    Fields: k, v (formats or a recipe's name), recipe (its parts); ctx (tokens, question included),
    chunk (which piece of the text) and depth (share of it before the line); recalled (every digit
    is the likeliest token).
    Units: logp in nats a digit, a guess has -2.303; bits are measured at this context.
    """

    model: str
    k: str
    v: str
    recipe: str | None
    ctx: int
    chunk: int
    depth: float
    recalled: bool
    logp: float
    k_bits: float
    v_bits: float


@dataclass(frozen=True)
class Haystack:
    """A text with planted lines, and what is asked behind it.

    Fields: ids (of the text), depths; questions and answers (ids, one list a line).
    """

    ids: list[int]
    depths: list[float]
    questions: list[list[int]]
    answers: list[list[int]]


def haystack(tokenizer, filler: list[int], n: int, seed: int = 0) -> Haystack:
    """Plant `n` lines, evenly spread, in as much of `filler` as leaves room for a question.

    Words and digits are drawn with `seed`.
    Raises: ValueError for more lines than words, or than fit.
    """
    known, draw = WORDS.split(), random.Random(seed)
    if not 1 <= n <= len(known):
        raise ValueError(f"{n} needles: 1 to {len(known)} are possible")
    words = draw.sample(known, n)
    codes = ["".join(draw.choices("0123456789", k=DIGITS)) for _ in words]
    said = [f"\n{QUESTION.format(w)} {code}" for w, code in zip(words, codes, strict=True)]
    lines = [tokenizer.encode(f"{text}.\n", add_bos=False) for text in said]
    asked = [_asked(tokenizer, text) for text in said]
    room = len(filler) - sum(map(len, lines)) - max(len(q) + len(a) for q, a in asked)
    if room < n:
        raise ValueError(f"{n} needles do not fit {len(filler)} tokens: fewer, or a longer ctx")
    depths = [(i + 0.5) / n for i in range(n)]
    cuts = [0, *(round(depth * room) for depth in depths), room]
    ids = list(filler[: cuts[1]])
    for line, start, stop in zip(lines, cuts[1:], cuts[2:], strict=False):
        ids += line + filler[start:stop]
    return Haystack(ids, depths, *map(list, zip(*asked, strict=True)))


def _asked(tokenizer, text: str) -> tuple[list[int], list[int]]:
    """The ids before a text's digits, a space of its own included, and those of its digits."""
    ids = tokenizer.encode(text, add_bos=False)
    n = sum(tokenizer.decode([token]).strip().isdigit() for token in ids)
    return ids[:-n], ids[-n:]


def needles(model, tokens, pairs, ctx: int = 2048, n: int = 12, chunks: int = 1) -> list[Needle]:
    """Ask every (k, v) pair for the same lines, `n` planted in each of `chunks` pieces of a text.

    Shapes: tokens: ints, list or 1-D tensor, of the whole text
    A pair is two sides of a cache: formats, or one recipe (or its name) twice.
    A piece is read once a pair; each question continues a copy of that cache.
    Raises: ValueError for what `perplexity` refuses (a text that a recipe was calibrated on, too),
    and lines that do not fit.
    """
    pairs = [tuple(map(side, pair)) for pair in pairs]
    pieces = cut(tokens, ctx, chunks, model).tolist()
    texts = [haystack(model.tokenizer, piece, n, seed) for seed, piece in enumerate(pieces)]
    for pair in pairs:  # refused before any work starts
        planted = [token for text in texts for token in text.ids]
        model.new_cache(*pair, max_tokens=1).refuse_text(planted)
    with Progress("needles", len(pairs) * len(texts)) as progress:
        return [row for pair in pairs for row in _rows(model, texts, pair, ctx, progress.step)]


def _rows(model, texts: list[Haystack], pair: tuple[Side, Side], ctx: int, step) -> list[Needle]:
    names = model.config.name, *map(label, pair), parts(model, *pair)
    cache, rows = model.new_cache(*pair, ctx), []
    for chunk, text in enumerate(texts):
        for depth, found in zip(text.depths, answers(model, text, cache), strict=True):
            rows.append(Needle(*names, ctx, chunk, depth, *found, *cache.stored_bits()))
        step(f"{pair_label(*pair)} {ctx}")
    return rows


def answers(model, text: Haystack, cache: KVCache) -> list[tuple[bool, float]]:
    """(recalled, logp) of every question, each behind the same one reading of the text."""
    cache.reset()
    model.run(torch.tensor([text.ids]), cache)
    asked = zip(text.questions, text.answers, strict=True)
    return [_score(model, *ids, copy.deepcopy(cache)) for ids in asked]


@torch.inference_mode()
def _score(model, question: list[int], answer: list[int], cache: KVCache) -> tuple[bool, float]:
    ids = torch.tensor([question + answer], device=model.device)
    x = model.run(ids[:, :-1], cache)[0, -len(answer) :]
    log_p, right = model.head(x).log_softmax(-1), ids[0, -len(answer) :]
    recalled = bool((log_p.argmax(-1) == right).all())
    return recalled, float(log_p.gather(1, right[:, None]).mean())
