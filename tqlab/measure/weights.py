"""What packing a model's weights costs: bytes, perplexity, KL from the original, and a text."""

import json
import tempfile
from pathlib import Path

from ..chunks import model_sha256, tokens_sha256
from ..data import Text
from ..generate import generate
from ..metrics import perplexity
from ..models import Decoder, load_model
from ..policies import POLICIES
from ..progress import Progress
from ..quantize import quantize_gguf
from ..sweep import REFERENCE, provenance
from ..version import VERSION

Row = dict
_QUALITY = ("ppl", "ppl_se", "kld_mean", "kld_se", "kld_p99", "same_top")
_HELD = {
    "sha256": "the file (sha256)",
    "tokens_sha256": "the text's tokens (sha256)",
    "ppl": "perplexity",
    "written": "the greedy text",
}
# Another machine adds in another order, which moves perplexity by some 1e-5 of itself; what any of
# the recipes below 8 bits changes is a multiple of this.
_PPL_TOLERANCE = 1e-3


def weight_rows(
    source: str | Path, recipes, text: Text, ctx: int, chunks: int | None, prompt, n_new: int
) -> list[Row]:
    """Quantise a file to every recipe (types and policies), for real, and judge what comes out.

    `source`: the original, in F16 or BF16. KL is the divergence from its predictions, both through
    an f16/f16 cache; `prompt` as `generate` takes it, continued greedily by `n_new` tokens. The
    packed files live in a temporary folder.
    Row: recipe, nbytes and sha256 (of the file), bits (a weight), ppl, ppl_se, kld_mean, kld_se,
    kld_p99, same_top, written (the text), and everything needed to measure it again.
    Raises: ValueError as `quantize_gguf`, `perplexity` and `generate` do.
    """
    original = load_model(source)
    base = _configuration(original, text)
    base |= {"ctx": ctx, "chunks": chunks, "prompt": prompt, "n_new": n_new}
    with Progress("weights", len(recipes)) as progress:
        rows = []
        for recipe in recipes:
            rows.append(base | _packed(original, recipe, base, text))
            progress.step(recipe)
    return rows


def _configuration(original: Decoder, text: Text) -> Row:
    return {
        "source": original.path.name,
        "source_sha256": model_sha256(original),
        "weights": original.weights_mode,
        "text": text.name,
        "text_sha256": text.sha256,
        "device": original.device.type,
        "tqlab": VERSION,
        **provenance(original.device),
    }


def _packed(original: Decoder, recipe: str, base: Row, text: Text) -> Row:
    """One recipe's own part of a row."""
    kind = "policy" if recipe in POLICIES else "type"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{recipe}.gguf"
        done = quantize_gguf(original.path, target, **{kind: recipe}, progress=False)
        size = {"nbytes": target.stat().st_size, "bits": done.bits_per_weight}
        return {"recipe": recipe} | size | _judged(load_model(target), base, text, original)


def _judged(model: Decoder, row: Row, text: Text, original: Decoder | None = None) -> Row:
    """What a model makes of a row's text and prompt; KL only from an original."""
    tokens = model.tokenizer.encode(text.text)
    reference = REFERENCE if original else None
    size = row["ctx"], row["chunks"]
    found = perplexity(model, tokens, *size, *REFERENCE, reference, original=original)
    written = generate(model, row["prompt"], *REFERENCE, max_new_tokens=row["n_new"]).text
    hashes = {"sha256": model_sha256(model), "tokens_sha256": tokens_sha256(tokens)}
    return hashes | {key: getattr(found, key) for key in _QUALITY} | {"written": written}


def held_rows(row: Row, model: Decoder, text: Text) -> list[Row]:
    """Whether a row of `weight_rows` still holds: the same measured now, with `model`.

    Row: what, published, here (long texts by their beginnings), same; perplexities count as the
    same within 0.1 %.
    """
    here = _judged(model, row, text)
    same = {key: row[key] == here[key] for key in _HELD}
    same["ppl"] = abs(here["ppl"] / row["ppl"] - 1) < _PPL_TOLERANCE
    return [
        {"what": what, "published": _short(row[key]), "here": _short(here[key]), "same": same[key]}
        for key, what in _HELD.items()
    ]


def _short(value):
    return f"{value[:12]}…" if isinstance(value, str) else value


def read_weight_rows(path: str | Path) -> list[Row]:
    """Rows of `weight_rows` from a JSON Lines file.

    Raises: FileNotFoundError; ValueError naming the line that is no such row.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
            _ = [rows[-1][key] for key in ("recipe", "bits", "prompt", *_HELD, *_QUALITY)]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: not a row of benchmarks/weights.py") from None
    return rows
