"""Tiny random models, written as GGUF beside the transformers model they came from.

Norms, scales and layer scalars are drawn from 0.4 .. 1.6, so that leaving any of them out shows.
"""

import torch
from ggufwriter import File, Tensor

from tqlab import formats

N_VOCAB = 300
IDS = {"f32": 0, "q8_0": 8, "tq4_1s": 46}
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
LETTERS = [chr(c) for c in range(97, 123)] + ["\u2581", "\n", "\n\n", "th", "the", "\u2581the"]
MERGES = ["\n \n", "t h", "th e", "\u2581 the"]
TURNS = ["<|turn>", "<turn|>"]

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "router.proj": "ffn_gate_inp",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}
_GLOBAL = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
}


def gguf_name(name: str) -> str | None:
    """A transformers name in GGUF's spelling; None for a tied head."""
    name = name.removeprefix("model.")
    if name.startswith("lm_head"):
        return None
    table, prefix = _GLOBAL, ""
    if name.startswith("layers."):
        _, i, name = name.split(".", 2)
        table, prefix = _LAYER, f"blk.{i}."
    if name in table:
        return prefix + table[name]
    stem, _, kind = name.rpartition(".")
    return f"{prefix}{table[stem]}.{kind}"


def randomise(model, seed: int) -> None:
    """Weights that give logits of a few units, and norms that are far from 1."""
    source = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        scalar = value.dim() == 1 and not name.endswith("bias")
        if scalar:
            value.copy_(torch.rand(value.shape, generator=source) * 1.2 + 0.4)
        else:
            width = value.shape[-1] if value.dim() > 1 else 16
            value.copy_(torch.randn(value.shape, generator=source) * width**-0.5)


def tokenizer_metadata(n: int = N_VOCAB, model: str = "gemma4", turns: bool = True) -> list[tuple]:
    """A small Gemma-like vocabulary: specials, bytes, a few pieces, padding."""
    tokens = SPECIALS + [f"<0x{b:02X}>" for b in range(256)] + LETTERS
    tokens += TURNS if turns else []
    tokens = tokens[:n] + [f"<unused{i}>" for i in range(n - len(tokens))]
    types = [3 if t in SPECIALS + TURNS else 6 if t.startswith("<0x") else 1 for t in tokens]
    return [
        ("tokenizer.ggml.model", "str", model),
        ("tokenizer.ggml.tokens", "[str]", tokens),
        ("tokenizer.ggml.token_type", "[i32]", types),
        ("tokenizer.ggml.merges", "[str]", MERGES),
        ("tokenizer.ggml.bos_token_id", "u32", 2),
        ("tokenizer.ggml.eos_token_id", "u32", 1),
        ("tokenizer.ggml.add_bos_token", "bool", True),
    ]


def tensors(model, shift: float = 0.0, types=lambda name: "f32") -> list[Tensor]:
    """Every weight under its GGUF name, in the type that `types` gives for it."""
    made = []
    for name, value in model.state_dict().items():
        if (name := gguf_name(name)) is None:
            continue
        value = value + shift if "norm" in name else value
        made.append(packed(name, value, types(name)))
    return made


def packed(name: str, value: torch.Tensor, kind: str = "f32") -> Tensor:
    data = formats.get(kind).quantize(value.float()).numpy().tobytes()
    return Tensor(name, tuple(reversed(value.shape)), IDS[kind], data)


def without(metadata: list[tuple], *keys: str) -> list[tuple]:
    return [entry for entry in metadata if not entry[0].endswith(keys)]


SLIDING, FULL = "sliding_attention", "full_attention"


