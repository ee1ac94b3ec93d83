"""Tokenisers rebuilt from a GGUF file's own metadata with the `tokenizers` library.

Which kind a file holds is told by tokenizer.ggml.model and .pre (spec gemma4 4).
"""

import re
from functools import cached_property

from .. import chat
from ..gguf_file import GGUFFile
from .build import build
from .stream import Stream
from .vocabulary import Vocabulary


class Tokenizer:
    """Text to ids and back.

    Fields: bos_id, eos_id (int | None); adds_bos (whether the vocabulary asks for BOS); stop_ids
    (ids that end an answer); n_vocab; tokens (as the file spells them, by id); template (the chat
    template, or None).
    """

    def __init__(self, vocab: Vocabulary):
        self._vocab, self._hf = vocab, build(vocab)
        self.tokens, self.n_vocab = vocab.tokens, len(vocab.tokens)
        self.bos_id, self.eos_id, self.adds_bos = vocab.bos_id, vocab.eos_id, vocab.adds_bos
        self.stop_ids = vocab.stop_ids
        self.template = vocab.file.get("tokenizer.chat_template") or None
        self._arch = vocab.file.get("general.architecture")
        per_layer = f"{self._arch}.embedding_length_per_layer_input"
        self._small = bool(vocab.file.get(per_layer))  # E2B, E4B

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> "Tokenizer":
        """Rebuild the tokeniser. Raises GGUFError for kinds that are not known."""
        return cls(Vocabulary(file))

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
        stream = self.stream(special)
        text = "".join([stream.push(int(i)) for i in ids]) + stream.flush()
        return text.removeprefix(" ") if self._vocab.space_prefix else text

    def stream(self, special: bool = False) -> Stream:
        """A decoder for ids that come one by one: `push(id)` gives text, `flush()` the rest."""
        return Stream(self._vocab, special)

    def chat(
        self, messages: list[dict], thinking: bool = False, tools: list[dict] | None = None
    ) -> str:
        """The prompt for [{"role": ..., "content": ...}, ...], ready for the model's answer.

        Files without a template get a hand-built one where the architecture is known.
        Raises: ValueError when there is neither, or the template fails.
        """
        if not self.template:
            return self._without_template(messages, thinking, tools)
        messages = chat.fold_tool_results(self.template, messages)
        tokens = {"bos_token": self._text(self.bos_id), "eos_token": self._text(self.eos_id)}
        text = chat.render(self.template, messages, thinking=thinking, tools=tools, **tokens)
        unanswered = self._vocab.gemma4 and text.endswith("<turn|>\n")
        return text + "<|turn>model\n" if unanswered else text

    def chat_ids(
        self, messages: list[dict], thinking: bool = False, tools: list[dict] | None = None
    ) -> list[int]:
        """The prompt's ids, where only the template's own control tokens are control tokens.

        A control token's text inside a message is broken by a mark before the template sees it; the
        rendered text is cut at the marks and encoded piece by piece.
        """
        # Before the marks: a result's JSON may spell a control token in escapes.
        messages = chat.fold_tool_results(self.template or "", messages)
        if self._vocab.gemma4:
            messages = [chat.without_thoughts(m) for m in messages]
        mark = chat.unused_mark([messages, tools])
        shielded = chat.shield([messages, tools], self._special_text, mark)
        pieces = self.chat(shielded[0], thinking, shielded[1]).split(mark)
        ids = [i for piece in pieces for i in self.encode(piece, add_bos=False, special=True)]
        doubled = not self.adds_bos or ids[:1] == [self.bos_id]
        return ids if doubled else [self.bos_id, *ids]

    def _without_template(self, messages, thinking, tools) -> str:
        bos = self._text(self.bos_id)
        if self._arch == "gemma4":
            return chat.gemma4_prompt(messages, thinking, bos, primer=not self._small, tools=tools)
        if self._arch == "gemma3":
            return chat.gemma3_prompt(messages, bos, tools=tools)
        raise ValueError(f"{self._vocab.path}: no chat template in this file; pass a plain prompt")

    @cached_property
    def _special_text(self) -> re.Pattern:
        """The first character of any control token's text."""
        texts = {self._vocab.tokens[i] for i in self._vocab.special}
        longer = sorted(re.escape(t) for t in texts if len(t) > 1)
        return re.compile(f"(?={'|'.join(longer) or '(?!)'})(.)", re.DOTALL)

    def _text(self, token: int | None) -> str:
        return "" if token is None else self._vocab.tokens[token]


__all__ = ["Stream", "Tokenizer"]
