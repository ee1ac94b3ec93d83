"""Models by GGUF general.architecture. To add one: a file here and a line in the registry."""

from pathlib import Path

from .. import data
from .. import device as devices
from ..gguf_file import GGUFError, GGUFFile
from ..progress import say
from ..tokenizer import Tokenizer
from .base import Decoder
from .config import Config
from .gemma3 import Gemma3
from .gemma4 import Gemma4
from .llama import Llama
from .qwen2 import Qwen2
from .weights import Weights

_REGISTRY = {
    "gemma3": Gemma3,
    "gemma4": Gemma4,
    "llama": Llama,
    "qwen2": Qwen2,
}


def load_model(path_or_name: str | Path, device: str = "auto", weights: str = "auto") -> Decoder:
    """Open a GGUF file, or a name `tqlab fetch` knows, ready to run.

    `device` "auto" takes mps, cuda or cpu; `weights` is "packed" (as the file has them), "dense"
    (float32) or "auto": packed on mps and cuda, dense on cpu. What was chosen is printed.
    Raises: GGUFError (a ValueError) naming the file and what is wrong; FileNotFoundError.
    """
    chosen = devices.pick(device)
    file = GGUFFile(path_or_name if Path(path_or_name).exists() else data.fetch(str(path_or_name)))
    arch = file.need("general.architecture")
    if arch not in _REGISTRY:
        raise GGUFError(
            f"{file.path}: architecture {arch!r} is not known; known: {', '.join(_REGISTRY)}"
        )
    mode = weights if weights != "auto" else ("dense" if chosen.type == "cpu" else "packed")
    model = _REGISTRY[arch](Weights(file, chosen, mode))
    model.make_tokenizer = lambda: Tokenizer.from_gguf(file)
    say(_summary(model, auto=weights == "auto"))
    return model


def _summary(model: Decoder, auto: bool) -> str:
    kept = model._weights.kept_dense
    note = f" (expanded to float32 on this device: {', '.join(sorted(kept))})" if kept else ""
    weights = f"{model.weights_mode} weights{' (auto)' if auto else ''}"
    return (
        f"{model.config.name}: {model.config.architecture}, {devices.describe(model.device)}, "
        f"{weights}, {model.nbytes / 1e6:.0f} MB{note}"
    )


__all__ = ["Config", "Decoder", "load_model"]
