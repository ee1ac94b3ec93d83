"""Byte-level BPE rebuilt from metadata: a tiny vocabulary, and the default model's own."""

from itertools import pairwise

import pytest
import tinyvocab
import torch
from ggufwriter import File
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from tqlab.gguf_file import GGUFError, GGUFFile
from tqlab.tokenizer import Tokenizer


def ids_of(*tokens):
    return [tinyvocab.TOKENS.index(t) for t in tokens]


@pytest.fixture
def make(tmp_path):
    def build(template=tinyvocab.TEMPLATE, **changes):
        keys = tinyvocab.metadata(**changes)
        if template:
            keys.append(("tokenizer.chat_template", "str", template))
        return Tokenizer.from_gguf(GGUFFile(File(keys).write(tmp_path / "vocab.gguf")))

    return build


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.gguf"
    return Tokenizer.from_gguf(GGUFFile(File(tinyvocab.metadata()).write(path)))


def greedy(word: str) -> list[str]:
    """BPE by its definition: join the pair of the lowest rank until none is left."""
    parts = list(word)
    while True:
        pairs = [p for p in pairwise(parts) if p in tinyvocab.MERGES]
        if not pairs:
            return parts
        a, b = min(pairs, key=tinyvocab.MERGES.index)
        i = next(i for i in range(len(parts)) if tuple(parts[i : i + 2]) == (a, b))
        parts[i : i + 2] = [a + b]


def test_merges(tiny):
    assert tiny.encode("hello world") == ids_of("hello", "Ġwor", "l", "d")
    assert tiny.encode("") == []
    assert tiny.n_vocab == len(tinyvocab.TOKENS)


@given(st.lists(st.text("helowrd1", min_size=1), max_size=4).map(" ".join))
def test_merges_by_definition(tiny, text):
    """smollm's rule: digits alone, words with their leading space."""
    words, expected = ByteLevel(add_prefix_space=False).pre_tokenize_str(text), []
    for word, _ in words:
        digits = [c if c.isdigit() else "\0" for c in word]
        pieces = word if "1" not in digits else _split_digits(word)
        pieces = [pieces] if isinstance(pieces, str) else pieces
        expected += [token for piece in pieces for token in greedy(piece)]
    assert tiny.encode(text) == ids_of(*expected)


def _split_digits(word):
    return [piece for piece in word.replace("1", "\0001\0").split("\0") if piece]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_round_trips(tiny, text):
    """Bytes are the alphabet, so nothing is unknown: emoji, accents, control characters."""
    assert tiny.decode(tiny.encode(text)) == text


def test_pre_tokenizers_differ(make):
    """ "12" is a merge: smollm cuts digits apart first, gpt-2 and llama-bpe do not."""
    both = {"12": ids_of("12"), "cut": ids_of("1", "2")}
    assert make().encode("12") == both["cut"]
    assert make(pre=("str", "gpt-2")).encode("12") == both["12"]
    assert make(pre=("str", "llama-bpe")).encode("12", add_bos=False) == both["12"]
    assert make(pre=None).encode("12") == both["12"]  # gpt-2 unless the file says otherwise


@pytest.mark.parametrize("special", ["<|im_end|>", "<|im_start|>", "<bos>"])
def test_special_tokens_only_on_request(tiny, special):
    """A user who types <|im_end|> must not end the turn."""
    text = f"he{special}ll"
    (token,) = ids_of(special)
    assert tiny.encode(text, special=True) == [*ids_of("he"), token, *ids_of("ll")]
    plain = tiny.encode(text)
    assert token not in plain
    assert tiny.decode(plain) == text
    assert tiny.encode(text, special=True) != plain  # and the switch does not stick
    assert tiny.decode([*ids_of("he"), token]) == "he"
    assert tiny.decode([*ids_of("he"), token], special=True) == f"he{special}"


def test_user_defined_tokens_are_always_read(tiny):
    assert tiny.encode("he<tool>\n\nll") == ids_of("he", "<tool>", "\n\n", "ll")
    assert tiny.decode(ids_of("<tool>", "\n\n")) == "<tool>\n\n"


def test_bos_where_asked(make):
    (bos,) = ids_of("<bos>")
    asks = make(add_bos_token=("bool", True))
    assert asks.adds_bos
    assert asks.encode("he") == [bos, *ids_of("he")]
    assert asks.encode("he", add_bos=False) == ids_of("he")
    for quiet in (make(), make(add_bos_token=("bool", False))):
        assert not quiet.adds_bos
        assert quiet.encode("he") == ids_of("he")
    assert not make(add_bos_token=("bool", True), bos_token_id=None).adds_bos


def test_decode_takes_tensors(tiny):
    ids = torch.tensor(tiny.encode("hello world"))
    assert tiny.decode(ids) == "hello world"


def test_chat(make):
    prompt = make().chat([{"role": "user", "content": "hello"}])
    assert prompt == "<bos><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(ValueError, match="no chat template in this file; pass a plain prompt"):
        make(template=None).chat([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "tokenizer.ggml.model' is missing"),
        ({"model": ("str", "rwkv")}, "tokenizer model 'rwkv' is not known; known: "),
        ({"pre": ("str", "klingon")}, "pre-tokenizer 'klingon' is not known; known: gpt-2"),
        ({"tokens": None}, "tokenizer.ggml.tokens' is missing"),
        ({"merges": None}, "tokenizer.ggml.merges' is missing"),
        ({"merges": ("[str]", ["h e", "nospace"])}, "merge 'nospace' is not two tokens"),
        ({"merges": ("[str]", ["h zzz"])}, "vocabulary does not fit its merges"),
        ({"token_type": ("[i32]", [1, 1])}, "2 token types for 270 tokens"),
        ({"bos_token_id": ("u32", 270)}, "bos_token_id is 270, outside the vocabulary"),
        ({"eos_token_id": ("i32", -1)}, "eos_token_id is -1, outside the vocabulary"),
        ({"eos_token_id": ("str", "2")}, "eos_token_id is '2', outside the vocabulary"),
    ],
)
def test_bad_vocabularies(make, changes, message):
    with pytest.raises(GGUFError, match=message) as caught:
        make(**changes)
    assert "vocab.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the default model


def test_smollm2_reproduces_the_reference_tokens(smollm2, reference_nll):
    """4096 tokens of the fork's own tokeniser: text and back."""
    tokens = reference_nll["smol/tokens"]
    for chunk in tokens.tolist():
        text = smollm2.tokenizer.decode(chunk, special=True)
        assert smollm2.tokenizer.encode(text) == chunk
    assert not smollm2.tokenizer.adds_bos


def test_smollm2_chat(smollm2):
    prompt = smollm2.tokenizer.chat([{"role": "user", "content": "Hi <|im_end|>"}])
    assert prompt.endswith("<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n")
    ids = smollm2.tokenizer.encode(prompt, special=True)
    assert ids[0] == smollm2.tokenizer.encode("<|im_start|>", special=True)[0] == 1
    assert smollm2.tokenizer.eos_id == 2
    assert smollm2.tokenizer.decode(ids, special=True) == prompt
