"""Vocabularies of Gemma and Llama: BPE over characters, SentencePiece from scores, their quirks."""

import itertools
import random
import string

import pytest
import tiny
from ggufwriter import File, small

from tqlab.gguf_file import GGUFError, GGUFFile
from tqlab.tokenizer import Tokenizer
from tqlab.tokenizer.vocabulary import Vocabulary

TEXTS = [
    "the then  the\n\n\nthe",
    " leading and trailing ",
    "naïve 日本語 🎉\u200b\ttab",
    "",
    " ",
    "\n",
    "</s><eos>",
]


def file_of(tmp_path, metadata, architecture="gemma4"):
    entries = [("general.architecture", "str", architecture), *metadata]
    return GGUFFile(File(entries, small().tensors).write(tmp_path / "vocab.gguf"))


def gemma4(tmp_path, drop=(), **changes):
    """A tokeniser of the small Gemma 4 vocabulary; `changes` replace tokenizer.ggml.* entries."""
    replaced = [f"tokenizer.ggml.{key}" for key in changes]
    metadata = [e for e in tiny.tokenizer_metadata() if e[0] not in replaced and e[0] not in drop]
    metadata += [(f"tokenizer.ggml.{key}", *entry) for key, entry in changes.items()]
    return Tokenizer.from_gguf(file_of(tmp_path, metadata))


def tokens_of(tokenizer, ids):
    return [tokenizer._vocab.tokens[i] for i in ids]


def test_merges_in_order_and_bytes_for_the_rest(tmp_path):
    tokenizer = gemma4(tmp_path)
    ids = tokenizer.encode("a the\n\nthé")
    bytes_of_e = ["<0xC3>", "<0xA9>"]
    assert tokens_of(tokenizer, ids) == ["<bos>", "a", "\u2581the", "\n\n", "th", *bytes_of_e]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_whole_and_streamed(tmp_path, text):
    tokenizer = gemma4(tmp_path)
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert tokenizer.decode(ids) == text
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == text


def test_a_stream_holds_unfinished_characters_back(tmp_path):
    tokenizer = gemma4(tmp_path)
    ids = tokenizer.encode("a🎉b", add_bos=False)
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["a", "", "", "", "🎉", "b"]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids[:3]] == ["a", "", ""]
    assert stream.flush() == "\ufffd"


def test_control_tokens_only_when_asked(tmp_path):
    tokenizer = gemma4(tmp_path)
    turn = tokenizer._vocab.ids["<|turn>"]
    assert turn not in tokenizer.encode("<|turn>user")
    assert tokenizer.encode("<|turn>user", special=True)[1] == turn
    assert tokenizer.decode(tokenizer.encode("<|turn>user")) == "<|turn>user"
    assert tokenizer.decode([turn]) == ""
    assert tokenizer.decode([turn], special=True) == "<|turn>"


def renamed(*names):
    """The tokens entry with the last tokens, <unusedN>, renamed."""
    entry = {key: value for key, _, value in tiny.tokenizer_metadata()}
    tokens = entry["tokenizer.ggml.tokens"]
    return tokens[: -len(names)] + list(names)


def typed(**kinds):
    """The token types with those of some tokens, by text, replaced."""
    entry = {key: value for key, _, value in tiny.tokenizer_metadata()}
    types = list(entry["tokenizer.ggml.token_type"])
    for text, kind in kinds.items():
        types[entry["tokenizer.ggml.tokens"].index(text)] = kind
    return types


def test_old_files(tmp_path):
    """<eos> and <turn|> of type normal, no BOS asked for, <turn|> as the only end."""
    types = typed(**{"<eos>": 1, "<turn|>": 1})
    end = tiny.SPECIALS.index("<eos>")
    turn = renamed("x").index("<turn|>")
    tokenizer = gemma4(
        tmp_path,
        token_type=("[i32]", types),
        add_bos_token=("bool", False),
        eos_token_id=("u32", turn),
    )
    assert tokenizer.adds_bos
    assert tokenizer.encode("a")[0] == tokenizer.bos_id == 2
    assert tokenizer.stop_ids == {end, turn}
    assert end not in tokenizer.encode("<eos>")
    assert tokenizer.encode("<eos>", special=True) == [2, end]
    assert tokenizer.decode([end, turn]) == ""


