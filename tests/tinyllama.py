"""A tiny random llama in two hands: transformers' own model, and the GGUF file a converter makes.

transformers rotates halves (j, j + D/2); GGUF holds q and k with rows permuted so that pairs
(2j, 2j + 1) rotate. The permutation here is written from that sentence alone.
"""

import numpy as np
import tinyvocab
import torch
from ggufwriter import File, Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tqlab import formats

VOCAB = len(tinyvocab.TOKENS)


def oracle(heads=6, kv_heads=2, head_dim=20, layers=2, tied=False, seed=0) -> LlamaForCausalLM:
    """A random LlamaForCausalLM whose every norm differs from 1."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
        initializer_range=0.15,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5)
    return model


def interleaved(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Row j of each head's first half to place 2j, of its second half to 2j + 1."""
    heads = rows.reshape(n_heads, 2, -1, rows.shape[-1])  # [head, half, j, in]
    return heads.transpose(0, 2, 1, 3).reshape(rows.shape)


def tensor(name: str, array: np.ndarray, fmt: str = "f32") -> Tensor:
    """A GGUF tensor of a [out, in] or [n] array in any format of ours."""
    f = formats.get(fmt)
    data = f.quantize(torch.from_numpy(np.ascontiguousarray(array, np.float32)))
    return Tensor(name, array.shape[::-1], f.ggml_type, data.numpy().tobytes())


def gguf_file(model: LlamaForCausalLM, fmt: str = "f32", **changes) -> File:
    """What a converter would write; matrices in `fmt`, norms in f32."""
    c = model.config
    keys = {
        "block_count": ("u32", c.num_hidden_layers),
        "context_length": ("u32", c.max_position_embeddings),
        "embedding_length": ("u32", c.hidden_size),
        "feed_forward_length": ("u32", c.intermediate_size),
        "attention.head_count": ("u32", c.num_attention_heads),
        "attention.head_count_kv": ("u32", c.num_key_value_heads),
        "attention.key_length": ("u32", c.head_dim),
        "attention.value_length": ("u32", c.head_dim),
        "attention.layer_norm_rms_epsilon": ("f32", c.rms_norm_eps),
        "rope.freq_base": ("f32", c.rope_parameters["rope_theta"]),
        "rope.dimension_count": ("u32", c.head_dim),
        **changes,
    }
    metadata = [("general.architecture", "str", "llama"), ("general.name", "str", "tiny")]
    metadata += [(f"llama.{key}", *pair) for key, pair in keys.items() if pair is not None]
    return File([*metadata, *tinyvocab.metadata()], list(tensors(model, fmt)))


PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tensors(model: LlamaForCausalLM, fmt: str):
    c = model.config
    weights = {name: w.detach().numpy() for name, w in model.named_parameters()}
    yield tensor("token_embd.weight", weights["model.embed_tokens.weight"], fmt)
    yield tensor("output_norm.weight", weights["model.norm.weight"])
    if not c.tie_word_embeddings:
        yield tensor("output.weight", weights["lm_head.weight"], fmt)
    for i in range(c.num_hidden_layers):
        for theirs, ours in PARTS.items():
            w = weights[f"model.layers.{i}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                heads = c.num_attention_heads if ours == "attn_q" else c.num_key_value_heads
                w = interleaved(w, heads)
            yield tensor(f"blk.{i}.{ours}.weight", w, fmt if w.ndim == 2 else "f32")
