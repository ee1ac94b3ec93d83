"""Perplexity and KL against float64 sums over full logits, and the fork's own losses."""

import math
from types import SimpleNamespace

import pytest
import torch

from tqlab import metrics
from tqlab.metrics import ReferenceLog, cut, perplexity

CTX = 32


@pytest.fixture
def tokens(tiny_model):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(tiny_model.config.n_vocab, (4 * CTX + 5,), generator=generator)


def log_probabilities(model, piece, k, v):
    """float64 log-softmax of the scored positions of one chunk, token by token through a cache."""
    cache = model.new_cache(k, v, max_tokens=len(piece))
    logits = torch.cat([model(token.view(1, 1), cache) for token in piece], 1)[0]
    return logits[len(piece) // 2 : -1].double().log_softmax(-1)


def losses(log_p, piece):
    targets = piece[len(piece) // 2 + 1 :]
    return -log_p[torch.arange(len(targets)), targets]


def test_protocol_against_a_plain_float64_sum(tiny_model, tokens):
    result = perplexity(tiny_model, tokens, CTX, k="f32", v="f32")
    pieces = tokens[: 4 * CTX].view(4, CTX)
    nll = torch.cat([losses(log_probabilities(tiny_model, p, "f32", "f32"), p) for p in pieces])
    assert result.n_tokens == len(nll) == 4 * (CTX // 2 - 1)
    # float32 logits of another order of operations: 1e-5 relative
    assert result.ppl == pytest.approx(float(nll.mean().exp()), rel=1e-5)
    se = float(nll.std(correction=1)) / math.sqrt(len(nll))
    assert result.ppl_se == pytest.approx(result.ppl * se, rel=1e-4)
    assert result.kld_mean is None


@pytest.mark.parametrize("pair", [("q8_0", "turbo3"), ("turbo2", "q4_0"), ("turbo4_lm", "f16")])
def test_kl_against_float64_logits_decoded_token_by_token(tiny_model, tokens, own_data, pair):
    """Single steps read every key and value back from the cache, so prefill must as well."""
    result = perplexity(tiny_model, tokens, CTX, 2, *pair, reference=("f16", "f16"))
    klds, same = [], []
    for piece in tokens[: 2 * CTX].view(2, CTX):
        log_p = log_probabilities(tiny_model, piece, "f16", "f16")
        log_q = log_probabilities(tiny_model, piece, *pair)
        klds.append((log_p.exp() * (log_p - log_q)).sum(-1))
        same.append((log_p.argmax(-1) == log_q.argmax(-1)).double())
    kld = torch.cat(klds)
    # The reference is stored in 16 bits over each row's range (about 12 nats): steps of 2e-4,
    # unbiased. Splits may flip a borderline index: the interface allows a fifth of the pair's KL.
    assert result.kld_mean == pytest.approx(float(kld.mean()), rel=0.05, abs=2e-5)
    assert result.kld_max == pytest.approx(float(kld.max()), rel=0.2, abs=2e-5)
    assert result.same_top == pytest.approx(float(torch.cat(same).mean()), abs=1.5 / len(kld))
    assert result.kld_mean > 1e-5


def test_the_reference_itself_has_no_divergence(tiny_model, tokens, own_data):
    for _ in range(2):  # first computed and stored, then read back
        r = perplexity(tiny_model, tokens, CTX, 2, "f16", "f16", reference=("f16", "f16"))
        assert 0 <= r.kld_mean < 1e-7  # half a 16-bit step, squared
        assert r.same_top == 1.0
        assert r.dp_rms == 0.0


def test_a_skipped_cache_would_show(tiny_model, tokens, own_data, monkeypatch):
    """Planted bug: attention over unquantised keys and values gives turbo2 no divergence."""
    honest = perplexity(tiny_model, tokens, CTX, 2, "turbo2", "turbo2", reference=("f16", "f16"))
    new_cache = type(tiny_model).new_cache
    monkeypatch.setattr(
        type(tiny_model),
        "new_cache",
        lambda self, k, v, **rest: new_cache(self, "f16", "f16", **rest),
    )
    cheat = perplexity(tiny_model, tokens, CTX, 2, "turbo2", "turbo2", reference=("f16", "f16"))
    assert honest.kld_mean > 100 * abs(cheat.kld_mean)


def test_formats_by_layer(tiny_model, tokens, own_data):
    def kld(k):
        return perplexity(tiny_model, tokens, CTX, 2, k, "f16", reference=("f16", "f16")).kld_mean

    one = kld(["f16", "turbo2", "f16"])
    assert 0 < one < kld("turbo2")
    assert kld(["turbo2"] * 3) == kld("turbo2")
    with pytest.raises(ValueError, match="2 format names for 3 layers"):
        kld(["f16", "f16"])


def test_against_the_forks_losses(smollm2, reference_nll):
    tokens, theirs = reference_nll["smol/tokens"][0], reference_nll["smol/nll"][0]
    result = perplexity(smollm2, tokens, 512, k="f16", v="f16")
    assert result.n_tokens == 255
    # The fork's matmuls round weights and activations to f16: 0.003 nats on the mean of 255 tokens.
    assert result.nll == pytest.approx(float(theirs.mean()), abs=0.003)
    assert (result.k_bits, result.v_bits) == (16.0, 16.0)


def test_bos_takes_the_first_place_of_every_chunk_where_asked(tiny_model):
    fake = SimpleNamespace(
        config=tiny_model.config, tokenizer=SimpleNamespace(adds_bos=True, bos_id=7)
    )
    pieces = cut(list(range(100)), 32, None, fake)
    assert pieces.shape == (3, 32)
    assert pieces[:, 0].tolist() == [7, 7, 7]
    assert pieces[:, 1].tolist() == [1, 33, 65]
    assert cut(list(range(100)), 32, 2, tiny_model)[:, 0].tolist() == [0, 32]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [1] * 31}, "has 31 tokens; one chunk needs 32"),
        ({"tokens": []}, "has 0 tokens"),
        ({"ctx": 31}, "even number"),
        ({"ctx": 4096}, "exceeds the context of tiny: 128"),
        ({"chunks": 0}, "chunks must be at least 1, not 0"),
        ({"k": "turbo9"}, "unknown format 'turbo9'; known: f32, f16"),
        ({"reference": ("f16", "nope")}, "unknown format 'nope'"),
    ],
)
def test_bad_input_is_one_clear_line(tiny_model, tokens, change, message):
    arguments = {"tokens": tokens, "ctx": CTX} | change
    with pytest.raises(ValueError, match=message) as error:
        perplexity(tiny_model, **arguments)
    assert "\n" not in str(error.value)


