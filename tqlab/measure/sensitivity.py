"""Which layers suffer: one layer's K or V quantised at a time, everything else in the reference."""

from ..metrics import perplexity
from ..progress import Progress
from .errors import Row


def sensitivity_rows(
    model, tokens, fmt: str = "turbo3", ctx: int = 512, chunks: int = 1, layers=None
) -> list[Row]:
    """KL divergence caused by `fmt` in the K, or the V, of a single layer.

    Shapes: tokens: ints, list or 1-D tensor -> rows with layer, side ("k" | "v"), format,
    kld_mean, kld_se (nats a token, from the f16/f16 cache)
    `layers` (default: all) are indices; a layer that shares another's cache has no K or V to vary.
    """
    shapes = model.layer_shapes()
    own = [i for i, shape in enumerate(shapes) if shape.donor is None]
    chosen = own if layers is None else [i for i in layers if i in own]
    rows = []
    with Progress("layers", 2 * len(chosen)) as progress:
        for side in ("k", "v"):
            for layer in chosen:
                names = [fmt if i == layer else "f16" for i in range(len(shapes))]
                pair = {"k": "f16", "v": "f16"} | {side: names}
                result = perplexity(model, tokens, ctx, chunks, **pair, reference=("f16", "f16"))
                found = {"kld_mean": result.kld_mean, "kld_se": result.kld_se}
                rows.append({"layer": layer, "side": side, "format": fmt, **found})
                progress.step(f"layer {layer} {side}")
    return rows


def protection_rows(
    model, tokens, ranking, fmt: str = "turbo3", keep: str = "q8_0", n: int = 4, ctx=512, chunks=2
) -> list[Row]:
    """What it helps to keep the K of `n` layers in `keep` while all others, and V, are in `fmt`.

    Shapes: tokens: ints, list or 1-D tensor (best: not those of the ranking)
    `ranking`: rows of `sensitivity_rows`; the layers kept are none, those at both ends, the worst
    by KL. Row: choice, layers, k_bits, kld_mean, kld_se (nats a token, from f16/f16), same_top.
    """
    rows = []
    for choice, layers in _choices(ranking, len(model.layer_shapes()), n).items():
        names = [keep if i in layers else fmt for i in range(len(model.layer_shapes()))]
        found = perplexity(model, tokens, ctx, chunks, names, fmt, reference=("f16", "f16"))
        row = {"choice": choice, "layers": ", ".join(map(str, layers)) or "none"}
        keys = ("k_bits", "kld_mean", "kld_se", "same_top")
        rows.append(row | {key: getattr(found, key) for key in keys})
    return rows


def _choices(ranking, layers: int, n: int) -> dict[str, list[int]]:
    keys = sorted((r for r in ranking if r["side"] == "k"), key=lambda r: -r["kld_mean"])
    ends = [*range(n // 2), *range(layers - (n - n // 2), layers)]
    worst = sorted(r["layer"] for r in keys[:n])
    return {"no layer": [], "both ends": ends, "the most sensitive": worst}
