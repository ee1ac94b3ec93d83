"""Figures: functions take rows (or vectors) and return a Figure; nothing is measured here.

Axes carry units, the baseline or the theory bound is drawn, and a format has one colour everywhere.
"""

from ..tables import Table as table
from .beyond import (
    attention_mass,
    bits_by_context,
    cures,
    first_tokens,
    keys_by_layer,
    kld_by_model,
    spectra,
)
from .errors import (
    attention,
    cells,
    codebook,
    codebooks,
    inner_products,
    rate_distortion,
    sphere_density,
)
from .generation import bytes_by_role, cache_bytes, kl_along
from .kernels import against_truth, overcounted, schedules
from .rotation import coordinates_of, heads, histograms, layers, offsets
from .sides import here_and_quoted, k_or_v
from .style import COLOURS, Figure, colour
from .sweep import kld_against_bits, ppl_against_bytes, sensitivity
from .weights import expert_loads, kld_of_weights

__all__ = [
    "COLOURS",
    "Figure",
    "against_truth",
    "attention",
    "attention_mass",
    "bits_by_context",
    "bytes_by_role",
    "cache_bytes",
    "cells",
    "codebook",
    "codebooks",
    "colour",
    "coordinates_of",
    "cures",
    "expert_loads",
    "first_tokens",
    "heads",
    "here_and_quoted",
    "histograms",
    "inner_products",
    "k_or_v",
    "keys_by_layer",
    "kl_along",
    "kld_against_bits",
    "kld_by_model",
    "kld_of_weights",
    "layers",
    "offsets",
    "overcounted",
    "ppl_against_bytes",
    "rate_distortion",
    "schedules",
    "sensitivity",
    "spectra",
    "sphere_density",
    "table",
]
