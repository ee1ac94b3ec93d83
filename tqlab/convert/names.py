"""Tensor names: one table an architecture from Hugging Face's to GGUF's (spec gemma4 3)."""

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .checkpoint import Checkpoint

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
# Other modalities, and buffers some exporters leave behind.
_SKIPPED = re.compile(
    r"(^|\.)(vision_tower|vision_model|audio_tower|multi_modal_projector|embed_vision|embed_audio)"
    r"\.|rotary_emb\.inv_freq$"
)

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_COMMON = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LLAMA = _COMMON | {"post_attention_layernorm": "ffn_norm"}
_GEMMA3 = _COMMON | {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GEMMA4 = _GEMMA3 | {
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
    "router.proj": "ffn_gate_inp",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
}
_TOP_GEMMA4 = _TOP | {
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection": "per_layer_model_proj",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
}
# architecture -> (names outside the layers, names in a layer). Entries of "x.weight" and "x.bias"
# are listed as "x"; parameters without a suffix give their full GGUF name.
_TABLES = {
    "llama": (_TOP, _LLAMA),
    "qwen2": (_TOP, _LLAMA),
    "gemma3": (_TOP, _GEMMA3),
    "gemma4": (_TOP_GEMMA4, _GEMMA4),
}
_EVERY_LAYER = ("attn_norm", "attn_q", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def canonical(source: str) -> str:
    """A name as a text-only checkpoint has it: without "language_model"."""
    return source.replace("language_model.model.", "model.").replace("language_model.", "")


def to_gguf(checkpoint: Checkpoint, arch: str, source: str) -> str | None:
    """GGUF's name of a tensor; None for what is left out (other modalities, a tied head).

    Raises: ValueError for a tensor this architecture does not have.
    """
    name = canonical(source)
    tied = checkpoint.whole_config.get(
        "tie_word_embeddings",
        checkpoint.config.get("tie_word_embeddings", arch.startswith("gemma")),
    )
    if _SKIPPED.search(name) or (tied and name == "lm_head.weight"):
        return None
    found = _lookup(_TABLES[arch], name)
    if found is None:
        raise ValueError(f"{checkpoint.path}: tensor {source!r} is not known in {arch}")
    return found


def _lookup(tables: tuple[dict, dict], name: str) -> str | None:
    top, in_layer = tables
    if match := _LAYER.fullmatch(name):
        found = _suffixed(in_layer, match[2])
        return found and f"blk.{match[1]}.{found}"
    return _suffixed(top, name)


def _suffixed(table: dict[str, str], name: str) -> str | None:
    stem, _, suffix = name.rpartition(".")
    if stem in table and suffix in ("weight", "bias"):
        return f"{table[stem]}.{suffix}"
    full = table.get(name, "")
    return full if full.endswith((".weight", ".scale")) else None


def embedding(checkpoint: Checkpoint) -> str:
    """The checkpoint's name of the token embedding."""
    return find(checkpoint, "model.embed_tokens.weight")


def find(checkpoint: Checkpoint, name: str) -> str:
    """The checkpoint's own spelling of a canonical name. Raises ValueError when there is none."""
    for source in checkpoint.names():
        if canonical(source) == name:
            return source
    raise ValueError(f"{checkpoint.path}: tensor {name!r} is missing")


def check_complete(checkpoint: Checkpoint, written: Iterable[str]) -> None:
    """Raises ValueError naming a tensor that every model needs and this one lacks."""
    n_layers, have = int(checkpoint.need("num_hidden_layers")), set(written)
    wanted = ["token_embd.weight", "output_norm.weight"]
    wanted += [f"blk.{i}.{part}.weight" for i in range(n_layers) for part in _EVERY_LAYER]
    for name in wanted:
        if name not in have:
            raise ValueError(f"{checkpoint.path}: nothing in the shards becomes {name!r}")


def transform(checkpoint: Checkpoint, arch: str, name: str) -> Callable[[Tensor], Tensor] | None:
    """What the values of GGUF tensor `name` go through, or None."""
    if arch == "gemma3" and name.endswith("norm.weight"):
        return lambda w: w.float() + 1
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    part = name.split(".")[-2]
    if arch == "llama" and part in heads:
        default = checkpoint.need("num_attention_heads")
        n_heads = checkpoint.config.get(heads[part]) or default
        return lambda w: interleave_halves(w, n_heads)
    return None


def interleave_halves(w: Tensor, n_heads: int) -> Tensor:
    """Reorder each head's rows so that rope's pairs (j, j + D/2) become (2j, 2j + 1)."""
    halves = w.view(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:])
    return torch.transpose(halves, 1, 2).reshape(w.shape)
