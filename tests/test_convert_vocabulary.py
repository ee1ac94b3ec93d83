"""Converted SentencePiece vocabularies: the scores alone lead to the ids of the source's merges.

llama.cpp reads only the scores of such a file, so they must say what the merges say.
"""

import random
from itertools import pairwise

import pytest
import tiny_checkpoints as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_spm import spm_reference
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Source
from transformers.convert_slow_tokenizer import generate_merges

from tqlab.convert import convert_hf, vocabulary
from tqlab.gguf_file import GGUFFile
from tqlab.tokenizer import Tokenizer
from tqlab.tokenizer.vocabulary import Vocabulary

SPACE = "\u2581"
LETTERS = list(f"abcd{SPACE}")
TEXTS = [
    "  a  b   c    d     a",
    "日本語のテキスト、です。",
    "Привет, мир! Как дела?",
    "مرحبا بالعالم",
    "हिन्दी में लिखा",
    "สวัสดีชาวโลก",
    "🎉👩‍👩‍👧‍👦 e\u0301 ﬁ ①",
    "def f(x):\n\treturn x**2\n\n\n    # dada",
    "<b>html</b> </s> <0x41>",
    "ab" * 300 + " " * 40 + "\n" * 40,
]


def source(prefix: str) -> Source:
    """A tokenizer.json as transformers makes it from SentencePiece: all splits, best score first.

    `prefix`: where a space in front comes from, "normalizer", "pre_tokenizer" or "none".
    """
    grown, rng = set(), random.Random(5)
    while len(grown) < 117:
        grown.add("".join(rng.choices(LETTERS, k=rng.randint(2, 5))) + rng.choice(["", "a"]))
    pieces = [*LETTERS, *sorted(grown)]
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    vocab = {p: i for i, p in enumerate([*specials, *pieces])}
    ranks = rng.sample(range(1000), len(pieces))
    scores = {p: -float(n) for p, n in zip(pieces, ranks, strict=True)}
    merges = generate_merges(vocab, scores)
    hf = Source(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend(SPACE)] if prefix == "normalizer" else []
    hf.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if prefix == "pre_tokenizer":
        hf.normalizer = None
        hf.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    hf.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback()])
    hf.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    return hf


def without_merges(hf: Source, folder) -> GGUFFile:
    """The converted file of a checkpoint with that tokenizer.json, its merges taken away."""
    tiny.save("llama", folder / "c")
    hf.save(str(folder / "c" / "tokenizer.json"))
    file = GGUFFile(convert_hf(folder / "c", folder / "m.gguf", progress=False).path)
    assert Vocabulary(file).kind == "bpe"
    del file.metadata["tokenizer.ggml.merges"]
    assert Vocabulary(file).kind == "spm"
    return file


@pytest.fixture(scope="module", params=["normalizer", "pre_tokenizer", "none"])
def converted(request, tmp_path_factory):
    """(source tokeniser, the converted file without its merges)."""
    hf = source(request.param)
    return hf, without_merges(hf, tmp_path_factory.mktemp(request.param))


def expected(hf: Source, text: str) -> list[int]:
    hf.encode_special_tokens = True
    if hf.pre_tokenizer and text[0] in (" ", SPACE):
        text = " " + text  # SentencePiece and GGUF put a space before a space, Metaspace does not
    return hf.encode(text, add_special_tokens=False).ids


def by_scores(file: GGUFFile, text: str) -> list[int]:
    """Our own plain SentencePiece over the scores of the file."""
    tokens, scores = (file.need(f"tokenizer.ggml.{key}") for key in ("tokens", "scores"))
    ids = {t: i for i, t in enumerate(tokens)}
    pieces = {t: scores[i] for t, i in ids.items() if i > 258 and not t.startswith("[PAD")}
    prefix = SPACE if file.need("tokenizer.ggml.add_space_prefix") else ""
    parts = spm_reference(prefix + text.replace(" ", SPACE), pieces, pieces)
    units = [[p] if p in ids else [f"<0x{b:02X}>" for b in p.encode()] for p in parts]
    return [ids[u] for unit in units for u in unit]


@settings(max_examples=300)
@given(st.text("abcd \u2581é日🎉\n<", min_size=1, max_size=40) | st.text(min_size=1, max_size=40))
def test_any_text(converted, text):
    hf, file = converted
    assert by_scores(file, text) == expected(hf, text)


def test_our_tokeniser_reads_the_scores_so_too(converted):
    hf, file = converted
    ours, rng = Tokenizer.from_gguf(file), random.Random(6)
    for text in TEXTS + ["".join(rng.choices("abcd ", k=200)) for _ in range(100)]:
        assert ours.encode(text, add_bos=False) == expected(hf, text), text


def test_runs_of_spaces_are_cut_out_before_merging(tmp_path):
    """As SentencePiece does with user-defined pieces; the file spells them with real spaces."""
    hf = source("none")
    hf.add_tokens([AddedToken(SPACE * n, normalized=True) for n in (2, 3)])
    file = without_merges(hf, tmp_path)
    assert [t for t in file.need("tokenizer.ggml.tokens") if " " in t] == ["  ", "   "]
    for text in ("  a  b   c    d     a", "    dab\n  dab", "日  本   "):
        assert Tokenizer.from_gguf(file).encode(text, add_bos=False) == expected(hf, text), text


def test_a_piece_that_no_merge_makes_comes_last():
    model = {"vocab": {"a": 0, "b": 1, "ab": 2, "ba": 3, "<pad>": 4}, "merges": [["a", "b"]]}
    made = vocabulary._Vocabulary({"model": model}, "llama", 5)
    assert vocabulary._scores(made) == [-2.0, -2.0, -1.0, -2.0, -2.0]


def test_gemma3_scores_merge_in_the_order_of_its_own(gemma3_path):
    """262144 pieces of every script: the merges in the order of the original scores."""
    vocab = Vocabulary(GGUFFile(gemma3_path))
    merges = vocab.merges_from_scores()
    ids = {t.replace(" ", SPACE): i for i, t in enumerate(vocab.tokens)}
    model = {"vocab": ids, "merges": merges}
    scores = vocabulary._scores(vocabulary._Vocabulary({"model": model}, "gemma3", len(ids)))
    made = [ids["".join(pair)] for pair in merges]
    assert all(scores[a] > scores[b] for a, b in pairwise(made) if a != b)
