"""Needle retrieval: where lines lie, what is asked, and that a cache that forgets is found out."""

import dataclasses

import pytest
import torch
from test_calibrate import CTX as CALIBRATED_CTX
from test_calibrate import prose

from tqlab import calibrate, tables
from tqlab.measure import needle
from tqlab.measure.needle import Needle, haystack, needles


class Letters:
    """A tokeniser of one id a character."""

    def encode(self, text, add_bos=True):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


class Reader:
    """A model with perfect recall: it says what its cache holds behind the question's words."""

    device = torch.device("cpu")

    def __init__(self, forgets=range(0)):
        self.forgets, self.seen = forgets, []

    def run(self, ids, cache):
        cache["ids"] = cache.get("ids", []) + ids[0].tolist()
        self.seen.append(len(cache["ids"]))
        states = torch.zeros(1, ids.shape[1], 128)
        start = len(cache["ids"]) - ids.shape[1]
        for i in range(ids.shape[1]):
            states[0, i, self._next(cache["ids"][: start + i + 1])] = 20.0
        return states

    def head(self, x):
        return x

    def _next(self, ids):
        text = Letters().decode(ids)
        text = "".join("#" if i in self.forgets else c for i, c in enumerate(text))
        asked = text[text.rfind("\n") :]
        at = text.find(asked)
        return ord(text[at + len(asked)]) if at + len(asked) < len(text) else 0


class Dict(dict):
    def reset(self):
        self.clear()


FILLER = [ord("~")] * 1000


def test_lines_lie_evenly_and_everything_fits():
    text = haystack(Letters(), FILLER, 5, seed=3)
    whole = Letters().decode(text.ids)
    assert len(text.ids) + max(map(len, text.questions)) + needle.DIGITS == len(FILLER)
    filler_before = [whole[: whole.find(Letters().decode(q))].count("~") for q in text.questions]
    room = whole.count("~")
    assert filler_before == [round(room * d) for d in text.depths]
    assert text.depths == [0.1, 0.3, 0.5, 0.7, 0.9]
    for question, answer in zip(text.questions, text.answers, strict=True):
        assert whole.count(f"{Letters().decode(question + answer)}.\n") == 1
        assert Letters().decode(answer).isdigit()
        assert len(answer) == needle.DIGITS
    assert haystack(Letters(), FILLER, 5, seed=3) == text
    assert haystack(Letters(), FILLER, 5, seed=4).answers != text.answers


@pytest.mark.parametrize(("n", "tokens"), [(0, 1000), (99, 1000), (5, 200)])
def test_needles_that_do_not_fit_are_refused(n, tokens):
    with pytest.raises(ValueError, match=f"{n} needles"):
        haystack(Letters(), FILLER[:tokens], n)