def gemma4(seed: int = 0, types=lambda name: "f32", **changes):
    """(file, transformers model) of a random Gemma 4; `changes` are those of its config."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    kinds = changes.pop("layer_types", [SLIDING, SLIDING, FULL])
    options = {
        "vocab_size": N_VOCAB,
        "vocab_size_per_layer_input": N_VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 32,
        "global_head_dim": 64,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "sliding_window": 8,
        "max_position_embeddings": 512,
        "final_logit_softcapping": 5.0,
        "attn_implementation": "eager",
    }
    config = Gemma4TextConfig(**{**options, **changes})
    model = Gemma4ForCausalLM(config).eval()
    randomise(model, seed)
    model.tie_weights()
    n_rot = options["global_head_dim"] // 2
    factors = torch.cat([torch.ones(n_rot // 4), torch.full((n_rot - n_rot // 4,), 1e30)])
    extra = [packed("rope_freqs.weight", factors)]
    return File(_gemma4_metadata(config, model), tensors(model, types=types) + extra), model


def _gemma4_metadata(c, model) -> list[tuple]:
    heads = []
    for i, layer in enumerate(model.model.layers):
        own = i < c.num_hidden_layers - c.num_kv_shared_layers
        dim = 64 if c.layer_types[i] == FULL else 32
        heads.append(layer.self_attn.k_proj.weight.shape[0] // dim if own else 4)
    metadata = [
        ("general.architecture", "str", "gemma4"),
        ("gemma4.block_count", "u32", c.num_hidden_layers),
        ("gemma4.context_length", "u32", c.max_position_embeddings),
        ("gemma4.embedding_length", "u32", c.hidden_size),
        ("gemma4.feed_forward_length", "u32", c.intermediate_size),
        ("gemma4.attention.head_count", "u32", c.num_attention_heads),
        ("gemma4.attention.head_count_kv", "[i32]", heads),
        ("gemma4.attention.layer_norm_rms_epsilon", "f32", c.rms_norm_eps),
        ("gemma4.attention.key_length", "u32", 64),
        ("gemma4.attention.value_length", "u32", 64),
        ("gemma4.attention.key_length_swa", "u32", 32),
        ("gemma4.attention.value_length_swa", "u32", 32),
        ("gemma4.attention.sliding_window", "u32", c.sliding_window),
        ("gemma4.attention.shared_kv_layers", "u32", c.num_kv_shared_layers),
        ("gemma4.rope.freq_base", "f32", 1e6),
        ("gemma4.rope.freq_base_swa", "f32", 1e4),
        ("gemma4.rope.dimension_count", "u32", 64),
        ("gemma4.rope.dimension_count_swa", "u32", 32),
        ("gemma4.final_logit_softcapping", "f32", c.final_logit_softcapping),
        ("gemma4.embedding_length_per_layer_input", "u32", c.hidden_size_per_layer_input),
    ]
    pattern = [kind == SLIDING for kind in c.layer_types]
    metadata.append(("gemma4.attention.sliding_window_pattern", "[bool]", pattern))
    if c.enable_moe_block:
        metadata.append(("gemma4.expert_count", "u32", c.num_experts))
        metadata.append(("gemma4.expert_used_count", "u32", c.top_k_experts))
    return metadata + tokenizer_metadata()


def gemma3(seed: int = 0, factor: float = 1.0, **changes):
    """(file, transformers model) of a random Gemma 3; norms are stored with their 1 added."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    full = {"rope_type": "default", "rope_theta": 1e6}
    if factor != 1:
        full = {"rope_type": "linear", "factor": factor, "rope_theta": 1e6}
    options = {
        "vocab_size": N_VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "max_position_embeddings": 512,
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            FULL: full,
        },
        "attn_implementation": "eager",
    }
    c = Gemma3TextConfig(**{**options, **changes})
    model = Gemma3ForCausalLM(c).eval()
    randomise(model, seed)
    model.tie_weights()
    metadata = [
        ("general.architecture", "str", "gemma3"),
        ("gemma3.block_count", "u32", c.num_hidden_layers),
        ("gemma3.context_length", "u32", 512),
        ("gemma3.embedding_length", "u32", 64),
        ("gemma3.feed_forward_length", "u32", c.intermediate_size),
        ("gemma3.attention.head_count", "u32", c.num_attention_heads),
        ("gemma3.attention.head_count_kv", "u32", c.num_key_value_heads),
        ("gemma3.attention.layer_norm_rms_epsilon", "f32", c.rms_norm_eps),
        ("gemma3.attention.key_length", "u32", 32),
        ("gemma3.attention.value_length", "u32", 32),
        ("gemma3.attention.sliding_window", "u32", c.sliding_window),
        ("gemma3.rope.freq_base", "f32", 1e6),
    ]
    if factor != 1:
        metadata.append(("gemma3.rope.scaling.type", "str", "linear"))
        metadata.append(("gemma3.rope.scaling.factor", "f32", factor))
    return File(metadata + tokenizer_metadata(), tensors(model, shift=1.0)), model


def qwen2(seed: int = 0, **changes):
    """(file, transformers model) of a random Qwen 2, head tied or not."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    options = {
        "vocab_size": N_VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
    }
    c = Qwen2Config(**{**options, **changes})
    model = Qwen2ForCausalLM(c).eval()
    randomise(model, seed)
    model.tie_weights()
    metadata = [
        ("general.architecture", "str", "qwen2"),
        ("qwen2.block_count", "u32", c.num_hidden_layers),
        ("qwen2.context_length", "u32", 512),
        ("qwen2.embedding_length", "u32", 64),
        ("qwen2.feed_forward_length", "u32", c.intermediate_size),
        ("qwen2.attention.head_count", "u32", c.num_attention_heads),
        ("qwen2.attention.head_count_kv", "u32", c.num_key_value_heads),
        ("qwen2.attention.layer_norm_rms_epsilon", "f32", c.rms_norm_eps),
        ("qwen2.rope.freq_base", "f32", 1e6),
    ]
    made = tensors(model)
    for t in made:  # in qwen2, as in llama, this norm has another place and name
        t.name = t.name.replace("post_attention_norm", "ffn_norm")
    if not c.tie_word_embeddings:
        made.append(packed("output.weight", model.lm_head.weight.detach()))
    return File(metadata + tokenizer_metadata(), made), model


@torch.inference_mode()
def reference(model, ids: torch.Tensor) -> torch.Tensor:
    """The transformers model's logits: int64 [B, T] -> float32 [B, T, vocab]."""
    return model(ids, use_cache=False).logits


def some_ids(rows: int, steps: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, N_VOCAB, (rows, steps), generator=source)


def split_logits(model, ids: torch.Tensor, split, k: str = "f32", v: str = "f32") -> torch.Tensor:
    """Logits of `ids` fed in chunks of `split` tokens."""
    cache = model.new_cache(k, v, ids.shape[1], len(ids))
    with torch.inference_mode():
        return torch.cat([model(part, cache) for part in ids.split(split, 1)], 1)
