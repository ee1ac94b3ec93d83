"""Generation: greedy is the argmax of full passes, sampling is what it says, nothing surprises."""

import math

import numpy as np
import pytest
import tinyllama
import tinyvocab
import torch

import tqlab
from tqlab.generate import Generation, Run, Sampling, choose, generate, probabilities
from tqlab.models import load_model
from tqlab.recipes import Recipe

F32 = {"k": "f32", "v": "f32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny llama whose weights are large enough that texts do not settle on one token."""
    folder = tmp_path_factory.mktemp("model")
    file = tinyllama.gguf_file(tinyllama.oracle(head_dim=32))
    return load_model(file.write(folder / "tiny.gguf"), "cpu", "dense")


@pytest.fixture
def endless(model, monkeypatch):
    """The same without stop tokens, so that lengths are known."""
    monkeypatch.setattr(model.tokenizer, "stop_ids", frozenset())
    monkeypatch.setattr(model.tokenizer, "template", tinyvocab.TEMPLATE)
    return model


def by_full_passes(model, ids, n):
    """Greedy decoding without a cache: each token is the argmax of a pass over everything."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-n:]


def test_greedy_is_the_argmax_of_full_passes(endless):
    ids = endless.tokenizer.encode("hello world")
    found = generate(endless, "hello world", max_new_tokens=12, **F32)
    assert found.tokens == by_full_passes(endless, ids, 12)
    assert len(set(found.tokens)) > 3
    assert found.text == endless.tokenizer.decode(found.tokens)
    assert (found.finish, found.n_prompt) == ("length", len(ids))


def test_a_long_prompt_goes_through_in_chunks(endless, monkeypatch):
    text = "hello world " * 20
    whole = generate(endless, text, max_new_tokens=4, **F32)
    monkeypatch.setattr("tqlab.models.base.PREFILL_CHUNK", 7)
    assert generate(endless, text, max_new_tokens=4, **F32).tokens == whole.tokens


def test_prompts_of_a_batch_do_not_see_each_other(endless):
    prompts = ["hello", "world world hello wor", "low"]
    batch = generate(endless, prompts, max_new_tokens=8, **F32)
    alone = [generate(endless, p, max_new_tokens=8, **F32) for p in prompts]
    assert [g.tokens for g in batch] == [g.tokens for g in alone]
    assert [g.n_prompt for g in batch] == [g.n_prompt for g in alone]
    assert len(generate(endless, ["hello"], max_new_tokens=2)) == 1


def test_a_recipe_keeps_every_rows_own_first_tokens(endless):
    """Shorter prompts are padded: their first tokens lie further on, and are exact all the same."""
    own = Recipe("own", "turbo3", "turbo3", sinks=2, window=3)
    prompts = ["hello", "world world hello wor", "low"]
    batch = generate(endless, prompts, own, own, max_new_tokens=12)
    alone = [generate(endless, p, own, own, max_new_tokens=12) for p in prompts]
    assert [g.tokens for g in batch] == [g.tokens for g in alone]
    plain = generate(endless, prompts, "turbo3", "turbo3", max_new_tokens=12)
    assert [g.tokens for g in batch] != [g.tokens for g in plain]


def test_sampled_rows_draw_as_they_would_alone(endless):
    settings = {"max_new_tokens": 8, "temperature": 2.0, **F32}
    batch = generate(endless, ["hello", "world"], seed=5, **settings)
    assert batch[1].tokens == generate(endless, "world", seed=6, **settings).tokens


def test_seeds(endless):
    settings = {"max_new_tokens": 12, "temperature": 3.0}
    torch.manual_seed(1)
    first = generate(endless, "hello", seed=3, **settings).tokens
    torch.manual_seed(2)
    assert generate(endless, "hello", seed=3, **settings).tokens == first
    assert generate(endless, "hello", seed=4, **settings).tokens != first
    unseeded = {tuple(generate(endless, "hello", **settings).tokens) for _ in range(3)}
    assert len(unseeded) > 1


def test_a_stop_token_ends_a_row_and_is_not_shown(model, monkeypatch):
    free = by_full_passes(model, model.tokenizer.encode("hello"), 6)
    stop = free[3]
    monkeypatch.setattr(model.tokenizer, "stop_ids", frozenset([stop]))
    found = generate(model, "hello", max_new_tokens=6, **F32)
    first = free.index(stop)
    assert found.tokens == free[: first + 1]
    assert found.finish == "stop"
    batch = generate(model, ["hello", "world"], max_new_tokens=6, **F32)
    assert batch[0].tokens == found.tokens
    assert list(generate(model, "hello", max_new_tokens=6, stream=True, **F32))


def test_stream_pieces_join_to_the_text(endless):
    pieces = generate(endless, "hello", max_new_tokens=12, stream=True, **F32)
    assert "".join(pieces) == generate(endless, "hello", max_new_tokens=12, **F32).text


def test_speeds_and_bytes(endless):
    found = generate(endless, "hello world", k="q8_0", v="turbo4", max_new_tokens=5)
    assert isinstance(found, Generation)
    assert found.prefill_tok_s > 0
    assert found.decode_tok_s > 0
    slots, layers, kv_heads = found.n_prompt + 5, 2, 2
    assert found.cache_nbytes == slots * layers * kv_heads * (34 + 68)  # head_dim 32; 32 -> 128
    assert generate(endless, "hello", max_new_tokens=1).decode_tok_s == 0.0


class Interrupted:
    """A model that is interrupted in its n-th step."""

    def __init__(self, model, step):
        self.model, self.left = model, step

    def __call__(self, *arguments, **named):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.model(*arguments, **named)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_ctrl_c_returns_what_there_is(endless, step):
    whole = generate(endless, "hello", max_new_tokens=8, **F32)
    found = generate(Interrupted(endless, step), "hello", max_new_tokens=8, **F32)
    assert found.tokens == whole.tokens[: step - 1]
    assert found.finish == "interrupted"
    pieces = generate(Interrupted(endless, step), "hello", max_new_tokens=8, stream=True, **F32)
    assert "".join(pieces) == endless.tokenizer.decode(whole.tokens[: step - 1])


def test_what_does_not_fit_the_context_is_refused_before_work(endless):
    ids = endless.tokenizer.encode("hello")
    generate(endless, "hello", max_new_tokens=128 - len(ids))
    asleep = Interrupted(endless, 1)  # its first step would raise
    with pytest.raises(ValueError, match=f"{len(ids)} tokens and .* exceed the context of tiny"):
        generate(asleep, "hello", max_new_tokens=129 - len(ids))
    assert asleep.left == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": "q9"}, "unknown format 'q9'; known: f32"),
        ({"v": "turbo5"}, "unknown format 'turbo5'"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": ["hello", ""]}, "the prompt is empty"),
        ({"prompt": [1, 2]}, "a prompt is a text or a list of messages, not 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
        ({"temperature": -0.1}, "temperature must be 0 or more, not -0.1"),
        ({"temperature": math.nan}, "temperature must be 0 or more, not nan"),
        ({"top_k": 0}, "top_k must be 1 or more, not 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], not 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], not 1.5"),
        ({"prompt": ["hello"], "stream": True}, "stream=True takes one prompt"),
    ],
)
def test_wrong_arguments_are_refused_at_once(model, settings, message):
    """Also with stream=True: at the call, not at the first piece."""
    prompt = settings.pop("prompt", "hello") if "prompt" in settings else "hello"
    with pytest.raises(ValueError, match=message):
        generate(model, prompt, **{"stream": isinstance(prompt, str), **settings})


def test_messages_go_through_the_template(endless):
    messages = [{"role": "user", "content": "hello"}]
    found = generate(endless, messages, max_new_tokens=3, **F32)
    ids = endless.tokenizer.chat_ids(messages)
    assert found.n_prompt == len(ids)
    assert found.tokens == by_full_passes(endless, ids, 3)
    batch = generate(endless, [messages, "hello"], max_new_tokens=3, **F32)
    assert batch[0].tokens == found.tokens


def test_control_tokens_in_a_prompt_are_plain_text(model):
    special = "<|im_end|>"
    run = Run(model, [f"hello {special}"], "f32", "f32", 1, Sampling())
    assert model.tokenizer.encode(special, special=True) == [tinyvocab.TOKENS.index(special)]
    assert tinyvocab.TOKENS.index(special) not in run._ids[0]


def test_thoughts_are_left_out_of_answers(model):
    """Whole and streamed, a Gemma 4 answer comes without its thought channel."""
    pieces = ["<|channel>", "thought\nhm", "<channel|>", "The ", "answer", "<|channel>", "thought"]

    class Spelled:
        stop_ids = frozenset()

        def chat_ids(self, messages, thinking=False):
            return [1, 2]

        def stream(self):
            class Stream:
                push = staticmethod(pieces.__getitem__)
                flush = staticmethod(lambda: "")

            return Stream()

    class Scripted(Interrupted):
        tokenizer, step = Spelled(), -1

        def __call__(self, *arguments, **named):
            self.step += 1
            logits = torch.zeros(1, 1, 50)
            logits[..., self.step] = 1
            return logits

    messages = [{"role": "user", "content": "?"}]
    found = generate(Scripted(model, 0), messages, max_new_tokens=len(pieces))
    assert found.text == "The answer"
    shown = list(generate(Scripted(model, 0), messages, max_new_tokens=len(pieces), stream=True))
    assert shown == ["The ", "answer"]


# ---- sampling


def reference(logits, temperature, top_k, top_p):
    """Probabilities by the definition, one token at a time, float64."""
    weights = np.exp((logits - logits.max()) / temperature)
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = ranked[: top_k or len(ranked)]
    total = weights[kept].sum()
    nucleus, reached = [], 0.0
    for i in kept:
        if top_p is not None and reached >= top_p:
            break
        nucleus.append(i)
        reached += weights[i] / total
    p = np.zeros(len(logits))
    p[nucleus] = weights[nucleus] / weights[nucleus].sum()
    return p


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.5, 0.93, 1.0])
def test_probabilities_are_those_of_the_definition(temperature, top_k, top_p):
    logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(1)) * 3
    found = probabilities(logits, Sampling(temperature, top_k, top_p))
    for row, p in zip(logits, found, strict=True):
        expected = reference(row.double().numpy(), temperature, top_k, top_p)
        assert np.allclose(p, expected, atol=1e-6)
        assert (p > 0).tolist() == (expected > 0).tolist() or top_p in (None, 1.0)


def test_ties_keep_exactly_k():
    found = probabilities(torch.zeros(10), Sampling(1.0, top_k=3))
    assert torch.allclose(found, torch.tensor([1 / 3] * 3 + [0.0] * 7))


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    generators, counts = [torch.Generator().manual_seed(0)], np.zeros(4)
    for _ in range(4000):
        counts[choose(logits, Sampling(1.0, top_k=3), generators)[0]] += 1
    p = probabilities(logits[0], Sampling(1.0, top_k=3)).numpy()
    assert counts[3] == 0
    assert np.abs(counts / 4000 - p).max() < 4 * math.sqrt(0.25 / 4000)


def test_greedy_takes_the_first_of_equals():
    assert choose(torch.tensor([[1.0, 5.0, 5.0]]), Sampling(), [])[0] == 1


def test_generate_is_public():
    assert tqlab.generate is generate
