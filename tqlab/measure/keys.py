"""What keys look like: offset, spectrum against the queries' spectrum, first tokens, recency.

Statistics are those of a calibration: before rope, the first tokens left out (`tqlab.calibration`).
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .. import attention
from ..calibrate import calibrate
from ..calibration import Calibration, LayerStats
from ..kvcache import View
from ..recipes import SINKS, WINDOW
from ..transforms import balance, mean_position, mean_product, regular

Row = dict


def key_rows(model, calibration: Calibration) -> list[Row]:
    """How much of the keys is constant, and what a transform should gain, layer by layer.

    Row: layer; before, behind (share of E |k|^2 in the mean of the keys before rope, and in what
    is the same at all positions behind it); centre, bal, x (squared logit error without the
    transform over that with it, by theory: the error of a quantiser is the same in all directions
    and grows with the vector's length). Source: spec beyond 4.
    """
    stored = [(i, stats) for i, stats in enumerate(calibration.layers) if stats is not None]
    return [{"layer": i} | _layer_row(stats, model.turn(i, 1)) for i, stats in stored]


def _layer_row(stats: LayerStats, turn) -> Row:
    mean = stats.mean[:, None].double()
    before, behind = (_trace(x.mT @ x) for x in (mean, mean_position(mean, turn)))
    spread, queries = _trace(stats.cov.double()), _trace(stats.second.double())
    plain = ((spread + before) * queries).sum()
    turned = LayerStats(mean, *(mean_product(x, turn) for x in regular(stats)))
    errors = {
        "centre": (spread + before - behind) * queries,
        "bal": logit_error(stats, stats),
        "x": logit_error(turned, turned),
    }
    shares = {"before": before, "behind": behind}
    row = {key: float((x / (spread + before)).mean()) for key, x in shares.items()}
    return row | {key: float(plain / x.sum()) for key, x in errors.items()}


def logit_error(known: LayerStats, met: LayerStats) -> Tensor:
    """Expected squared logit error under `met` of keys balanced for `known`, up to a constant.

    Shapes: -> float64 [H_kv]
    """
    forward, inverse = balance(*regular(known))
    keys = _trace(forward @ met.cov.double() @ forward.mT)
    return keys * _trace(inverse.mT @ met.second.double() @ inverse)


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


def spectrum_rows(stats: LayerStats, head: int = 0) -> list[Row]:
    """Variance of keys and energy of queries along one head's principal directions of the keys.

    Row: when ("as they are" | "balanced"), direction (from the keys' greatest variance down), keys,
    queries (both over their mean).
    """
    cov, second = (x[head] for x in regular(stats))
    forward, inverse = balance(cov, second)
    principal = torch.linalg.eigh(cov)[1]
    bases = {"as they are": (principal.mT, principal), "balanced": (forward, inverse)}
    rows = []
    for when, (to, back) in bases.items():
        keys, queries = (to @ cov @ to.mT).diagonal(), (back.mT @ second @ back).diagonal()
        order = keys.argsort(descending=True)
        both = zip(*((x[order] / x.mean()).tolist() for x in (keys, queries)), strict=True)
        rows += [
            {"when": when, "direction": i, "keys": k, "queries": q} for i, (k, q) in enumerate(both)
        ]
    return rows


def first_token_rows(kv: dict[str, list[Tensor]], n: int = 16) -> list[Row]:
    """Lengths of the first `n` tokens' keys (from their mean) and values, over the usual length.

    Shapes: kv as `capture_kv` gives it: layers of float32 [H_kv, T, D], T > 2 n
    Row: side, layer, position, ratio (rms over heads; usual is the rms over positions from n on).
    """
    rows = []
    for side, layers in kv.items():
        for layer, x in enumerate(layers):
            x = x - x[:, n:].mean(1, keepdim=True) if side == "K" else x
            squares = x.double().square().sum(-1)  # [H_kv, T]
            ratios = (squares / squares[:, n:].mean(1, keepdim=True)).mean(0).sqrt()
            rows += [
                {"side": side, "layer": layer, "position": p, "ratio": ratio}
                for p, ratio in enumerate(ratios[:n].tolist())
            ]
    return rows


# ---- where attention looks


def attention_mass_rows(model, tokens, first: int = SINKS, last: int = WINDOW) -> list[Row]:
    """Shares of attention on the first tokens, the last ones, and all between, layer by layer.

    Shapes: tokens int64 [T] or a list, T at most what goes through the layers at once (512)
    Means over heads and over the queries of the second half. Row: layer; first, recent, between
    (they add up to 1); keys (share of the keys seen that the first and the last tokens are).
    """
    ids = torch.as_tensor(tokens, dtype=torch.int64)[None]
    rows: list[Row] = []

    def see(q, view, scale):
        rows.append({"layer": len(rows)} | _mass(q, view, scale, first, last))

    with _watched(see):
        model.run(ids, model.new_cache("f32", "f32", ids.shape[1]))
    return rows


@contextlib.contextmanager
def _watched(see: Callable[[Tensor, View, float], None]) -> Iterator[None]:
    """Show every layer's queries and keys to `see` while attention goes its way."""
    right = attention._partial

    def watch(q, view, scale, tile):
        see(q, view, scale)
        return right(q, view, scale, tile)

    attention._partial = watch
    try:
        yield
    finally:
        attention._partial = right


def _mass(q: Tensor, view: View, scale: float, first: int, last: int) -> Row:
    keys, steps = view.k.read(0, view.n)[0], q.shape[2]
    grouped = q[0].unflatten(0, (keys.shape[0], -1))  # [H_kv, G, T, D]
    where = torch.arange(view.n, device=q.device)
    back = where[-steps:, None] - where  # how far back a key lies: [T, n]
    seen = (back >= 0) & (back < (view.window or view.n))
    scores = (grouped @ keys[:, None].mT * scale).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).mean((0, 1))[steps // 2 :]
    back, seen = back[steps // 2 :], seen[steps // 2 :]
    start = (where + view.first < first) & seen & (back >= last)
    recent = seen & (back < last)
    total = partial(torch.sum, dtype=torch.float64)
    shares = [float(total(weights * part) / len(weights)) for part in (start, recent)]
    row = {"first": shares[0], "recent": shares[1], "between": 1 - sum(shares)}
    return row | {"keys": float(total(start | recent) / total(seen))}


# ---- how well a calibration carries over


def transfer_rows(model, text, other, chunks=(1, 3, 12), ctx: int | None = None) -> list[Row]:
    """What balancing gains on the text it was calibrated on, and on another, by its length.

    Row: chunks, tokens; own, other (squared logit error of centred keys over that of balanced
    ones, by theory; geometric mean over layers and heads); best (of the other text, calibrated on
    that text itself).
    """
    met = calibrate(model, other, chunks=max(chunks), ctx=ctx)
    best, rows = _gain(met, met), []
    for n in chunks:
        known = calibrate(model, text, chunks=n, ctx=ctx)
        gains = {"own": _gain(known, known), "other": _gain(known, met), "best": best}
        size = {"chunks": known.origin.chunks, "tokens": known.origin.chunks * known.origin.ctx}
        rows.append(size | gains)
    return rows


def _gain(known: Calibration, met: Calibration) -> float:
    pairs = [pair for pair in zip(known.layers, met.layers, strict=True) if pair[0] is not None]
    centred = [_trace(m.cov.double()) * _trace(m.second.double()) for _, m in pairs]
    balanced = [logit_error(*pair) for pair in pairs]
    return float((torch.cat(centred) / torch.cat(balanced)).log().mean().exp())
