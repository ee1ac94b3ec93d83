"""Tokenisers rebuilt from a GGUF file's own metadata with the `tokenizers` library.

Which kind a file holds is told by tokenizer.ggml.model and .pre (spec gemma4 4).
"""

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from . import chat
from .gguf_file import GGUFError, GGUFFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def _byte_level(use_regex: bool):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(pattern: str):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), _byte_level(use_regex=False)]
    )


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# tokenizer.ggml.pre of byte-level vocabularies -> how text is cut before merging.
_PRE_TOKENIZERS = {
    "gpt-2": lambda: _byte_level(use_regex=True),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _byte_level(use_regex=True)]
    ),
    "llama-bpe": lambda: _split(_WORDS + r"\p{N}{1,3}" + _REST),
}


class Tokenizer:
    """Text to ids and back.

    Fields: bos_id, eos_id (int | None); adds_bos (whether the vocabulary asks for BOS); n_vocab;
    template (the chat template, or None).
    """

    def __init__(self, hf: HFTokenizer, file: GGUFFile):
        self._hf, self.n_vocab = hf, len(file.need("tokenizer.ggml.tokens"))
        self.bos_id = self._special(file, "bos_token_id")
        self.eos_id = self._special(file, "eos_token_id")
        asked = bool(file.get("tokenizer.ggml.add_bos_token", False))
        self.adds_bos = asked and self.bos_id is not None
        self.template = file.get("tokenizer.chat_template")
        self._path = file.path

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> "Tokenizer":
        """Rebuild the tokeniser. Raises GGUFError for kinds that are not known."""
        kind = file.need("tokenizer.ggml.model")
        if kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise GGUFError(f"{file.path}: tokenizer model {kind!r} is not known; known: {known}")
        return cls(_KINDS[kind](file), file)

    def encode(self, text: str, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of `text`; BOS in front only where the vocabulary asks for it.

        `special=True` reads control tokens such as <|im_end|> in the text as themselves; otherwise
        they are plain characters.
        """
        self._hf.encode_special_tokens = not special
        ids = self._hf.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if add_bos and self.adds_bos else ids

    def decode(self, ids, special: bool = False) -> str:
        """Text of `ids` (a list or a 1-D tensor); control tokens are left out unless `special`."""
        return self._hf.decode([int(i) for i in ids], skip_special_tokens=not special)

    def chat(self, messages: list[dict], thinking: bool = False) -> str:
        """The prompt for [{"role": ..., "content": ...}, ...], ready for the model's answer.

        Raises: ValueError when the file has no template, or the template fails.
        """
        if not self.template:
            raise ValueError(f"{self._path}: no chat template in this file; pass a plain prompt")
        tokens = {"bos_token": self._text(self.bos_id), "eos_token": self._text(self.eos_id)}
        return chat.render(self.template, messages, thinking=thinking, **tokens)

    def _special(self, file: GGUFFile, key: str) -> int | None:
        value = file.get(f"tokenizer.ggml.{key}")
        if value is not None and not (isinstance(value, int) and 0 <= value < self.n_vocab):
            raise GGUFError(
                f"{file.path}: tokenizer.ggml.{key} is {value!r}, outside the vocabulary"
            )
        return value

    def _text(self, token: int | None) -> str:
        return "" if token is None else self._hf.id_to_token(token)


def _byte_level_bpe(file: GGUFFile) -> HFTokenizer:
    """tokenizer.ggml.model "gpt2": byte-level BPE."""
    pre = file.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise GGUFError(f"{file.path}: pre-tokenizer {pre!r} is not known; known: {known}")
    merges = [_merge(file, m) for m in file.need("tokenizer.ggml.merges")]
    ignore_merges = pre == "llama-bpe"
    try:
        bpe = models.BPE(vocab=_vocabulary(file), merges=merges, ignore_merges=ignore_merges)
    except Exception as error:  # the library's own error type is plain Exception
        raise GGUFError(f"{file.path}: the vocabulary does not fit its merges: {error}") from None
    hf = HFTokenizer(bpe)
    hf.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    hf.decoder = decoders.ByteLevel()
    _add_special(hf, file)
    return hf


def _vocabulary(file: GGUFFile) -> dict[str, int]:
    """Token -> id; of duplicates the first wins."""
    vocab: dict[str, int] = {}
    for i, token in enumerate(file.need("tokenizer.ggml.tokens")):
        vocab.setdefault(token, i)
    return vocab


def _merge(file: GGUFFile, merge: str) -> tuple[str, str]:
    """ "left right", split at the first space from index 1 (left is never empty)."""
    cut = merge.find(" ", 1)
    if cut < 0:
        raise GGUFError(f"{file.path}: merge {merge!r} is not two tokens with a space between")
    return merge[:cut], merge[cut + 1 :]


def _add_special(hf: HFTokenizer, file: GGUFFile) -> None:
    tokens = file.need("tokenizer.ggml.tokens")
    types = file.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise GGUFError(f"{file.path}: {len(types)} token types for {len(tokens)} tokens")

    def added(kinds, special):
        chosen = [t for t, kind in zip(tokens, types, strict=True) if kind in kinds and t]
        return [AddedToken(t, normalized=False, special=special) for t in chosen]

    hf.add_special_tokens(added((CONTROL, UNKNOWN), True))
    hf.add_tokens(added((USER_DEFINED,), False))


_KINDS = {"gpt2": _byte_level_bpe}
