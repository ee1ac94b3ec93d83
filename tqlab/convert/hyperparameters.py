"""Metadata keys of a model from config.json and the shapes of its tensors (spec gemma4 3, 7)."""

import math

import torch
from torch import Tensor

from ..gguf_write import encode
from . import names
from .checkpoint import Checkpoint

# config.json's model_type -> GGUF's general.architecture
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gemma4": "gemma4",
    "gemma4_text": "gemma4",
    "gemma4_unified": "gemma4",
    "gemma4_unified_text": "gemma4",
}
_NEVER = 1e30  # a frequency divisor that means: this pair does not rotate
_GEMMA3_PERIOD = 6


def hyperparameters(checkpoint: Checkpoint, arch: str, file_type: int) -> dict[str, bytes]:
    """Encoded general.* and <arch>.* keys. Raises ValueError naming what config.json lacks."""
    keys = {"general.architecture": encode("str", arch), "general.type": encode("str", "model")}
    keys["general.name"] = encode("str", checkpoint.path.resolve().name)
    own = _common(checkpoint) | _SPECIFIC[arch](checkpoint)
    keys |= {f"{arch}.{key}": encode(kind, value) for key, (kind, value) in own.items()}
    keys["general.file_type"] = encode("u32", file_type)
    keys["general.quantization_version"] = encode("u32", 2)
    return keys


def rope(checkpoint: Checkpoint, sliding: bool = False) -> dict:
    """Rope settings of full or sliding layers, from any generation of config.json."""
    c = checkpoint.config
    given = c.get("rope_parameters") or {}
    if "full_attention" in given:
        return dict(given["sliding_attention" if sliding else "full_attention"])
    if sliding:
        return {"rope_theta": c.get("rope_local_base_freq", 10000.0)}
    scaling = c.get("rope_scaling") or {}
    return {"rope_theta": c.get("rope_theta", 10000.0)} | scaling | given


def _kind(settings: dict) -> str:
    return settings.get("rope_type") or settings.get("type") or "default"


