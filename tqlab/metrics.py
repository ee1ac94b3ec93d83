"""Perplexity, and KL divergence from a reference cache: llama-perplexity's protocol to the letter.

The text is cut into consecutive chunks of `ctx` tokens, BOS takes the first place where the
vocabulary asks for it, and positions ctx/2 .. ctx-2 score the token that follows. Every chunk goes
through the quantised cache: a token's own K and V are read back from it too (spec api, Python).
"""

import hashlib
import json
import math
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import data, formats
from .chunks import cut, model_sha256, tokens_sha256
from .models import Decoder
from .recipes import Side, pair_label, side

HEAD_ROWS = 128  # rows of logits computed at once: [128, vocab] float32
CPU_ROWS = 8  # of these, rows compared at once on a CPU: they and their copies stay in its cache


@dataclass(frozen=True)
class Perplexity:
    """Result of `perplexity`; KL fields are None without a reference.

    Units: nll and kld in nats a token; ppl = exp(nll); dp_rms and same_top are fractions; cache
    sizes are measured bytes; k_bits and v_bits are stored bits per value, padding included;
    shared_nbytes are a recipe's matrices, which all caches of the model share.
    """

    ppl: float
    ppl_se: float
    nll: float
    n_tokens: int
    kld_mean: float | None
    kld_se: float | None
    kld_p99: float | None
    kld_max: float | None
    same_top: float | None
    dp_rms: float | None
    seconds: float
    cache_nbytes: int
    k_bits: float
    v_bits: float
    shared_nbytes: int = 0


def perplexity(
    model: Decoder,
    tokens,
    ctx: int = 512,
    chunks: int | None = None,
    k: Side = "f16",
    v: Side = "f16",
    reference: tuple[str, str] | None = None,
    on_chunk: Callable[[str], None] | None = None,
    offset: int = 0,
    original: Decoder | None = None,
) -> Perplexity:
    """Perplexity of `tokens` through a k/v cache, and its KL divergence from a reference cache.

    Shapes: tokens: ints, list or 1-D tensor, of the whole text (BOS included where asked)
    `k` and `v` name one format, or one for each layer, or are a recipe or its name; `chunks` limits
    the number of chunks (None: all); `on_chunk` hears about progress; `offset` is added to all
    positions, the reference's too; `original`: the model that the reference cache belongs to, where
    it is not `model` (other weights of the same vocabulary).
    Error: standard errors over tokens; ppl_se by the delta method.
    Raises: ValueError for a text shorter than a chunk, a context the model lacks, unknown formats,
    a text on which a recipe was calibrated, an original of another vocabulary.
    """
    pieces, k, v = cut(tokens, ctx, chunks, model), side(k), side(v)
    cache = model.new_cache(k, v, max_tokens=ctx, start=offset)
    cache.refuse_text(pieces)
    theirs = _same_vocabulary(model, original or model)
    store = None if reference is None else ReferenceLog(theirs, pieces, reference, offset)
    if store is not None and (theirs is not model or (k, v) != store.pair):
        store.complete(on_chunk)
    start, scores = time.perf_counter(), []
    for i, piece in enumerate(pieces):
        if on_chunk:
            on_chunk(f"{pair_label(k, v)}  chunk {i + 1}/{len(pieces)}")
        scores.append(_score(model, piece, cache, store, i))
    return _summary(scores, time.perf_counter() - start, cache)


def _same_vocabulary(model: Decoder, original: Decoder) -> Decoder:
    if original is not model and original.tokenizer.tokens != model.tokenizer.tokens:
        raise ValueError(
            f"{model.path.name} and {original.path.name} have different vocabularies: the KL "
            f"divergence needs two models of one"
        )
    return original


@dataclass(frozen=True)
class _Scores:
    """Per-token results of one chunk, float32 [ctx/2 - 1]; KL parts None without a reference."""

    nll: Tensor
    kld: Tensor | None = None
    same_top: Tensor | None = None
    dp: Tensor | None = None


def _scored_rows(model: Decoder, piece: Tensor, cache) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Run a chunk through the cache; yield (rows, log-softmax, targets) a few at a time."""
    cache.reset()
    first = len(piece) // 2
    x = model.run(piece[None], cache)[0, first:-1]
    targets = piece[first + 1 :].to(x.device)
    step = CPU_ROWS if x.device.type == "cpu" else HEAD_ROWS
    for start in range(0, len(x), HEAD_ROWS):
        logits = model.head(x[start : start + HEAD_ROWS])
        for i in range(0, len(logits), step):
            part = logits[i : i + step]
            rows = slice(start + i, start + i + len(part))
            yield rows, part.log_softmax(-1), targets[rows]


@torch.inference_mode()
def _score(model: Decoder, piece: Tensor, cache, store: "ReferenceLog | None", i: int) -> _Scores:
    if store is None:
        rows = _scored_rows(model, piece, cache)
        return _Scores(torch.cat([_nll(log_q, targets) for _, log_q, targets in rows]).cpu())
    stored = store.load(i) if store.has(i) else None  # None: this very pair is the reference
    written, parts = [], []
    for rows, log_q, targets in _scored_rows(model, piece, cache):
        part = _encode(log_q, targets) if stored is None else _slice(stored, rows, log_q.device)
        written.append(part)
        parts.append(_compare(log_q, targets, part))
    if stored is None:
        store.save(i, written)
    return _Scores(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _slice(stored: dict[str, np.ndarray], rows: slice, device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(a[rows]).to(device) for name, a in stored.items()}


def _nll(log_q: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the targets: [rows]."""
    return -log_q.gather(1, targets[:, None])[:, 0]


