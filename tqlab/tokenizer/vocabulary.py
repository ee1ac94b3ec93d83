"""What a file's metadata says about its tokens, with the quirks of old files put right."""

import re

from ..gguf_file import GGUFError, GGUFFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # stands for a space in SentencePiece vocabularies
_PIECES = (NORMAL, USER_DEFINED, UNUSED)  # what merging can make

# Texts that end an answer wherever a vocabulary has them as control tokens (llama.cpp's list).
_ENDINGS = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>"),
    *("<|end_of_text|>", "<|end|>", "<end_of_turn>", "<EOT>"),
)
_GEMMA4_ENDINGS = ("<eos>", "<turn|>", "<|tool_response>")
# Gemma 4's control tokens by their form: files disagree about their types.
_GEMMA4_CONTROL = re.compile(r'<\|[\w"]+\|?>|<[\w"]+\|>|<pad>|<eos>|<bos>|<mask>')


class Vocabulary:
    """Tokens and their roles.

    Fields: tokens; types; ids (text -> id, the first of duplicates); kind ("gpt2", "spm" or "bpe");
    pre; gemma4 (whether Gemma 4's rules hold); bos_id, eos_id (int | None); adds_bos; space_prefix
    (a space goes before the text); stop_ids; special (ids that plain text never becomes); hidden
    (ids that decoded text leaves out).
    Raises: GGUFError for metadata that contradicts itself.
    """

    def __init__(self, file: GGUFFile):
        self.path, self.file = file.path, file
        self.tokens: list[str] = file.need("tokenizer.ggml.tokens")
        if not self.tokens or not all(isinstance(t, str) for t in self.tokens):
            raise GGUFError(f"{file.path}: tokenizer.ggml.tokens is not a list of texts")
        self.types = file.get("tokenizer.ggml.token_type") or [NORMAL] * len(self.tokens)
        self._same_length("token types", self.types)
        self.ids: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            self.ids.setdefault(token, i)
        self.pre = file.get("tokenizer.ggml.pre")
        self.kind, self.gemma4 = self._kind()
        self._take_ends()
        self._take_roles()

    def _kind(self) -> tuple[str, bool]:
        """A "llama" file with merges is BPE over characters: its scores say nothing."""
        model = self.file.need("tokenizer.ggml.model")
        kinds = {"gpt2": "gpt2", "gemma4": "bpe", "llama": "spm"}
        if model not in kinds:
            known = ", ".join(kinds)
            raise GGUFError(f"{self.path}: tokenizer model {model!r} is not known; known: {known}")
        merged = model == "llama" and self.file.get("tokenizer.ggml.merges")
        return "bpe" if merged else kinds[model], "gemma4" in (model, self.pre)

    def _take_ends(self) -> None:
        self.bos_id, self.eos_id = self._id("bos_token_id"), self._id("eos_token_id")
        asked = self.file.get("tokenizer.ggml.add_bos_token")
        if asked is None:
            asked = self.kind == "spm" or self.pre == "llama-bpe"
        prefix = self.file.get("tokenizer.ggml.add_space_prefix")
        self.space_prefix = self.kind == "spm" if prefix is None else bool(prefix)
        if self.gemma4:  # old files say otherwise, and are wrong
            self.bos_id = self.ids.get("<bos>", self.bos_id)
            asked, self.space_prefix = True, False
        self.adds_bos = bool(asked) and self.bos_id is not None

    def _take_roles(self) -> None:
        kinds = dict(enumerate(self.types))
        control = {i for i, kind in kinds.items() if kind in (CONTROL, UNKNOWN)}
        self.special = control
        if self.gemma4:
            named = {i for t, i in self.ids.items() if _GEMMA4_CONTROL.fullmatch(t)}
            self.special = control | named
        self.stop_ids = self._stop_ids()
        visible = {i for i in self.special if kinds[i] == USER_DEFINED}
        self.hidden = (self.special - visible) | (self.stop_ids & self.special)

    def _stop_ids(self) -> frozenset[int]:
        """Gemma 4: three texts, never "</s>", which is an html tag there."""
        texts = _GEMMA4_ENDINGS if self.gemma4 else _ENDINGS
        found = {self.ids[t] for t in texts if t in self.ids}
        if not self.gemma4:
            found = {i for i in found if self.types[i] in (CONTROL, USER_DEFINED)}
            keys = ("eos_token_id", "eot_token_id", "eom_token_id")
            found |= {i for i in map(self._id, keys) if i is not None}
        return frozenset(found)

    def _id(self, key: str) -> int | None:
        value = self.file.get(f"tokenizer.ggml.{key}")
        if value is not None and not (isinstance(value, int) and 0 <= value < len(self.tokens)):
            raise GGUFError(
                f"{self.path}: tokenizer.ggml.{key} is {value!r}, outside the vocabulary"
            )
        return value

    def pieces(self) -> dict[str, int]:
        """Text -> id as merges spell it: runs of spaces, stored as they are, have both forms."""
        if self.kind == "gpt2":
            return self.ids
        spaced = {t.replace(" ", SPACE): i for t, i in self.ids.items() if " " in t}
        return spaced | self.ids

    def merges(self) -> list[tuple[str, str]]:
        """The file's merges. Raises GGUFError for one that is not two tokens."""
        return [self._merge(m) for m in self.file.need("tokenizer.ggml.merges")]

    def _merge(self, merge: str) -> tuple[str, str]:
        """ "left right", split at the first space from index 1 (left is never empty)."""
        cut = merge.find(" ", 1)
        if cut < 0:
            raise GGUFError(f"{self.path}: merge {merge!r} is not two tokens with a space between")
        return merge[:cut], merge[cut + 1 :]

    def merges_from_scores(self) -> list[tuple[str, str]]:
        """SentencePiece as BPE: every split of every piece into two pieces, best score first."""
        scores = self.file.need("tokenizer.ggml.scores")
        self._same_length("scores", scores)
        known, best = self.pieces(), []
        for piece, i in known.items():
            if self.types[i] in _PIECES and " " not in piece:
                cuts = ((piece[:c], piece[c:]) for c in range(1, len(piece)))
                best += [(-scores[i], cut) for cut in cuts if cut[0] in known and cut[1] in known]
        best.sort(key=lambda found: found[0])
        return [cut for _, cut in best]

    def _same_length(self, what: str, values: list) -> None:
        if len(values) != len(self.tokens):
            raise GGUFError(f"{self.path}: {len(values)} {what} for {len(self.tokens)} tokens")
