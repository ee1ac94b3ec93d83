"""The qwen2 architecture: llama with biases on q, k, v and rope over halves (spec gemma4 7).

The biases are tensors beside the weights, which `Weights.matrix` picks up.
"""

from .base import rope_neox
from .llama import Llama


class Qwen2(Llama):
    """Qwen2-style decoder."""

    rotate = staticmethod(rope_neox)
