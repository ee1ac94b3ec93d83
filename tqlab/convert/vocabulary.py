"""Tokeniser and chat template of a checkpoint as GGUF metadata (spec gemma4 4)."""

import json
import re

from ..gguf_write import encode
from .checkpoint import Checkpoint

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Regular expression of the Split step -> tokenizer.ggml.pre
_SPLITS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
# Gemma 4's control tokens that are part of the visible answer.
_VISIBLE = {
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
}


def metadata(checkpoint: Checkpoint, arch: str, n_vocab: int) -> dict[str, bytes]:
    """Encoded tokenizer.* keys for a vocabulary of `n_vocab` rows.

    Raises: FileNotFoundError without tokenizer.json; ValueError for a kind that is not read.
    """
    _check_present(checkpoint)
    spec = checkpoint.json("tokenizer.json", needed=True)
    model = spec.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise ValueError(f"{checkpoint.path}: tokenizer.json is {model.get('type')!r}, not BPE")
    byte_level = "ByteLevel" in json.dumps(spec.get("pre_tokenizer"))
    vocab = _Vocabulary(spec, arch, n_vocab)
    keys = _byte_level(checkpoint, spec) if byte_level else _characters(spec, arch, vocab)
    keys["tokens"] = ("[str]", vocab.tokens)
    keys["token_type"] = ("[i32]", vocab.types)
    keys["merges"] = ("[str]", vocab.merges)
    keys |= _special_ids(checkpoint, vocab)
    keys["add_bos_token"] = ("bool", _adds_bos(checkpoint, spec, arch))
    if template := chat_template(checkpoint):
        keys["chat_template"] = ("str", template)
    prefix = {key: "tokenizer." if key == "chat_template" else "tokenizer.ggml." for key in keys}
    return {prefix[key] + key: encode(*value) for key, value in keys.items()}


def _check_present(checkpoint: Checkpoint) -> None:
    """Where only an older form of the tokeniser is there, say how to make tokenizer.json of it."""
    forms = ("tokenizer.json", "tokenizer.model", "vocab.json")
    found = [name for name in forms if checkpoint.has_file(name)]
    if found and found[0] != "tokenizer.json":
        call = f"from_pretrained('{checkpoint.path}').save_pretrained('{checkpoint.path}')"
        raise FileNotFoundError(
            f"{checkpoint.path}: tokenizer.json is missing; make it from {found[0]}: "
            "pip install transformers sentencepiece protobuf, then "
            f'python -c "from transformers import AutoTokenizer as T; T.{call}"'
        )


class _Vocabulary:
    """Tokens by id, padded or cut to the embedding's rows, with their types and merges."""

    def __init__(self, spec: dict, arch: str, n_vocab: int):
        model, added = spec["model"], spec.get("added_tokens") or []
        by_id = {i: token for token, i in model["vocab"].items()}
        by_id |= {a["id"]: a["content"] for a in added}
        self.ids = {token: i for i, token in sorted(by_id.items(), reverse=True) if i < n_vocab}
        self.tokens = [by_id.get(i, f"[PAD{i}]") for i in range(n_vocab)]
        self.types = [NORMAL if i in by_id else UNUSED for i in range(n_vocab)]
        for a in added:
            if a["id"] < n_vocab:
                self.types[a["id"]] = CONTROL if a.get("special") else USER_DEFINED
        if model.get("byte_fallback"):
            self._bytes_and_unknown(model.get("unk_token"), arch)
        pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        self.pairs = [tuple(p) for p in pairs]
        # Inside one string the parts are told apart by a space, so spaces are spelled differently.
        self.merges = [" ".join(part.replace(" ", chr(288)) for part in p) for p in self.pairs]

    def _bytes_and_unknown(self, unknown: str | None, arch: str) -> None:
        for i, token in enumerate(self.tokens):
            if _BYTE.fullmatch(token):
                self.types[i] = BYTE
            elif token == unknown and arch != "gemma4":
                self.types[i] = UNKNOWN
            elif arch == "gemma4" and token in _VISIBLE:
                self.types[i] = USER_DEFINED
            elif arch != "gemma4" and self.types[i] == USER_DEFINED:
                self.tokens[i] = token.replace("\u2581", " ")


