"""Ids to text, byte by byte, so that characters split over tokens come out whole."""

import codecs
import re

from .vocabulary import BYTE, CONTROL, SPACE, UNKNOWN, USER_DEFINED, Vocabulary


def _printable_bytes() -> dict[str, int]:
    """Byte-level vocabularies write byte b as a printable character: the inverse of that map."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_BYTE_OF = _printable_bytes()


def token_bytes(vocab: Vocabulary, token: int) -> bytes:
    """The UTF-8 bytes a token stands for. Raises ValueError outside the vocabulary."""
    if not 0 <= token < len(vocab.tokens):
        raise ValueError(f"token id {token} is outside the vocabulary of {len(vocab.tokens)}")
    text, kind = vocab.tokens[token], vocab.types[token]
    if kind == BYTE and _BYTE.fullmatch(text):
        return bytes([int(text[1:-1], 16)])
    if kind in (CONTROL, UNKNOWN, USER_DEFINED) or token in vocab.special:
        return text.encode()
    if vocab.kind == "gpt2" and all(c in _BYTE_OF for c in text):
        return bytes(_BYTE_OF[c] for c in text)
    return text.replace(SPACE, " ").encode() if vocab.kind != "gpt2" else text.encode()


class Stream:
    """Turns ids into text as they come; an unfinished character waits for its other bytes."""

    def __init__(self, vocab: Vocabulary, special: bool = False):
        self._vocab, self._hidden = vocab, frozenset() if special else vocab.hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes; control tokens give none unless `special`."""
        if token in self._hidden:
            return ""
        return self._decoder.decode(token_bytes(self._vocab, int(token)))

    def flush(self) -> str:
        """What is left: a replacement character for an unfinished one."""
        return self._decoder.decode(b"", final=True)
