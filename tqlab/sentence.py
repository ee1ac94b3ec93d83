"""The last row of the self-test: a whole model writes one sentence, compared token by token.

tiny-gemma4 as the library runs it on this device: packed weights and cache, and references in place
of ops that failed. What it must write lies beside its file, made by data/make_tiny_gemma4: every
token leads the second by LEAD or more, so that another one is a bug. Not every bug shows: Gemma 4
norms what its matrices give, and 32 times too much of it costs no token (tests/test_canary.py).
"""

import contextlib
import json
from pathlib import Path

import torch

from . import data, ops
from .generate import Generation, Run, Sampling
from .models import load_model

MODEL, WEIGHTS, K, V = "tiny-gemma4", "packed", "q8_0", "turbo4"
LEAD = 1.0  # logits; other float orders move one by 2e-2 at most (tests/test_shaders_models.py)
COMMAND = "python data/make_tiny_gemma4 reference"
_NOTHING = dict.fromkeys(("nmse", "limit", "error", "tolerance", "passed", "us"))


def row(device: torch.device, simulated: bool) -> dict:
    """A row like the self-test's others; note is what was written, or what is wrong.

    `passed` is None where there is nothing to compare with: then nothing is written. `simulated`:
    torch reads the prompt, which would take the simulator ten seconds; shape says so.
    """
    row = {"op": MODEL, "variant": f"{WEIGHTS} {K}/{V}", "shape": "one sentence", "path": ""}
    row |= _NOTHING
    try:
        wanted = reference()
    except (FileNotFoundError, ValueError) as why:
        return row | {"note": f"{MODEL} was not run: {why}"}
    row["shape"] = f"{len(wanted['tokens'])} tokens{', prompt by torch' if simulated else ''}"
    try:
        return row | _judged(wanted, device, simulated)
    except Exception as error:  # as for an op: a compiler's refusal is a result too
        return row | {"passed": False, "note": refusal(error), "path": _instead(device)}


def refusal(error: Exception) -> str:
    """An error as the note of a row: one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _judged(wanted: dict, device: torch.device, simulated: bool) -> dict:
    model = load_model(MODEL, device.type, WEIGHTS)
    got = written(model, wanted["prompt"], len(wanted["tokens"]), simulated)
    made = {"us": 1e6 / got.decode_tok_s}
    if wrong := _mismatch(got.tokens, wanted, model.tokenizer):
        note = f"{wrong}; written: {got.text!r}"
        return made | {"passed": False, "note": note, "path": _instead(device)}
    return made | {"passed": True, "note": f"{MODEL}: {wanted['prompt']} [...]{got.text}"}


def written(model, prompt: str, n_tokens: int, prompt_by_torch: bool = False) -> Generation:
    """How a model continues a prompt, greedily, in the formats of the reference."""
    run = Run(model, [prompt], K, V, n_tokens, Sampling())
    steps = run.steps()
    with ops.reference() if prompt_by_torch else contextlib.nullcontext():
        next(steps)
    list(steps)
    return run.results()[0]


def _mismatch(tokens: list[int], wanted: dict, tokenizer) -> str:
    """The first token that differs, and what was expected; "" when none does."""

    def spelled(token):
        return f"{tokenizer.decode([token], special=True)!r} ({token})"

    pairs = zip(tokens, wanted["tokens"], wanted["gaps"], strict=False)
    for i, (token, right, gap) in enumerate(pairs, 1):
        if token != right:
            n = len(wanted["tokens"])
            found = f"token {i} of {n} is {spelled(token)}, expected {spelled(right)}"
            return f"{found}, which leads by {gap:.1f} logits"
    return ""


def _instead(device: torch.device) -> str:
    """What the user should do: there is no op to replace."""
    use = "trust no generated text" if device.type == "cpu" else "use --device cpu"
    return f"{use} (no op to blame is known, so none is replaced) and report the rows"


def reference_path() -> Path:
    """Where the reference lies: beside the model's file. Raises: FileNotFoundError."""
    return data.fetch(MODEL).with_name("tiny-gemma4-reference.json")


def reference() -> dict:
    """What the model must write: model_sha256, prompt, tokens, text, gaps (each token's lead).

    Raises: FileNotFoundError (no checkout); ValueError when it is about another file.
    """
    path = reference_path()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; in a checkout, {COMMAND} makes it")
    wanted = json.loads(path.read_text("utf-8"))
    if (found := data.file_sha256(data.fetch(MODEL))) != wanted["model_sha256"]:
        made = f"a model of sha256 {wanted['model_sha256'][:12]}, this one has {found[:12]}"
        raise ValueError(f"{path.name} is of {made}; {COMMAND} makes another")
    return wanted