def _byte_level(checkpoint: Checkpoint, spec: dict) -> dict[str, tuple]:
    pre = pre_tokenizer(spec.get("pre_tokenizer"))
    if pre is None:
        raise ValueError(
            f"{checkpoint.path}: the pre_tokenizer of tokenizer.json is none of gpt-2, smollm, "
            f"llama-bpe, qwen2: {json.dumps(spec['pre_tokenizer'])[:200]}"
        )
    return {"model": ("str", "gpt2"), "pre": ("str", pre)}


def pre_tokenizer(step: dict) -> str | None:
    """tokenizer.ggml.pre of a tokenizer.json's pre_tokenizer, or None when it is not known."""
    steps = step.get("pretokenizers", [step])
    kinds = [s.get("type") for s in steps]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        return _SPLITS.get(steps[0].get("pattern", {}).get("Regex"))
    return None


def _characters(spec: dict, arch: str, vocab: _Vocabulary) -> dict[str, tuple]:
    """BPE over characters with byte fallback: "gemma4", or SentencePiece by scores ("llama").

    Both kinds carry the merges; the scores repeat their order for readers that know only those.
    """
    kind = "gemma4" if arch == "gemma4" else "llama"
    scores = [-1000.0] * len(vocab.tokens) if kind == "gemma4" else _scores(vocab)
    return {
        "model": ("str", kind),
        "scores": ("[f32]", scores),
        "add_space_prefix": ("bool", _prefixes_space(spec)),
    }


def _prefixes_space(spec: dict) -> bool:
    """Whether a space goes before the text: a normaliser's step, or, since 2024, Metaspace's."""
    pre = spec.get("pre_tokenizer") or {}
    metaspace = pre.get("type") == "Metaspace" and pre.get("prepend_scheme") != "never"
    return metaspace or "Prepend" in json.dumps(spec.get("normalizer"))


def _scores(vocab: _Vocabulary) -> list[float]:
    """Minus the rank of the first merge that makes a piece; what no merge makes comes last."""
    scores = [-1.0 - len(vocab.pairs)] * len(vocab.tokens)
    for rank, pair in reversed(list(enumerate(vocab.pairs))):
        if (i := vocab.ids.get("".join(pair))) is not None:
            scores[i] = -1.0 - rank
    return scores


def _special_ids(checkpoint: Checkpoint, vocab: _Vocabulary) -> dict[str, tuple]:
    """By text from tokenizer_config.json, else by number from config.json."""
    named = checkpoint.json("special_tokens_map.json") | checkpoint.json("tokenizer_config.json")
    ids = {}
    for name, key in _SPECIAL.items():
        token = named.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        given = vocab.ids.get(token, checkpoint.config.get(f"{name}_id"))
        given = given[0] if isinstance(given, list) and given else given
        if isinstance(given, int) and 0 <= given < len(vocab.tokens):
            ids[key] = ("u32", given)
    return ids


def _adds_bos(checkpoint: Checkpoint, spec: dict, arch: str) -> bool:
    if arch.startswith("gemma"):
        return True
    stated = checkpoint.json("tokenizer_config.json").get("add_bos_token")
    if stated is not None:
        return bool(stated)
    post = spec.get("post_processor") or {}
    steps = post.get("processors", [post])
    single = next((s["single"] for s in steps if s.get("type") == "TemplateProcessing"), [])
    return bool(single) and "SpecialToken" in single[0]


def chat_template(checkpoint: Checkpoint) -> str | None:
    """From chat_template.jinja, chat_template.json or tokenizer_config.json, in that order."""
    if text := checkpoint.text("chat_template.jinja"):
        return text
    for filename in ("chat_template.json", "tokenizer_config.json"):
        given = checkpoint.json(filename).get("chat_template")
        if isinstance(given, list):
            given = next((t["template"] for t in given if t.get("name") == "default"), None)
        if given:
            return str(given)
    return None
