"""Tokenisers of the `tokenizers` library, one builder a kind (spec gemma4 4)."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..gguf_file import GGUFError
from .vocabulary import SPACE, USER_DEFINED, Vocabulary


def build(vocab: Vocabulary) -> Tokenizer:
    """The tokeniser of a file's vocabulary. Raises GGUFError for a pre-tokeniser not known."""
    hf = _byte_level(vocab) if vocab.kind == "gpt2" else _spaced(vocab)

    def added(ids, special):
        texts = [vocab.tokens[i] for i in sorted(ids) if vocab.tokens[i]]
        return [AddedToken(t, normalized=False, special=special) for t in texts]

    user = {i for i, kind in enumerate(vocab.types) if kind == USER_DEFINED}
    hf.add_special_tokens(added(vocab.special, True))
    hf.add_tokens(added(user - vocab.special, False))
    return hf


def _bpe(vocab: Vocabulary, merges, **options) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocab=vocab.pieces(), merges=merges, **options))
    except Exception as error:  # the library's own error type is plain Exception
        raise GGUFError(f"{vocab.path}: the vocabulary does not fit its merges: {error}") from None


def _spaced(vocab: Vocabulary) -> Tokenizer:
    """BPE over characters with spaces made visible; unknown characters become byte tokens."""
    merges = vocab.merges_from_scores() if vocab.kind == "spm" else vocab.merges()
    unknown = "<unk>" if "<unk>" in vocab.ids else None
    hf = _bpe(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    steps = [normalizers.Prepend(SPACE)] if vocab.space_prefix else []
    hf.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    return hf


def _byte_level(vocab: Vocabulary) -> Tokenizer:
    """BPE over bytes written as printable characters."""
    pre = vocab.pre or "gpt-2"
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise GGUFError(f"{vocab.path}: pre-tokenizer {pre!r} is not known; known: {known}")
    hf = _bpe(vocab, vocab.merges(), ignore_merges=pre == "llama-bpe")
    hf.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    if pre == "qwen2":
        hf.normalizer = normalizers.NFC()
    hf.decoder = decoders.ByteLevel()
    return hf


def _bytes(use_regex: bool):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(pattern: str):
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, _bytes(use_regex=False)])


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# tokenizer.ggml.pre of byte-level vocabularies -> how text is cut before merging.
_PRE_TOKENIZERS = {
    "gpt-2": lambda: _bytes(use_regex=True),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True)]
    ),
    "llama-bpe": lambda: _split(_WORDS + r"\p{N}{1,3}" + _REST),
    "qwen2": lambda: _split(_WORDS + r"\p{N}" + _REST),
}
