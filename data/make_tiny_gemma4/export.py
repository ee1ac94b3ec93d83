"""Writes the trained model as a GGUF file in F16, vocabulary and chat template included."""

import json
from pathlib import Path

import numpy as np
import torch
from corpus import BYTES, CONTROL, TEMPLATE, VISIBLE
from model import Gemma4
from tokenizers import Tokenizer

from tqlab.gguf_write import GGUFWriter, TensorPlan, encode
from tqlab.tokenizer import vocabulary as kind

NAME, LICENCE = "Tiny Gemma 4 96E", "apache-2.0"


def metadata(model: Gemma4, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Keys of spec gemma4 3, encoded."""
    s, n = model.s, len(model.blk)
    kv = [s.heads_of(sliding)[0] for sliding in s.sliding]
    keys = {
        "general.architecture": ("str", "gemma4"),
        "general.name": ("str", NAME),
        "general.license": ("str", LICENCE),
        "general.file_type": ("u32", 1),
        "gemma4.block_count": ("u32", n),
        "gemma4.context_length": ("u32", s.context),
        "gemma4.embedding_length": ("u32", s.embd),
        "gemma4.feed_forward_length": ("u32", s.ff),
        "gemma4.attention.head_count": ("u32", s.heads),
        "gemma4.attention.head_count_kv": ("[i32]", kv),
        "gemma4.attention.layer_norm_rms_epsilon": ("f32", 1e-6),
        "gemma4.attention.key_length": ("u32", s.dim_full),
        "gemma4.attention.value_length": ("u32", s.dim_full),
        "gemma4.attention.key_length_swa": ("u32", s.dim_sliding),
        "gemma4.attention.value_length_swa": ("u32", s.dim_sliding),
        "gemma4.attention.sliding_window": ("u32", s.window),
        "gemma4.attention.sliding_window_pattern": ("[bool]", list(s.sliding)),
        "gemma4.attention.shared_kv_layers": ("u32", 0),
        "gemma4.rope.freq_base": ("f32", 1e6),
        "gemma4.rope.freq_base_swa": ("f32", 1e4),
        "gemma4.rope.dimension_count": ("u32", s.dim_full),
        "gemma4.rope.dimension_count_swa": ("u32", s.dim_sliding),
        "gemma4.final_logit_softcapping": ("f32", s.softcap),
        "gemma4.embedding_length_per_layer_input": ("u32", 0),
        "gemma4.expert_count": ("u32", s.experts),
        "gemma4.expert_used_count": ("u32", s.top_k),
        "gemma4.expert_feed_forward_length": ("u32", s.expert_ff),
        **_vocabulary(tokenizer),
    }
    return {key: encode(*value) for key, value in keys.items()}


def _vocabulary(tokenizer: Tokenizer) -> dict:
    ids, merges = tokenizer.get_vocab(), _merges(tokenizer)
    tokens = sorted(ids, key=ids.get)
    kinds = dict.fromkeys(CONTROL, kind.CONTROL) | dict.fromkeys(VISIBLE, kind.USER_DEFINED)
    kinds |= dict.fromkeys(BYTES, kind.BYTE) | {"<unk>": kind.UNKNOWN}
    return {
        "tokenizer.ggml.model": ("str", "gemma4"),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.scores": ("[f32]", [-1000.0] * len(tokens)),
        "tokenizer.ggml.token_type": ("[i32]", [kinds.get(t, kind.NORMAL) for t in tokens]),
        "tokenizer.ggml.merges": ("[str]", merges),
        "tokenizer.ggml.bos_token_id": ("u32", ids["<bos>"]),
        "tokenizer.ggml.eos_token_id": ("u32", ids["<turn|>"]),
        "tokenizer.ggml.unknown_token_id": ("u32", ids["<unk>"]),
        "tokenizer.ggml.padding_token_id": ("u32", ids["<pad>"]),
        "tokenizer.ggml.mask_token_id": ("u32", ids["<mask>"]),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_space_prefix": ("bool", False),
        "tokenizer.chat_template": ("str", TEMPLATE),
    }


def _merges(tokenizer: Tokenizer) -> list[str]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [m if isinstance(m, str) else " ".join(m) for m in merges]


def tensors(model: Gemma4) -> dict[str, torch.Tensor]:
    """GGUF names and values; the order of the file."""
    half = model.s.dim_full // 2
    factors = torch.full((half,), 1e30)
    factors[: half // 4] = 1.0
    found = {"rope_freqs.weight": factors}
    for name, value in model.named_parameters():
        scales = name.endswith(("inp_scale", "exps_scale"))
        found[f"{name[:-6]}.scale" if scales else f"{name}.weight"] = value.detach().float().cpu()
    return found


def write(path: Path, model: Gemma4, tokenizer: Tokenizer) -> None:
    """The file in F16; vectors and the router stay F32 (spec gemma4 3)."""
    found = tensors(model)
    plans = [
        TensorPlan(name, tuple(value.shape), _type(name, value)) for name, value in found.items()
    ]
    with GGUFWriter(path, metadata(model, tokenizer), plans) as out:
        for plan in plans:
            value = found[plan.name].numpy()
            data = value.astype(np.float16) if plan.type == "f16" else value
            out.write(plan.name, data.view(np.uint8))


def _type(name: str, value: torch.Tensor) -> str:
    return "f16" if value.dim() > 1 and "ffn_gate_inp" not in name else "f32"
