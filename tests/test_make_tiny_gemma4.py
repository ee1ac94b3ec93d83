"""The scripts that make tiny-gemma4: what they train is what tqlab reads."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tqlab

FOLDER = Path(__file__).resolve().parents[1] / "data" / "make_tiny_gemma4"
SHAPE = {"embd": 64, "ff": 64, "experts": 12, "top_k": 3, "heads": 2, "window": 8, "context": 64}


@pytest.fixture(scope="module")
def scripts():
    """The folder's modules, importable as its __main__ has them, and gone afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    import corpus
    import examples
    import export
    import model
    import stories

    sys.path.remove(str(FOLDER))
    used = {"corpus": corpus, "examples": examples, "export": export, "model": model}
    yield used | {"stories": stories}
    for name in set(sys.modules) - before:
        if name in (*used, "stories", "sample", "train"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def exported(scripts, tmp_path_factory):
    """(training module, tokenizer, the model as tqlab reads it): random weights, far from 1."""
    stories, source = scripts["stories"], random.Random(0)
    seeds = [stories.seed(source) for _ in range(60)]
    tokenizer = scripts["corpus"].vocabulary([" ".join(s.parts) for s in seeds])
    torch.manual_seed(0)
    shape = replace(scripts["model"].Shape(vocab=tokenizer.get_vocab_size()), **SHAPE)
    model = scripts["model"].Gemma4(shape)
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = torch.rand_like(p) + 0.5
            # what the file keeps in F16 is rounded here too, so that only the arithmetic differs
            p.copy_(p * values if p.dim() < 2 else p if "gate_inp" in name else p.half().float())
    path = tmp_path_factory.mktemp("tiny") / "model.gguf"
    scripts["export"].write(path, model, tokenizer)
    return model, tokenizer, tqlab.load_model(path, device="cpu")


@torch.no_grad()
def test_the_reader_computes_what_was_trained(exported):
    model, _, read = exported
    ids = torch.randint(0, model.s.vocab, (2, 50), generator=torch.Generator().manual_seed(1))
    wanted = model.logits(model(ids)[0])
    assert wanted.abs().max() > 1
    torch.testing.assert_close(read(ids), wanted, atol=1e-4, rtol=0)  # sums in another order


def test_the_file_spells_as_the_training_did(scripts, exported):
    _, tokenizer, read = exported
    source = random.Random(1)
    for _ in range(20):
        text = " ".join(scripts["stories"].seed(source).parts) + "\n\nThe end \u00e9!"
        assert read.tokenizer.encode(text, add_bos=False) == tokenizer.encode(text).ids
        assert read.tokenizer.decode(read.tokenizer.encode(text)) == text


def test_no_piece_crosses_a_space(exported):
    pieces = exported[1].get_vocab()
    assert not [p for p in pieces if "\u2581" in p[1:] and not p.startswith("<")]


def test_training_text_is_the_chat_format_the_file_renders(scripts, exported):
    corpus, read = scripts["corpus"], exported[2]
    row = {"request": "Tell me a story about a fox.", "story": "Once there was a fox."}
    prompt = read.tokenizer.chat([{"role": "user", "content": row["request"]}])
    assert corpus._chat(row) == prompt + row["story"] + "<turn|>\n"


def test_seeds_repeat_and_differ(scripts):
    draw = scripts["stories"].seed
    one, two = ([draw(r) for _ in range(200)] for r in (random.Random(3), random.Random(3)))
    assert one == two
    assert len({s.parts for s in one}) == 200


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("He ran home. He was glad. And", "He ran home. He was glad."),
        ("He ran home. And", None),  # too short
        ("He ran home. Bob was glad.", "He ran home. Bob was glad."),  # opens a sentence: any word
        ("He ran to Bob. He was glad.", None),  # a stranger
        ("She ran home. He was glad.", None),  # the other pronoun, and nobody it could mean
        ('He said, "Oh no. He was glad.', None),  # a quote left open
        ("He ran home. He saw 3 men.", None),
        ("The fox sat down. The fox sat down.", None),  # says a thing twice
    ],
)
def test_unfit_sentences_are_not_kept(scripts, text, kept):
    s = scripts["stories"].Seed(("", "", ""), "", ("Tim", "Max"), "he")
    assert scripts["stories"].segment(text, s, "Tim was a fox.", 2) == kept


def test_held_out_stories_are_in_no_training_row(scripts):
    rows = [{"story": f"Story number {i} of a fox.", "request": ""} for i in range(500)]
    kept, held = scripts["corpus"].split(rows, 0)
    assert held
    assert not {row["story"] for row in kept} & set(held.strip().split("\n\n"))


def test_the_readme_shows_every_opening_twice_and_how_it_ends(scripts):
    text = (FOLDER.parent / "README.md").read_text("utf-8")
    shown = [line for line in text.splitlines() if line.startswith("- **")]
    openings = scripts["examples"].openings()
    assert [line[4:].split("**")[0] for line in shown] == 2 * openings
    assert all(line.endswith((".", '"', "!")) for line in shown)