def test_a_cache_that_forgets_the_middle_fails_there_alone():
    text = haystack(Letters(), FILLER, 5)
    found = needle.answers(Reader(), text, Dict())
    assert [recalled for recalled, _ in found] == [True] * 5
    assert all(logp > -1e-5 for _, logp in found)
    forgetful = Reader(forgets=range(len(text.ids) * 2 // 5, len(text.ids) * 3 // 5))
    found = needle.answers(forgetful, text, Dict())
    assert [recalled for recalled, _ in found] == [True, True, False, True, True]
    assert found[2][1] < -10


def test_one_wrong_digit_is_no_recall():
    text = haystack(Letters(), FILLER, 3)
    last = Letters().decode(text.ids).find(Letters().decode(text.questions[1] + text.answers[1]))
    last += len(text.questions[1]) + needle.DIGITS - 1
    found = needle.answers(Reader(forgets=range(last, last + 1)), text, Dict())
    assert [recalled for recalled, _ in found] == [True, False, True]


def test_every_question_continues_the_same_reading():
    reader, text = Reader(), haystack(Letters(), FILLER, 4)
    needle.answers(reader, text, Dict())
    behind = [len(q) + len(a) - 1 for q, a in zip(text.questions, text.answers, strict=True)]
    assert reader.seen == [len(text.ids), *(len(text.ids) + n for n in behind)]


# ---- real caches


@pytest.fixture
def short(monkeypatch):
    """Lines that fit the tiny model's 128 tokens."""
    monkeypatch.setattr(needle, "QUESTION", "{} is")


@pytest.mark.parametrize("side", ["f32", "turbo3", "w3"])
def test_a_score_is_that_of_the_whole_text_at_once(tiny_model, short, side):
    """Copies of a cache go on where it ended, and leave it as it was."""
    piece = tiny_model.tokenizer.encode(prose(3).text)[:120]
    text = haystack(tiny_model.tokenizer, piece, 2)
    found = needle.answers(tiny_model, text, tiny_model.new_cache(side, side, 120))
    for question, answer, (recalled, logp) in zip(text.questions, text.answers, found, strict=True):
        ids = torch.tensor([text.ids + question + answer])
        log_p = tiny_model(ids, tiny_model.new_cache(side, side, 120)).log_softmax(-1)
        log_p = log_p[0, -len(answer) - 1 : -1]
        expected = log_p.gather(1, torch.tensor(answer)[:, None]).mean()
        # f32: rounding; others: a split moves borderline indices
        assert logp == pytest.approx(float(expected), abs=1e-4 if side == "f32" else 0.05)
        assert recalled == bool((log_p.argmax(-1) == torch.tensor(answer)).all())


def test_rows_carry_the_bits_of_their_context(tiny_model, short):
    tokens = tiny_model.tokenizer.encode(prose(3).text)
    rows = needles(tiny_model, tokens, [("f16", "f16"), ("w3", "w3")], 120, 2, 2)
    assert [(r.k, r.chunk, r.depth) for r in rows] == [
        (k, chunk, depth) for k in ("f16", "w3") for chunk in (0, 1) for depth in (0.25, 0.75)
    ]
    assert [r.k_bits for r in rows[:4]] == [16.0] * 4
    assert rows[4].k_bits == tiny_model.new_cache("w3", "w3", 120).stored_bits()[0]
    assert rows[0].recipe is None
    assert rows[4].recipe.startswith("w3: K turbo3")


def test_the_text_of_the_calibration_is_refused_before_any_work(tiny_model, short, monkeypatch):
    made = calibrate(tiny_model, prose(1), chunks=4, ctx=CALIBRATED_CTX)
    monkeypatch.setattr(tiny_model, "calibration", made)
    tokens = tiny_model.tokenizer.encode(prose(1).text)
    monkeypatch.setattr(type(tiny_model), "run", lambda *_: pytest.fail("work was started"))
    with pytest.raises(ValueError, match=r"shares \d+ runs of 32 tokens with prose 1"):
        needles(tiny_model, tokens, [("f16", "f16"), ("cw3", "cw3")], 120, 1)


# ---- the table


def test_the_table_counts_what_f16_recalls_and_joins_kl():
    base = Needle("m", "f16", "f16", None, 2048, 0, 0.25, True, -0.25, 16.0, 16.0)
    ours = {"k": "cw3", "v": "cw3", "recipe": "cw3: …", "k_bits": 3.5, "v_bits": 3.5}
    f16 = [base, dataclasses.replace(base, depth=0.5), dataclasses.replace(base, depth=0.75)]
    f16[2] = dataclasses.replace(f16[2], recalled=False, logp=-2.0)
    cw3 = [dataclasses.replace(x, **ours) for x in f16]
    cw3[0] = dataclasses.replace(cw3[0], recalled=False, logp=-0.75)
    cw3[2] = dataclasses.replace(cw3[2], recalled=True, logp=-1.0)  # luck, where f16 fails
    swept = {"model": "m", "k": "cw3", "v": "cw3", "ctx": 512, "kld_mean": 0.02, "kld_se": 0.001}
    table = tables.needle_table([*f16, *cw3], [swept, swept | {"offset": 3000, "kld_mean": 9.0}])
    assert table.headers[-1] == "KL at 512"
    assert table.cells[0][3:5] == ["2 of 3", "2 of 2"]
    assert table.cells[0][-1] == "–"
    assert table.cells[1] == [
        *("cw3", "2048", "3.5", "2 of 3", "1 of 2", "-0.667", "+0.167 ± 0.441", "0.0200 ± 0.0010")
    ]
