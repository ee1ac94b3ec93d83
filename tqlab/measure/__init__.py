"""What the notebooks measure: every function returns rows (dicts) or tensors, and draws nothing.

Relative MSE is sum |x - x^|^2 / sum |x|^2, dimensionless; bits are stored bits a value, counted
from the bytes a format really writes, scales and padding included.
"""

from ..smoke import smoke
from .along import along_rows, kl_along, unrotated_queries
from .codebooks import (
    cell_rows,
    codebook_of,
    codebook_rows,
    index_entropy,
    lloyd_max_rows,
    nearest,
)
from .compared import moved_rows, of_models, times_below
from .described import DESCRIBED, Described, describe
from .errors import (
    LOSSY,
    LOSSY_64,
    error_rows,
    gguf_error_rows,
    offset_rows,
    outlier_recipe_bits,
    padding_rows,
    quoted_rows,
    round_trip,
    scale_rows,
    spread_rows,
    verdict,
)
from .experts import expert_loads, routing_rows
from .keys import (
    attention_mass_rows,
    first_token_rows,
    key_rows,
    spectrum_rows,
    transfer_rows,
)
from .needle import Needle, needles
from .products import attention_rows, inner_product_rows
from .published import beside_fork, symmetric_rows
from .sensitivity import protection_rows, sensitivity_rows
from .sizes import cache_rows, context_rows, journey_rows, recipe_rows, role_rows
from .vectors import (
    ROTATIONS,
    capture_kv,
    coordinate_rows,
    coordinates,
    flat,
    gaussian,
    layer_rows,
    relative_mse,
    rotated,
    spiked,
)
from .weights import held_rows, read_weight_rows, weight_rows

__all__ = [
    "DESCRIBED",
    "LOSSY",
    "LOSSY_64",
    "ROTATIONS",
    "Described",
    "Needle",
    "along_rows",
    "attention_mass_rows",
    "attention_rows",
    "beside_fork",
    "cache_rows",
    "capture_kv",
    "cell_rows",
    "codebook_of",
    "codebook_rows",
    "context_rows",
    "coordinate_rows",
    "coordinates",
    "describe",
    "error_rows",
    "expert_loads",
    "first_token_rows",
    "flat",
    "gaussian",
    "gguf_error_rows",
    "held_rows",
    "index_entropy",
    "inner_product_rows",
    "journey_rows",
    "key_rows",
    "kl_along",
    "layer_rows",
    "lloyd_max_rows",
    "moved_rows",
    "nearest",
    "needles",
    "of_models",
    "offset_rows",
    "outlier_recipe_bits",
    "padding_rows",
    "protection_rows",
    "quoted_rows",
    "read_weight_rows",
    "recipe_rows",
    "relative_mse",
    "role_rows",
    "rotated",
    "round_trip",
    "routing_rows",
    "scale_rows",
    "sensitivity_rows",
    "smoke",
    "spectrum_rows",
    "spiked",
    "spread_rows",
    "symmetric_rows",
    "times_below",
    "transfer_rows",
    "unrotated_queries",
    "verdict",
    "weight_rows",
]