def test_interrupted_references_are_resumed(tiny_model, tokens, own_data, monkeypatch):
    pieces = cut(tokens, CTX, 3, tiny_model)
    log = ReferenceLog(tiny_model, pieces, ("f16", "f16"))
    save = ReferenceLog.save

    def killed(self, i, parts):
        if i == 1:
            raise KeyboardInterrupt
        save(self, i, parts)

    monkeypatch.setattr(ReferenceLog, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        log.complete()
    assert [log.has(i) for i in range(3)] == [True, False, False]
    computed = []
    monkeypatch.setattr(
        ReferenceLog, "save", lambda self, i, parts: (computed.append(i), save(self, i, parts))
    )
    log.complete()
    assert computed == [1, 2]
    assert not list(own_data.rglob("*.part"))


def test_references_of_other_models_texts_or_pairs_are_not_mixed(tiny_model, tokens, own_data):
    pieces = cut(tokens, CTX, 2, tiny_model)
    folders = {
        ReferenceLog(tiny_model, pieces, ("f16", "f16")).folder,
        ReferenceLog(tiny_model, pieces, ("f32", "f32")).folder,
        ReferenceLog(tiny_model, pieces + 1, ("f16", "f16")).folder,
        ReferenceLog(tiny_model, pieces.view(1, -1), ("f16", "f16")).folder,
    }
    assert len(folders) == 4


def test_a_damaged_reference_is_named(tiny_model, tokens, own_data):
    log = ReferenceLog(tiny_model, cut(tokens, CTX, 1, tiny_model), ("f16", "f16"))
    log.complete()
    path = log.folder / "00000.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"00000\.npz: damaged; delete it"):
        log.load(0)


def test_sixteen_bits_are_enough():
    logits = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)) * 4
    part = metrics._encode(logits.log_softmax(-1), torch.zeros(64, dtype=torch.long))
    found = metrics._decode(part["codes"], part["high"], part["step"])
    exact = logits.double().log_softmax(-1)
    step = float((exact.amax(-1) - exact.amin(-1)).max()) / 65535
    # half a step, and float32 rounding of sums around 30
    assert float((found - exact).abs().max()) < 0.5 * step + 1e-5
