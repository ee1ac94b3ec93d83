"""Samples the middles of stories from SmolLM2-135M-Instruct, thousands at a time.

A llama decoder in plain torch with one static cache. Prompts are padded on the left; on a GPU one
CUDA graph replays the step, on a CPU (rehearsals) it runs eagerly.
"""

import json
import math
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from stories import TELLER, Seed, seed, segment
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from tqlab.gguf_file import GGUFFile
from tqlab.models.base import rope_interleaved
from tqlab.tokenizer import Tokenizer

N_LAYERS, N_HEADS, N_KV, DIM, BASE = 30, 9, 3, 64, 1e5
STOP = 2  # <|im_end|>
LENGTH = 224  # tokens of the cache: chat, story so far, and STEPS more
STEPS = 40  # sampled tokens a segment
TEMPERATURE, MIN_P, PENALTY = 0.6, 0.08, 1.15
PART = 256  # rows of prefill at once
_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy the GPU's state


class Teller:
    """SmolLM2's weights, and a cache for `rows` texts."""

    def __init__(self, path: Path, rows: int, device: str):
        self.device, file = device, GGUFFile(path)
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.tokenizer = Tokenizer.from_gguf(file)

        def take(*names):
            parts = [file.dequantize(f"{name}.weight") for name in names]
            return torch.cat(parts).to(device, self.dtype)

        self.embed, self.norm = take("token_embd"), take("output_norm")
        groups = ["attn_norm", "attn_q attn_k attn_v", "attn_output"]
        groups += ["ffn_norm", "ffn_gate ffn_up", "ffn_down"]
        self.layers = [
            [take(*(f"blk.{i}.{name}" for name in group.split())) for group in groups]
            for i in range(N_LAYERS)
        ]
        shape = (N_LAYERS, 2, rows, N_KV, LENGTH, DIM)
        self.cache = torch.zeros(shape, device=device, dtype=self.dtype)
        self.layer = torch.compile(_layer, dynamic=False) if device == "cuda" else _layer

    def step(self, ids: Tensor, pads: Tensor, slot: Tensor) -> Tensor:
        """Logits after one token a row: ids int64 [B], which goes to `slot` int64 [1]."""
        return self._forward(ids[:, None], pads, self.cache, slot, self.layer)

    def prefill(self, ids: Tensor, pads: Tensor, copies: int) -> Tensor:
        """Logits after whole prompts [B, T], whose keys fill `copies` rows of the cache each."""
        slots, logits = torch.arange(ids.shape[1], device=ids.device), []
        for start in range(0, len(ids), PART):
            some = slice(start, start + PART)
            rows = self.cache[:, :, start * copies : (start + PART) * copies]
            cache = rows[:, :, ::copies].clone()
            logits.append(self._forward(ids[some], pads[some], cache, slots, _layer))
            rows.copy_(cache.repeat_interleave(copies, 2))
        return torch.cat(logits).repeat_interleave(copies, 0)

    def _forward(self, ids, pads, cache, slots, layer) -> Tensor:
        x = self.embed[ids]
        positions = (slots - pads[:, None]).clamp(min=0)  # [B, T]
        frequencies = BASE ** -(torch.arange(DIM // 2, device=ids.device) / (DIM // 2))
        angles = positions[:, :, None, None] * frequencies
        keys = torch.arange(LENGTH, device=ids.device)
        mask = (keys <= slots[:, None]) & (keys >= pads[:, None, None])  # [B, T, LENGTH]
        for weights, part in zip(self.layers, cache, strict=True):
            x = layer(x, weights, part, angles.cos(), angles.sin(), mask, slots)
        return linear(rms_norm(x[:, -1], x.shape[-1:], self.norm, 1e-5), self.embed).float()


def _layer(x, weights, cache, cos, sin, mask, slots):
    attn_norm, qkv, out, ffn_norm, gate_up, down = weights
    n = linear(rms_norm(x, x.shape[-1:], attn_norm, 1e-5), qkv).unflatten(-1, (-1, DIM))
    q, k, v = n.split((N_HEADS, N_KV, N_KV), 2)
    q, k = (rope_interleaved(y.float(), cos, sin).to(x.dtype) for y in (q, k))
    cache.index_copy_(3, slots, torch.stack([k, v]).transpose(2, 3))
    q = q.unflatten(2, (N_KV, -1)).permute(0, 2, 3, 1, 4)  # [B, 3, 3, T, D]
    scores = (q.flatten(2, 3) @ cache[0].mT).float().view(*q.shape[:-1], -1) * DIM**-0.5
    weights = scores.masked_fill(~mask[:, None, None], -1e30).softmax(-1).to(x.dtype)
    o = (weights.flatten(2, 3) @ cache[1]).view(q.shape).permute(0, 3, 1, 2, 4).flatten(2)
    x = x + linear(o, out)
    gate, up = linear(rms_norm(x, x.shape[-1:], ffn_norm, 1e-5), gate_up).chunk(2, -1)
    return x + linear(silu(gate) * up, down)


class Segments:
    """Samples STEPS tokens behind each text; its state lives in tensors that a graph can replay."""

    def __init__(self, teller: Teller):
        self.teller, device, rows = teller, teller.device, teller.cache.shape[2]
        self.ids = torch.zeros(rows, STEPS, dtype=torch.int64, device=device)
        self.logp = torch.zeros(rows, STEPS, device=device)
        self.pads = torch.zeros(rows, dtype=torch.int64, device=device)
        self.slot, self.n = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.used = torch.zeros(rows, len(teller.embed), dtype=torch.bool, device=device)
        self.draw = torch.compile(_draw, dynamic=False) if device == "cuda" else _draw
        self.replay = self._captured() if device == "cuda" else self._step

    def _step(self) -> None:
        last = self.ids.gather(1, self.n.expand(len(self.ids), 1))[:, 0]
        logits = self.teller.step(last, self.pads, self.slot)
        self._take(logits, self.n + 1)
        self.slot += 1
        self.n += 1

    def _take(self, logits: Tensor, n: Tensor) -> None:
        ids, logp = self.draw(logits, self.used)
        self.ids.index_copy_(1, n, ids[:, None])
        self.logp.index_copy_(1, n, logp[:, None])
        self.used.scatter_(1, ids[:, None], True)

    def _captured(self):
        with torch.inference_mode():
            for _ in range(3):
                self._step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
        return graph.replay

    @torch.inference_mode()
    def write(self, prompts: list[list[int]], copies: int) -> tuple[Tensor, Tensor]:
        """Ids and their log-probabilities, [len(prompts) * copies, STEPS], on the CPU."""
        longest, n = (
            min(-(-max(map(len, prompts)) // 32) * 32, LENGTH - STEPS),
            len(prompts) * copies,
        )
        prompts = [p[-longest:] for p in prompts]
        prompts += prompts[-1:] * (len(self.ids) // copies - len(prompts))
        rows = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        pads = torch.tensor([longest - len(p) for p in prompts], device=self.teller.device)
        self.pads.copy_(pads.repeat_interleave(copies))
        self.used.zero_()
        self.slot.fill_(longest)
        self.n.zero_()
        logits = self.teller.prefill(rows.to(self.teller.device), pads, copies)
        self._take(logits, self.n)
        for _ in range(STEPS - 1):
            self.replay()
        return self.ids[:n].cpu(), self.logp[:n].cpu()


def _draw(logits: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and log-probabilities. Tokens used in the segment are less likely (PENALTY)."""
    logits = torch.where(used, torch.where(logits > 0, logits / PENALTY, logits * PENALTY), logits)
    logp = logits.log_softmax(-1)
    unlikely = logp < logp.amax(-1, keepdim=True) + math.log(MIN_P)
    noise = -torch.log(-torch.log(torch.rand_like(logp).clamp(1e-10, 1 - 1e-7)))
    ids = ((logp / TEMPERATURE).masked_fill(unlikely, -torch.inf) + noise).argmax(-1)
    return ids, logp.gather(-1, ids[:, None])[:, 0]


_judge: Tokenizer | None = None  # in the processes that judge segments


def _start_judging(path: Path) -> None:
    global _judge
    _judge = Tokenizer.from_gguf(GGUFFile(path))


def _extended(text: str, s: Seed, n: int, rows: list[list[int]], scores: list[float]) -> str:
    """`text` with the likeliest fit segment behind it; alone when no candidate is fit."""
    found = []
    for ids, score in zip(rows, scores, strict=True):
        said = segment(_judge.decode(ids[: ids.index(STOP)] if STOP in ids else ids), s, text, n)
        found += [(score, said)] if said else []
    return f"{text} {max(found)[1]}" if found else text


def extend(segments: Segments, made: list, copies: int, source: random.Random, judges) -> list[str]:
    """Every text of `made`, (text, seed) pairs, with one to three sampled sentences behind it."""
    tokenizer = segments.teller.tokenizer
    chat = tokenizer.chat([{"role": "user", "content": TELLER}])
    prompts = [tokenizer.encode(chat + text, special=True) for text, _ in made]
    ids, logp = segments.write(prompts, copies)
    before = (ids == STOP).cumsum(1) == 0
    scores = (logp * before).sum(1) / before.sum(1).clamp(min=1)
    texts, seeds = zip(*made, strict=True)
    counts = [source.choice((1, 2, 2, 3)) for _ in made]
    groups = ids.unflatten(0, (-1, copies)).tolist(), scores.unflatten(0, (-1, copies)).tolist()
    return list(judges.map(_extended, texts, seeds, counts, *groups, chunksize=32))


def stories(segments: Segments, n: int, copies: int, source: random.Random, judges) -> list:
    """`n` stories with their seeds, less those into which no sampled sentence found its way."""
    made = [(s.parts[0], s) for s in (seed(source) for _ in range(n))]
    for part in (1, 2):
        longer = extend(segments, made, copies, source, judges)
        made = [(f"{text} {s.parts[part]}", s) for text, (_, s) in zip(longer, made, strict=True)]
    return [(text, s) for text, s in made if text != " ".join(s.parts)]


def sample(path: Path, out: Path, rows: int, copies: int, seconds: float, start: int) -> None:
    """Write {"story", "request"} lines to `out` until the time is over."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(start)
    source, kept, characters = random.Random(start), 0, 0
    with ProcessPoolExecutor(8, _SPAWN, _start_judging, (path,)) as judges, out.open("w") as file:
        segments, began = Segments(Teller(path, rows, device)), time.time()
        while time.time() - began < seconds:
            for story, s in stories(segments, rows // copies, copies, source, judges):
                file.write(json.dumps({"story": story, "request": s.request}) + "\n")
                kept, characters = kept + 1, characters + len(story)
            rate = characters / (time.time() - began)
            print(f"{kept} stories, {characters} characters, {rate:.0f} a second", flush=True)