def head_dims(checkpoint: Checkpoint) -> list[int]:
    """Head size of every layer, from the rows of q_proj."""
    heads = checkpoint.need("num_attention_heads")
    return [_rows(checkpoint, i, "self_attn.q_proj") // heads for i in _layers(checkpoint)]


def _layers(checkpoint: Checkpoint) -> range:
    return range(checkpoint.need("num_hidden_layers"))


def _rows(checkpoint: Checkpoint, layer: int, part: str) -> int:
    name = f"model.layers.{layer}.{part}.weight"
    return checkpoint.shape(names.find(checkpoint, name))[0]


def _kv_heads(checkpoint: Checkpoint) -> list[int]:
    """KV heads of every layer; one without k_proj (shared) has as many as its nearest own kind."""
    counts: list[int] = []
    dims = head_dims(checkpoint)
    for i, dim in enumerate(dims):
        try:
            counts.append(_rows(checkpoint, i, "self_attn.k_proj") // dim)
        except ValueError:
            alike = [c for c, d in zip(counts, dims[:i], strict=True) if d == dim]
            if not alike:
                raise
            counts.append(alike[-1])
    return counts


def _per_layer(values: list[int]) -> tuple[str, int | list[int]]:
    """One u32 when all layers agree, else an array, as llama.cpp's converter does."""
    return ("u32", values[0]) if len(set(values)) == 1 else ("[i32]", values)


def _common(checkpoint: Checkpoint) -> dict[str, tuple]:
    c, dims = checkpoint, head_dims(checkpoint)
    return {
        "block_count": ("u32", c.need("num_hidden_layers")),
        "context_length": ("u32", c.need("max_position_embeddings")),
        "embedding_length": ("u32", c.need("hidden_size")),
        "feed_forward_length": _per_layer([_rows(c, i, "mlp.gate_proj") for i in _layers(c)]),
        "attention.head_count": ("u32", c.need("num_attention_heads")),
        "attention.head_count_kv": _per_layer(_kv_heads(c)),
        "attention.layer_norm_rms_epsilon": ("f32", c.need("rms_norm_eps")),
        "attention.key_length": ("u32", max(dims)),
        "attention.value_length": ("u32", max(dims)),
        "rope.freq_base": ("f32", rope(c)["rope_theta"]),
        "rope.dimension_count": ("u32", max(dims)),
    }


def _scaling(checkpoint: Checkpoint) -> dict[str, tuple]:
    settings = rope(checkpoint)
    if _kind(settings) == "linear":
        factor = ("f32", settings["factor"])
        return {"rope.scaling.type": ("str", "linear"), "rope.scaling.factor": factor}
    if _kind(settings) not in ("default", "llama3", "proportional"):
        raise ValueError(
            f"{checkpoint.path}: config.json asks for rope scaling {_kind(settings)!r}, which is "
            "not read; default, linear, llama3 and proportional are"
        )
    return {}


def _llama(checkpoint: Checkpoint) -> dict[str, tuple]:
    if checkpoint.config.get("use_sliding_window"):
        raise ValueError(f"{checkpoint.path}: use_sliding_window is not read for this architecture")
    n_vocab = checkpoint.shape(names.embedding(checkpoint))[0]
    return {"vocab_size": ("u32", n_vocab)} | _scaling(checkpoint)


def _sliding(checkpoint: Checkpoint, period: int | None = None) -> list[bool]:
    types = checkpoint.config.get("layer_types")
    if types is None and period is not None:
        period = checkpoint.config.get("sliding_window_pattern") or period
        return [bool((i + 1) % period) for i in _layers(checkpoint)]
    known = {"sliding_attention": True, "full_attention": False}
    types = checkpoint.need("layer_types")
    if len(types) != len(_layers(checkpoint)) or not set(types) <= set(known):
        raise ValueError(f"{checkpoint.path}: layer_types in config.json is {types!r}")
    return [known[t] for t in types]


def _gemma3(checkpoint: Checkpoint) -> dict[str, tuple]:
    c, dim = checkpoint, head_dims(checkpoint)[0]
    scalar, n_layers = c.config.get("query_pre_attn_scalar", dim), len(_layers(c))
    of_27b = n_layers == 62 and scalar == c.need("hidden_size") // c.need("num_attention_heads")
    if scalar != dim and not of_27b:
        raise ValueError(f"{c.path}: query_pre_attn_scalar {scalar} with heads of {dim}")
    keys = _scaling(c)
    if window := c.config.get("sliding_window"):
        keys["attention.sliding_window"] = ("u32", window)
    keys["rope.freq_base_swa"] = ("f32", rope(c, sliding=True)["rope_theta"])
    sliding = _sliding(c, _GEMMA3_PERIOD)
    if sliding != [bool((i + 1) % _GEMMA3_PERIOD) for i in range(n_layers)]:
        keys["attention.sliding_window_pattern"] = ("[bool]", sliding)
    if cap := c.config.get("final_logit_softcapping"):
        keys["final_logit_softcapping"] = ("f32", cap)
    return keys


def _gemma4(checkpoint: Checkpoint) -> dict[str, tuple]:
    c, dims, sliding = checkpoint, head_dims(checkpoint), _sliding(checkpoint)
    local = next((d for d, s in zip(dims, sliding, strict=True) if s), dims[0])
    keys = {
        "rope.freq_base_swa": ("f32", rope(c, sliding=True)["rope_theta"]),
        # A missing key means 30 to llama.cpp, so "none" is written as 0.
        "final_logit_softcapping": ("f32", c.config.get("final_logit_softcapping") or 0.0),
        "attention.sliding_window": ("u32", c.need("sliding_window")),
        "attention.shared_kv_layers": ("u32", c.config.get("num_kv_shared_layers") or 0),
        "embedding_length_per_layer_input": (
            "u32",
            c.config.get("hidden_size_per_layer_input") or 0,
        ),
        "attention.sliding_window_pattern": ("[bool]", sliding),
        "attention.key_length_swa": ("u32", local),
        "attention.value_length_swa": ("u32", local),
        "rope.dimension_count_swa": ("u32", local),
    }
    return keys | _experts(c)


def _experts(checkpoint: Checkpoint) -> dict[str, tuple]:
    """The number of experts is the router's: pruned checkpoints may keep an old configuration."""
    c = checkpoint
    if not c.config.get("enable_moe_block"):
        return {}
    width = c.shape(names.find(c, "model.layers.0.experts.down_proj"))[2]
    top_k = c.config.get("top_k_experts") or c.need("num_experts_per_tok")
    return {
        "expert_count": ("u32", _rows(c, 0, "router.proj")),
        "expert_used_count": ("u32", top_k),
        "expert_feed_forward_length": ("u32", width),
    }


_SPECIFIC = {"llama": _llama, "qwen2": _llama, "gemma3": _gemma3, "gemma4": _gemma4}


def rope_factors(checkpoint: Checkpoint, arch: str) -> Tensor | None:
    """rope_freqs.weight, which divides the frequencies of full layers: float32 [head_dim / 2]."""
    settings, dim = rope(checkpoint), max(head_dims(checkpoint))
    if arch == "gemma4" and _kind(settings) in ("proportional", "default"):
        rotated = int(dim // 2 * settings.get("partial_rotary_factor", 1.0))
        return torch.tensor([1.0] * rotated + [_NEVER] * (dim // 2 - rotated))
    if _kind(settings) == "llama3":
        return torch.tensor([_llama3(settings, j, dim) for j in range(0, dim, 2)])
    return None


def _llama3(settings: dict, j: int, dim: int) -> float:
    """Llama 3's factor: 1 for short waves, `factor` for long ones, smooth in between."""
    old, low = settings["original_max_position_embeddings"], settings.get("low_freq_factor", 1.0)
    factor, high = settings["factor"], settings.get("high_freq_factor", 4.0)
    turns = old * settings["rope_theta"] ** (-j / dim) / (2 * math.pi)
    smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
    return 1 / ((1 - smooth) / factor + smooth)
