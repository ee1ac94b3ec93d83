"""tqlab: understand, measure and trust TurboQuant.

The public interface is what is named here; notebooks and the command line use nothing else.
"""

import importlib

from . import codebook, data, device, formats, recipes, rotation
from .calibrate import calibrate
from .calibration import Calibration
from .convert import convert_hf
from .generate import Generation, generate
from .metrics import Perplexity, perplexity
from .models import load_model
from .quantize import quantize_gguf
from .recipes import Recipe
from .selftest import selftest
from .sweep import sweep
from .version import VERSION as __version__

# Loaded at first use: matplotlib and ipywidgets take a second, and the command line needs none.
_LAZY = ("measure", "plots", "pr52", "widgets")
__all__ = [
    "Calibration",
    "Generation",
    "Perplexity",
    "Recipe",
    "__version__",
    "calibrate",
    "codebook",
    "convert_hf",
    "data",
    "device",
    "formats",
    "generate",
    "load_model",
    "perplexity",
    "quantize_gguf",
    "recipes",
    "rotation",
    "selftest",
    "sweep",
]


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'tqlab' has no attribute {name!r}")
