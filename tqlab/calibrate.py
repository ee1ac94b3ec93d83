"""Statistics of a model's keys and queries over a text, and the caches that recipes ask for.

Statistics are taken before rope, in float64, with the first tokens of every chunk left out: they
stay exact in every recipe (spec beyond 4). A model is anything with layer_shapes(), turn(layer),
run(ids, cache), tokenizer, config, path and device.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from . import data, formats, metal
from .calibration import Calibration, LayerStats, Origin, token_runs
from .chunks import cut, model_sha256
from .kvcache import KVCache, LayerShape, Policy, padded_head_dim
from .progress import Progress, say
from .recipes import Recipe, Side, side
from .transforms import KINDS, Plain

CHUNKS, CTX, SKIPPED = 12, 512, 4


def calibrate(
    model,
    text: str | data.Text = data.CALIBRATION_TEXT,
    out: str | Path | None = None,
    chunks: int = CHUNKS,
    ctx: int | None = None,
) -> Calibration:
    """Run `chunks` chunks of a text (a name, a file or a Text) and describe keys and queries.

    `ctx` None: 512 tokens, or the model's context where that is shorter. `out`: the file to write.
    Raises: ValueError for a text without a whole chunk; what `data.load_text` raises.
    """
    text = text if isinstance(text, data.Text) else data.load_text(text)
    ctx = min(CTX, model.config.context_length) if ctx is None else ctx
    tokens = model.tokenizer.encode(text.text)[: chunks * ctx]
    pieces, shapes = cut(tokens, ctx, chunks, model), model.layer_shapes()
    recorders = [
        None if s.donor is not None else _Recorder(s, model.turn(i, ctx))
        for i, s in enumerate(shapes)
    ]
    cache = KVCache(shapes, "f32", "f32", ctx, 1, model.device, policy=Policy(0, 0, recorders))
    with Progress("calibrate", len(pieces)) as progress:
        for piece in pieces:
            cache.reset()
            model.run(piece[None], cache)
            progress.step(text.name)
    layers = [recorder and recorder.stats() for recorder in recorders]
    names = (model.config.name, model_sha256(model), len(shapes), text.name, text.sha256)
    made = Calibration(
        layers, Origin(*names, ctx, len(pieces)), torch.from_numpy(token_runs(tokens))
    )
    return made if out is None else replace(made, path=made.save(out))


class _Recorder(Plain):
    """Leaves keys as they are, and adds them and the queries that meet them up."""

    def __init__(self, shape: LayerShape, turn):
        super().__init__(None, shape.head_dim)
        heads, dim = shape.n_kv_heads, shape.head_dim
        self._turn, self._tokens = turn, 0
        self._sum = torch.zeros(heads, dim, dtype=torch.float64)
        self._keys, self._queries = torch.zeros(2, heads, dim, dim, dtype=torch.float64)

    def encode(self, k, positions):
        self._positions = positions
        kept = self._kept(k)
        self._tokens += kept.shape[1]
        self._sum += kept.sum(1)
        self._keys += kept.mT @ kept
        return k

    def query(self, q):
        groups = q.unflatten(2, (-1, len(self._positions)))
        for group in groups.unbind(2):
            kept = self._kept(group)
            self._queries += kept.mT @ kept
        return q

    def _kept(self, x: Tensor) -> Tensor:
        """float32 [1, H, T, D] behind rope -> float64 [H, T - skipped, D] before it."""
        kept = self._positions >= SKIPPED
        return self._turn(x, self._positions, back=True)[0, :, kept].cpu().double()

    def stats(self) -> LayerStats:
        """What was seen, as float32."""
        mean = self._sum / self._tokens
        cov = self._keys / self._tokens - mean[:, :, None] * mean[:, None]
        second = self._queries / self._tokens
        return LayerStats(*(x.float() for x in (mean, cov, second)))


# ---- caches for recipes


def plan(model, k: Side, v: Side, n_positions: int) -> tuple[Side, Side, Policy | None]:
    """Format names and the policy of a cache with these sides; without a recipe as they are.

    A recipe as one side gives that side's formats (and as `k` the transform); its exact tokens are
    those of both.
    Raises: ValueError for unknown names, two recipes that disagree, an unfit calibration.
    """
    k, v = side(k), side(v)
    found = [x for x in (k, v) if isinstance(x, Recipe)]
    if not found:
        return k, v, None
    if len({(r.sinks, r.window) for r in found}) > 1:
        raise ValueError(f"recipes {k.name} and {v.name} keep different tokens exact: take one")
    shapes, policy = model.layer_shapes(), Policy(found[0].sinks, found[0].window)
    if isinstance(k, Recipe):
        names = [k.formats(shape.head_dim)[0] for shape in shapes]
        policy = _transformed(model, k, names, policy, n_positions)
        k = names
    if isinstance(v, Recipe):
        v = [v.formats(shape.head_dim)[1] for shape in shapes]
    _announce(model, found, policy)
    return k, v, policy


def _transformed(model, recipe: Recipe, names: Sequence[str], policy: Policy, n: int) -> Policy:
    if not recipe.needs_calibration:
        return policy
    calibration = for_model(model, recipe)
    made = model.__dict__.setdefault("_transforms", {})
    key = (calibration.origin, recipe.transform, tuple(names))
    shapes = model.layer_shapes()
    turns = [model.turn(i, n) for i in range(len(shapes))]
    if key not in made:
        build = partial(_transform, recipe.transform)
        made[key] = list(map(build, calibration.layers, turns, shapes, names))
    return replace(policy, transforms=made[key], calibration=calibration)


def _transform(kind: str, stats: LayerStats | None, turn, shape: LayerShape, name: str):
    if stats is None:
        return None
    fmt = formats.get(name)
    return KINDS[kind](stats, turn, fmt.rotation, padded_head_dim(fmt, shape.head_dim))


def for_model(model, recipe: Recipe) -> Calibration:
    """The recipe's calibration: its file, model.calibration, or the model's cached file.

    Where there is none, the model is calibrated on the default text, which is said, and the file
    is kept.
    """
    if recipe.calibration:
        calibration = Calibration.load(recipe.calibration)
    else:
        model.calibration = calibration = model.calibration or _cached(model)
    calibration.check(model_sha256(model), model.layer_shapes())
    return calibration


def _cached(model) -> Calibration:
    path = cached_path(model)
    if path.is_file():
        return Calibration.load(path)
    say(f"calibrating {model.config.name} on {data.CALIBRATION_TEXT}, once: {path}")
    return calibrate(model, out=path)


def cached_path(model) -> Path:
    """Where a model's own calibration is kept."""
    name = f"{model.path.stem}-{model_sha256(model)[:12]}.safetensors"
    return data.data_dir() / "calibration" / name


def _announce(model, found: list[Recipe], policy: Policy) -> None:
    """Say what is on, once a model and recipe, and who computes attention."""
    said = model.__dict__.setdefault("_announced", set())
    by = f"; attention by torch on {model.device.type}, not by shaders"
    for recipe in found:
        if recipe not in said:
            said.add(recipe)
            say(describe(recipe, policy) + (by if metal.engine(model.device) else ""))


def parts(model, k: Side, v: Side) -> str | None:
    """The parts of the recipes that are K's and V's side, for rows; None where there is none."""
    found = dict.fromkeys(x for x in map(side, (k, v)) if isinstance(x, Recipe))
    if not found:
        return None
    policy = plan(model, k, v, 1)[2]
    return "; ".join(describe(recipe, policy) for recipe in found)


def describe(recipe: Recipe, policy: Policy) -> str:
    """A recipe's parts in one line, with what it was calibrated on."""
    if policy.calibration is None or not recipe.needs_calibration:
        return str(recipe)
    origin = policy.calibration.origin
    return f"{recipe}; calibrated on {origin.text} ({origin.chunks} x {origin.ctx} tokens)"