def test_gemma4_ends_with_three_texts_and_never_with_an_html_tag(tmp_path):
    tokens = renamed("<|tool_response>", "</s>", "<end_of_turn>")
    types = typed()[:-3] + [4, 4, 3]
    tokenizer = gemma4(tmp_path, tokens=("[str]", tokens), token_type=("[i32]", types))
    ends = {tokens.index(t) for t in ("<eos>", "<turn|>", "<|tool_response>")}
    assert tokenizer.stop_ids == ends
    html = tokens.index("</s>")
    assert tokenizer.encode("</s>", add_bos=False) == [html]
    assert tokenizer.decode([html]) == "</s>"


def test_visible_control_tokens(tmp_path):
    """Channel marks are shown in text, for the caller to cut, but plain text never becomes one."""
    tokens, types = renamed("<|channel>", "<channel|>", '<|"|>'), typed()[:-3] + [4, 4, 4]
    tokenizer = gemma4(tmp_path, tokens=("[str]", tokens), token_type=("[i32]", types))
    for text in tokens[-3:]:
        assert tokens.index(text) not in tokenizer.encode(text)
        assert tokenizer.encode(text, special=True, add_bos=False) == [tokens.index(text)]
        assert tokenizer.decode([tokens.index(text)]) == text


@pytest.mark.parametrize(("model", "pre"), [("llama", "gemma4"), ("llama", None)])
def test_a_llama_file_with_merges_merges_by_them(tmp_path, model, pre):
    """Some files keep scores 0, 1, 2 ... that say nothing."""
    scores = list(range(tiny.N_VOCAB))
    changes = {"model": ("str", model), "scores": ("[f32]", scores)}
    changes |= {"pre": ("str", pre)} if pre else {"add_space_prefix": ("bool", False)}
    tokenizer = gemma4(tmp_path, **changes)
    assert tokenizer.encode("a the\nthe\n\n") == gemma4(tmp_path).encode("a the\nthe\n\n")


def test_runs_of_spaces_stored_as_they_are(tmp_path):
    """Converters write such tokens with literal spaces, and merges with the visible ones."""
    tokens, types = renamed("  ", "    "), typed()[:-2] + [4, 4]
    merges = [*tiny.MERGES, "\u2581 \u2581", "\u2581\u2581 \u2581\u2581"]
    entries = {"tokens": ("[str]", tokens), "token_type": ("[i32]", types)}
    tokenizer = gemma4(tmp_path, merges=("[str]", merges), **entries)
    two, four = len(tokens) - 2, len(tokens) - 1
    assert tokenizer.encode("a    b", add_bos=False)[1:-1] == [four]
    assert tokenizer.encode("a      the", add_bos=False)[1:-1] == [four, two]
    assert tokenizer.decode(tokenizer.encode("a      the")) == "a      the"


def spm_reference(text, pieces, scores):
    """SentencePiece BPE: join the best-scored neighbours, leftmost first, until none is known."""
    parts = list(text)
    while True:
        known = [
            (-scores[a + b], i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in pieces
        ]
        if not known:
            return parts
        _, i = min(known)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    """(tokeniser, pieces, scores) of random pieces with distinct scores."""
    source = random.Random(5)
    letters = list("abcd\u2581")
    grown = {"".join(source.choices(letters, k=source.randint(2, 5))) for _ in range(150)}
    pieces = letters + sorted(grown)
    scores = {
        p: -float(n) for p, n in zip(pieces, source.sample(range(1000), len(pieces)), strict=True)
    }
    every = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *every, *pieces]
    metadata = [
        ("tokenizer.ggml.model", "str", "llama"),
        ("tokenizer.ggml.tokens", "[str]", tokens),
        ("tokenizer.ggml.token_type", "[i32]", [2, 3, 3] + [6] * 256 + [1] * len(pieces)),
        ("tokenizer.ggml.scores", "[f32]", [0.0] * 259 + [scores[p] for p in pieces]),
        ("tokenizer.ggml.bos_token_id", "u32", 1),
        ("tokenizer.ggml.eos_token_id", "u32", 2),
    ]
    path = tmp_path_factory.mktemp("spm")
    return Tokenizer.from_gguf(file_of(path, metadata, "llama")), set(pieces), scores


def test_scores_decide_what_is_joined(spm):
    tokenizer, pieces, scores = spm
    source = random.Random(6)
    for _ in range(200):
        text = "".join(source.choices("abcd ", k=source.randint(1, 25)))
        expected = spm_reference("\u2581" + text.replace(" ", "\u2581"), pieces, scores)
        assert tokens_of(tokenizer, tokenizer.encode(text, add_bos=False)) == expected


