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