def _compare(log_q: Tensor, targets: Tensor, part: dict[str, Tensor]):
    """(nll, kld, same_top, dp) of some rows against the reference's."""
    nll = _nll(log_q, targets)
    log_p = _decode(part["codes"], part["high"], part["step"])
    p = log_p.exp()
    mass = p.sum(-1)  # 1 up to the 16-bit rounding, divided out so that KL stays above zero
    kld = (p * log_p.sub_(log_q)).sum(-1) / mass - mass.log()
    same = log_q.argmax(-1) == part["top"]
    return nll, kld.clamp_(min=0), same.float(), (-nll).exp() - (-part["nll"]).exp()


def _encode(log_q: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What a reference row keeps: log-probabilities in 16 bits, linear over the row's own range."""
    high, low = log_q.amax(-1), log_q.amin(-1)
    step = ((high - low) / 65535).clamp(min=1e-12)
    codes = ((high[:, None] - log_q) / step[:, None]).round() - 32768
    return {
        "codes": codes.to(torch.int16),
        "high": high,
        "step": step,
        "nll": _nll(log_q, targets),
        "top": log_q.argmax(-1),
    }


def _decode(codes: Tensor, high: Tensor, step: Tensor) -> Tensor:
    return high[:, None] - (codes.float() + 32768) * step[:, None]


class ReferenceLog:
    """Log-probabilities of the reference cache on disk, a file a chunk: RAM does not grow.

    Lives under data/cache/reference/<key>/; the key hashes everything the numbers depend on, so an
    interrupted or repeated run finds its chunks again.
    """

    def __init__(self, model: Decoder, pieces: Tensor, pair: tuple[str, str], offset: int = 0):
        self.model, self.pieces, self.pair, self.offset = model, pieces, tuple(pair), offset
        for name in self.pair:
            formats.get(name)
        identity = [
            model_sha256(model),
            tokens_sha256(pieces),
            list(pieces.shape),
            *self.pair,
            model.weights_mode,
            model.device.type,
            torch.__version__,
            *([offset] if offset else []),
        ]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self.folder = data.data_dir() / "cache" / "reference" / key

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:05d}.npz"

    def has(self, i: int) -> bool:
        """Whether chunk `i` is on disk."""
        return self._path(i).is_file()

    @torch.inference_mode()
    def complete(self, on_chunk=None) -> None:
        """Compute whatever is missing."""
        missing = [i for i in range(len(self.pieces)) if not self.has(i)]
        if not missing:
            return
        ctx = self.pieces.shape[1]
        cache = self.model.new_cache(*self.pair, max_tokens=ctx, start=self.offset)
        for i in missing:
            if on_chunk:
                on_chunk(f"reference {'/'.join(self.pair)}  chunk {i + 1}/{len(self.pieces)}")
            rows = _scored_rows(self.model, self.pieces[i], cache)
            self.save(i, [_encode(log_q, targets) for _, log_q, targets in rows])

    def save(self, i: int, parts: list[dict[str, Tensor]]) -> None:
        """Write chunk `i` down, atomically."""
        columns = {name: torch.cat([p[name] for p in parts]).cpu().numpy() for name in parts[0]}
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
            try:
                np.savez(file, **columns)
            except BaseException:
                Path(file.name).unlink()
                raise
        Path(file.name).replace(self._path(i))

    def load(self, i: int) -> dict[str, np.ndarray]:
        """Chunk `i`: codes int16 [n, vocab]; high, step, nll float32 [n]; top int64 [n]."""
        try:
            with np.load(self._path(i), allow_pickle=False) as file:
                return dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{self._path(i)}: damaged; delete it") from None


def _summary(scores: list[_Scores], seconds: float, cache) -> Perplexity:
    nll = torch.cat([s.nll for s in scores]).double()
    mean, se = _mean_se(nll)
    k_bits, v_bits = cache.stored_bits()
    kl = _kl_fields(scores) if scores[0].kld is not None else dict.fromkeys(_KL_FIELDS)
    ppl = math.exp(mean) if mean < 700 else math.inf
    return Perplexity(
        ppl=ppl,
        ppl_se=ppl * se,
        nll=mean,
        n_tokens=len(nll),
        seconds=seconds,
        cache_nbytes=cache.nbytes,
        k_bits=k_bits,
        v_bits=v_bits,
        shared_nbytes=cache.shared_nbytes,
        **kl,
    )


_KL_FIELDS = ("kld_mean", "kld_se", "kld_p99", "kld_max", "same_top", "dp_rms")


def _kl_fields(scores: list[_Scores]) -> dict[str, float]:
    kld = torch.cat([s.kld for s in scores]).double()
    dp = torch.cat([s.dp for s in scores]).double()
    mean, se = _mean_se(kld)
    return {
        "kld_mean": mean,
        "kld_se": se,
        "kld_p99": float(kld.quantile(0.99)),
        "kld_max": float(kld.max()),
        "same_top": float(torch.cat([s.same_top for s in scores]).mean()),
        "dp_rms": float(dp.square().mean().sqrt()),
    }


def _mean_se(x: Tensor) -> tuple[float, float]:
    """Mean and its standard error over tokens, as llama-perplexity computes it."""
    variance = float(x.var(correction=0)) if len(x) > 1 else 0.0
    return float(x.mean()), math.sqrt(variance / max(1, len(x) - 1))
