"""Operations with a Metal shader and a torch reference, as torch.library ops `tqlab::...`.

On MPS tensors the shader runs; elsewhere the reference does, unless `metal.simulate` or TQLAB_METAL
asks for the shader to be executed in the simulator. `reference()` forces the reference anywhere.
"""

from .attention import kv_attention
from .base import OPS, reference, runs_shader
from .linear import tq_linear, tq_moe_linear
from .rows import dequantize_rows, embedding_rows, quantize_rows, wht

__all__ = [
    "OPS",
    "dequantize_rows",
    "embedding_rows",
    "kv_attention",
    "quantize_rows",
    "reference",
    "runs_shader",
    "tq_linear",
    "tq_moe_linear",
    "wht",
]