def test_llama_puts_bos_and_a_space_in_front_and_takes_it_away(spm):
    tokenizer, *_ = spm
    assert tokenizer.adds_bos
    assert tokenizer.encode("ab")[0] == 1
    assert tokenizer.stop_ids == {2}
    for text in ("ab", " ab", "z 日", string.punctuation):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gemma3_merges_are_as_many_as_gemma4_has(gemma3_path):
    """And tokenising by them is tokenising by the scores they came from."""
    vocab = Vocabulary(GGUFFile(gemma3_path))
    assert len(vocab.merges_from_scores()) == 514906


def test_gemma4_from_gemma3s_vocabulary(gemma3_path, tmp_path):
    """The ordinary pieces have the same ids, so the derived merges make a Gemma 4 tokeniser."""
    vocab = Vocabulary(GGUFFile(gemma3_path))
    renames = {"<start_of_turn>": "<|turn>", "<end_of_turn>": "<turn|>"}
    tokens = [renames.get(t, t) for t in vocab.tokens]
    merges = [" ".join(pair) for pair in vocab.merges_from_scores()]
    metadata = [
        ("tokenizer.ggml.model", "str", "gemma4"),
        ("tokenizer.ggml.tokens", "[str]", tokens),
        ("tokenizer.ggml.token_type", "[i32]", vocab.types),
        ("tokenizer.ggml.merges", "[str]", merges),
        ("tokenizer.ggml.scores", "[f32]", [-1000.0] * len(tokens)),
    ]
    four, three = Tokenizer.from_gguf(file_of(tmp_path, metadata)), Tokenizer(vocab)
    assert four.stop_ids == {1, 106}
    assert tokens.index("</s>") not in four.stop_ids
    more = ["def f(x):\n    return x  # 1234567890\n\n\n\n", "<b>html</b> </s>", "Ünïcödé ﬁ ①"]
    for text in TEXTS + more:
        ids = four.encode(text)
        assert ids == three.encode(text)
        assert four.decode(ids) == text


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": ("str", "wordpiece")}, "gemma4"),
        ({"merges": ("[str]", ["nospace"])}, "not two tokens"),
        ({"merges": ("[str]", ["q zz"])}, "does not fit its merges"),
        ({"token_type": ("[i32]", [1, 2])}, "2 token types for 300"),
        ({"eos_token_id": ("u32", 300)}, "outside the vocabulary"),
        ({"tokens": ("[i32]", [1] * 300)}, "tokens"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, word):
    with pytest.raises(GGUFError, match=word):
        gemma4(tmp_path, **changes)


def test_missing_merges_and_scores_are_named(tmp_path):
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\.merges"):
        gemma4(tmp_path, drop=("tokenizer.ggml.merges",))
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\.scores"):
        gemma4(tmp_path, drop=("tokenizer.ggml.merges",), model=("str", "llama"))


@pytest.mark.parametrize("token", [-1, 300])
def test_ids_outside_the_vocabulary_are_refused(tmp_path, token):
    with pytest.raises(ValueError, match="outside the vocabulary"):
        gemma4(tmp_path).decode([token])


def qwen2(tmp_path):
    from tqlab.tokenizer.stream import _BYTE_OF

    letters = {b: c for c, b in _BYTE_OF.items()}
    tokens = [letters[b] for b in range(256)] + ["12", "ab", "<|endoftext|>", "<|im_end|>"]
    metadata = [
        ("tokenizer.ggml.model", "str", "gpt2"),
        ("tokenizer.ggml.pre", "str", "qwen2"),
        ("tokenizer.ggml.tokens", "[str]", tokens),
        ("tokenizer.ggml.token_type", "[i32]", [1] * 258 + [3, 3]),
        ("tokenizer.ggml.merges", "[str]", ["1 2", "a b"]),
        ("tokenizer.ggml.eos_token_id", "u32", 259),
    ]
    return Tokenizer.from_gguf(file_of(tmp_path, metadata, "qwen2"))


def test_qwen2_cuts_digits_one_by_one_and_composes_characters(tmp_path):
    tokenizer = qwen2(tmp_path)
    assert tokens_of(tokenizer, tokenizer.encode("ab12")) == ["ab", "1", "2"]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é") == list("é".encode())
    assert tokenizer.stop_ids == {258, 259}
    assert not tokenizer.adds_bos


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_streams_are_what_the_library_decodes(tmp_path, text):
    tokenizer = qwen2(tmp_path)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer._hf.decode(ids) == text
