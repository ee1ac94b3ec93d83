"""A byte-level vocabulary of 270 tokens as GGUF metadata."""

from tokenizers.pre_tokenizers import ByteLevel

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type

ALPHABET = sorted(ByteLevel.alphabet())
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or")]
MERGES += [("1", "2"), ("é"[0], "x")]
PLAIN = [*ALPHABET, *(a + b for a, b in MERGES)]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<bos>"]
DEFINED = ["<tool>", "\n\n"]
TOKENS = [*PLAIN, *SPECIAL, *DEFINED]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def metadata(**changes) -> list[tuple]:
    """Keys under tokenizer.ggml. for `ggufwriter.File`; a change of None leaves the key out."""
    types = [NORMAL] * len(PLAIN) + [CONTROL] * len(SPECIAL) + [USER_DEFINED] * len(DEFINED)
    keys = {
        "model": ("str", "gpt2"),
        "pre": ("str", "smollm"),
        "tokens": ("[str]", TOKENS),
        "merges": ("[str]", [f"{a} {b}" for a, b in MERGES]),
        "token_type": ("[i32]", types),
        "bos_token_id": ("u32", TOKENS.index("<bos>")),
        "eos_token_id": ("u32", TOKENS.index("<|im_end|>")),
        **changes,
    }
    return [(f"tokenizer.ggml.{key}", *pair) for key, pair in keys.items() if pair is not None]
