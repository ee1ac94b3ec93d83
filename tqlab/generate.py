"""Text from a model through a packed KV cache: greedy or sampled, one prompt or several at once."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import chat
from .recipes import Side, side

Messages = list[dict]
_CHANNEL = "<|channel>"  # opens a thought in a Gemma 4 answer


@dataclass(frozen=True)
class Generation:
    """What one prompt led to.

    Units: tokens/s (all prompts of a batch together), bytes of the cache.
    Fields: text (without the prompt and control tokens); tokens (a stop token included); finish
    ("stop", "length" or "interrupted"); n_prompt (tokens of the prompt).
    """

    text: str
    tokens: list[int]
    prefill_tok_s: float
    decode_tok_s: float
    cache_nbytes: int
    finish: str = "length"
    n_prompt: int = 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: temperature, then top_k, then top_p; 0 takes the likeliest.

    Raises: ValueError naming a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be 1 or more, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")


def generate(
    model,
    prompt: str | Messages | list,
    k: Side = "q8_0",
    v: Side = "turbo4",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stream: bool = False,
    thinking: bool = False,
) -> Generation | list[Generation] | Iterator[str]:
    """Continue a prompt, or answer chat messages ([{"role": ..., "content": ...}, ...]).

    `k`, `v`: a format, or a recipe (or its name) as both. A list of prompts gives a list: they run
    as one batch, and row i draws with `seed` + i. With `stream` the text comes in pieces as it is
    made. Ctrl-C ends early with what there is.
    Control tokens written in a prompt are plain text.
    Raises: ValueError, before any work, for an unknown format, an empty prompt, a value out of
    range, or more tokens than the model's context.
    """
    prompts, many = _as_list(prompt)
    if stream and many:
        raise ValueError("stream=True takes one prompt, not a list of them")
    sampling = Sampling(temperature, top_k, top_p, seed)
    run = Run(model, prompts, k, v, max_new_tokens, sampling, thinking)
    if stream:
        return run.pieces()
    run.finish()
    return run.results() if many else run.results()[0]


def _as_list(prompt) -> tuple[list, bool]:
    """The prompts, and whether the caller gave a list of them."""
    if isinstance(prompt, str):
        return [prompt], False
    if not prompt:
        raise ValueError("the prompt is empty")
    return ([prompt], False) if isinstance(prompt[0], dict) else (list(prompt), True)


class Run:
    """Generation step by step; what is there so far can be read at any time.

    Fields: rows (token ids made, a list for each prompt); finish_reasons.
    """

    def __init__(self, model, prompts, k, v, max_new_tokens, sampling: Sampling, thinking=False):
        k, v = side(k), side(v)  # unknown names are refused before any work
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
        self.model, self.sampling, self.limit = model, sampling, max_new_tokens
        self._ids = [_encode(model.tokenizer, p, thinking) for p in prompts]
        self._chat = [not isinstance(p, str) for p in prompts]
        longest = max(map(len, self._ids))
        self._check_context(longest)
        pads = [longest - len(ids) for ids in self._ids]
        self._cache = model.new_cache(k, v, longest + max_new_tokens, len(prompts), pads=pads)
        self.rows: list[list[int]] = [[] for _ in prompts]
        self.finish_reasons: list[str | None] = [None] * len(prompts)
        self._prefill_s = self._decode_s = 0.0
        self._decoded = 0

    def finish(self) -> None:
        """Run to the end."""
        for _ in self.steps():
            pass

    def pieces(self) -> Iterator[str]:
        """The first prompt's text as it is made; a thought is held back, and dropped at its end."""
        detokenizer, raw, shown = self.model.tokenizer.stream(), "", ""
        for token in self.steps():
            raw += detokenizer.push(token)
            text = self._visible(0, raw).partition(_CHANNEL)[0] if self._chat[0] else raw
            if len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        if rest := self._visible(0, raw + detokenizer.flush())[len(shown) :]:
            yield rest

    def steps(self) -> Iterator[int]:
        """Make tokens until every row ended; yields the first row's. Ctrl-C ends all rows."""
        try:
            yield from self._steps()
        except KeyboardInterrupt:
            self.finish_reasons = [reason or "interrupted" for reason in self.finish_reasons]

    def _steps(self) -> Iterator[int]:
        generators = self._generators()
        feed, start = self._padded(), time.perf_counter()
        for step in range(self.limit):
            logits = self.model(feed, self._cache, last_only=True)[:, -1]
            chosen = choose(logits, self.sampling, generators)
            alive = self.finish_reasons.count(None)
            first_alive = self.finish_reasons[0] is None
            self._take(chosen, step)
            start = self._clock(start, step, alive)
            if first_alive:
                yield chosen[0]
            if None not in self.finish_reasons:
                return
            feed = torch.tensor(chosen)[:, None]

    def _take(self, chosen: list[int], step: int) -> None:
        """Append a token to every row that has not ended."""
        for i, token in enumerate(chosen):
            if self.finish_reasons[i] is not None:
                continue
            self.rows[i].append(token)
            if token in self.model.tokenizer.stop_ids:
                self.finish_reasons[i] = "stop"
            elif step + 1 == self.limit:
                self.finish_reasons[i] = "length"

    def _clock(self, start: float, step: int, alive: int) -> float:
        now = time.perf_counter()
        if step == 0:
            self._prefill_s = now - start
        else:
            self._decode_s += now - start
            self._decoded += alive
        return now

    def results(self) -> list[Generation]:
        """One Generation a prompt."""
        prompt_tokens = sum(map(len, self._ids))
        return [
            Generation(
                text=self._text(i),
                tokens=list(row),
                prefill_tok_s=prompt_tokens / self._prefill_s if self._prefill_s else 0.0,
                decode_tok_s=self._decoded / self._decode_s if self._decode_s else 0.0,
                cache_nbytes=self._cache.nbytes,
                finish=self.finish_reasons[i] or "interrupted",
                n_prompt=len(self._ids[i]),
            )
            for i, row in enumerate(self.rows)
        ]

    def _text(self, i: int) -> str:
        detokenizer = self.model.tokenizer.stream()
        raw = "".join([detokenizer.push(token) for token in self.rows[i]])
        return self._visible(i, raw + detokenizer.flush())

    def _visible(self, i: int, text: str) -> str:
        """An answer without its thoughts; the continuation of a plain prompt as it is."""
        return chat.strip_channels(text) if self._chat[i] else text

    def _generators(self) -> list[torch.Generator]:
        """One a row, on the CPU, so that a row draws the same whatever runs beside it."""
        seed = self.sampling.seed
        seed = torch.seed() % (1 << 62) if seed is None else seed
        return [torch.Generator().manual_seed(seed + i) for i in range(len(self._ids))]

    def _padded(self) -> Tensor:
        longest = max(map(len, self._ids))
        return torch.tensor([[ids[0]] * (longest - len(ids)) + ids for ids in self._ids])

    def _check_context(self, longest: int) -> None:
        context = self.model.config.context_length
        if longest + self.limit > context:
            raise ValueError(
                f"a prompt of {longest} tokens and {self.limit} new ones exceed the context of "
                f"{self.model.config.name}, {context}: shorten the prompt or max_new_tokens"
            )


def _encode(tokenizer, prompt: str | Messages, thinking: bool) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt) if prompt else []
    elif not isinstance(prompt, list):
        raise ValueError(f"a prompt is a text or a list of messages, not {prompt!r}")
    else:
        ids = tokenizer.chat_ids(prompt, thinking=thinking)
    if not ids:
        raise ValueError("the prompt is empty")
    return ids


# ---- the next token


def choose(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> list[int]:
    """The next token of every row.

    Shapes: logits float32 [B, vocab] -> B ids. Ties go to the lowest id when greedy.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    p = probabilities(logits.cpu(), sampling)
    return [
        int(torch.multinomial(row, 1, generator=g)) for row, g in zip(p, generators, strict=True)
    ]


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What is drawn from: float32 [..., vocab] -> float32, each row sums to 1.

    temperature divides the logits; top_k keeps the k likeliest; top_p then keeps the fewest of the
    likeliest whose sum reaches top_p, at least one.
    """
    logits = logits.float() / sampling.temperature
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        values[..., sampling.top_k :] = -torch.inf
    p = values.softmax(-1)
    if sampling.top_p is not None:
        before = p.cumsum(-1) - p
        p = torch.where(before < sampling.top_p, p, 0.0)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter_(-1, order, p)
