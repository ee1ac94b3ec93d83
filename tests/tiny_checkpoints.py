"""Tiny random checkpoints written by transformers, with tokenisers made here: test data only."""

from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

DATA = Path(__file__).parent / "data"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEXT = ["the cat sat on the mat", "in the beginning there was the word", "2024 cats, 31 dogs"] * 4
N_VOCAB = 384
_SIZE = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA4 = _SIZE | {
    "vocab_size_per_layer_input": N_VOCAB,
    "head_dim": 32,
    "global_head_dim": 64,
    "sliding_window": 8,
    "final_logit_softcapping": 5.0,
    "hidden_size_per_layer_input": 0,
}
S, G = "sliding_attention", "full_attention"


def _llama(**more):
    options = _SIZE | {"num_hidden_layers": 2, "num_key_value_heads": 2} | more
    return LlamaForCausalLM(LlamaConfig(**options))


def _gemma3():
    text = Gemma3TextConfig(
        **_SIZE,
        num_hidden_layers=7,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=8,
        query_pre_attn_scalar=32,
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(whole)


def _gemma4(layer_types, **more):
    config = Gemma4TextConfig(
        **_GEMMA4 | {"layer_types": layer_types, "num_hidden_layers": len(layer_types)} | more
    )
    return Gemma4ForCausalLM(config)


MODELS = {
    "llama": lambda: _llama(rope_parameters=_LLAMA3, tie_word_embeddings=False),
    "llama-bias": lambda: _llama(attention_bias=True, tie_word_embeddings=True, head_dim=32),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_SIZE, num_hidden_layers=2, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "gemma3": _gemma3,
    "gemma4": lambda: _gemma4(
        [S, S, G],
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
    ),
    "gemma4-e": lambda: _gemma4(
        [S, S, G, S, G],
        num_key_value_heads=1,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=16,
    ),
    "gemma4-moe": lambda: _gemma4(
        [S, S, G],
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        enable_moe_block=True,
        num_experts=12,
        top_k_experts=4,
        moe_intermediate_size=32,
    ),
}


def build(name: str):
    """A model with random weights in which no norm, scale or bias is trivial."""
    torch.manual_seed(7)
    model = MODELS[name]().float().eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, p in model.state_dict().items():
            if key.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=generator) / 4)
            elif p.dim() == 1 and p.is_floating_point():
                p.copy_(0.4 + 1.2 * torch.rand(p.shape, generator=generator))
            elif p.dim() >= 2:
                p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return model


def save(name: str, folder, dtype=torch.float32, shard="1GB"):
    """Write the checkpoint with its tokeniser; returns the model it was made from."""
    model = build(name).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer = gemma_tokenizer() if name.startswith("gemma") else byte_level_tokenizer(name)
    tokenizer.save_pretrained(folder)
    return model


def byte_level_tokenizer(name: str) -> PreTrainedTokenizerFast:
    hf = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    hf.pre_tokenizer = (
        pre_tokenizers.Sequence([digits, byte_level]) if name == "qwen2" else byte_level
    )
    hf.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    hf.train_from_iterator(TEXT, trainer)
    hf.add_tokens([AddedToken("<think>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=hf,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*specials, *(f"<0x{i:02X}>" for i in range(256)), "\n\n", "▁▁", "<|turn>", "<turn|>"]
    letters = sorted({c for t in TEXT for c in t.replace(" ", "▁")} | {"\n"})
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "t"), ("▁", "▁"), ("\n", "\n")]
    pieces += letters + ["th", "the", "▁the", "at"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    bpe = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    hf = Tokenizer(bpe)
    hf.normalizer = normalizers.Replace(" ", "▁")
    hf.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    hf.add_special_tokens(
        [AddedToken(t, normalized=False) for t in [*specials, "<|turn>", "<turn|>"]]
    )
    hf.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=hf,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        chat_template=TEMPLATE,
    )
