"""Recipes: named ones, TOML files, what is refused, and what a cache makes of them."""

import pytest
import torch

from tqlab import data, formats, load_model, recipes
from tqlab.metrics import perplexity
from tqlab.recipes import Recipe, fitted, get, load, pair_label, side


def toml(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_named_ones_are_what_their_names_promise():
    assert {"cw3", "cw4", "best3", "best4"} <= set(recipes.names())
    assert get("cw3") == Recipe("cw3", "turbo3", "turbo3", 4, 32, "centre")
    assert get("best4") == Recipe("best4", "trellis4", "trellis4", 4, 32, "bal")
    line = str(get("best3"))
    for part in ("best3", "K trellis3 balanced before rope", "V trellis3", "4 first", "last 32"):
        assert part in line
    assert str(Recipe("own", "q8_0", "turbo4")) == "own: K q8_0, V turbo4"


@pytest.mark.parametrize(
    ("name", "head_dim", "taken"),
    [
        ("turbo3", 64, "turbo3_h64"),
        ("turbo4_lm", 64, "turbo4_lm_h64"),
        ("trellis3", 192, "trellis3_h64"),
        ("turbo3", 128, "turbo3"),
        ("turbo3", 256, "turbo3"),
        ("turbo3", 96, "turbo3"),  # 64 does not divide it either: padded
        ("turbo4", 64, "turbo4"),  # the fork's own table has no blocks of 64
        ("q8_0", 64, "q8_0"),
    ],
)
def test_blocks_of_64_are_taken_where_128_would_pad(name, head_dim, taken):
    assert fitted(name, head_dim) == taken
    assert taken in formats.names()


def test_a_file_says_what_a_line_says(tmp_path):
    path = toml(tmp_path, 'k = "turbo3"\nv = "q8_0"\nsinks = 2\ncalibration = "c.safetensors"\n')
    found = load(path)
    assert found == get(path) == side(str(path))
    assert (found.name, found.k, found.v, found.sinks, found.window) == (
        "mine",
        "turbo3",
        "q8_0",
        2,
        0,
    )
    assert found.calibration == str(tmp_path / "c.safetensors")  # beside the recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'k = "turbo3"\nv = "turbo3"\nsink = 4\n',
            "unknown key 'sink'; known: calibration, k, name",
        ),
        ('k = "turbo3"\n', "no 'v': a recipe needs a format for k and for v"),
        ('k = "turbo9"\nv = "turbo3"\n', "unknown format 'turbo9'; known: f32"),
        ('k = "turbo3"\nv = 3\n', "v is 3, expected a text"),
        ('k = "turbo3"\nv = "f16"\nwindow = "32"\n', "window is '32', expected a whole number"),
        ('k = "turbo3"\nv = "f16"\nwindow = true\n', "window is True, expected a whole number"),
        ('k = "turbo3"\nv = "f16"\nsinks = -1\n', "sinks is -1, expected 0 or more"),
        (
            'k = "turbo3"\nv = "f16"\ntransform = "whiten"\n',
            "unknown transform 'whiten'; known: none",
        ),
        ("k = turbo3\n", "Invalid value"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=r"mine\.toml") as caught:
        load(toml(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown recipe 'cw9'; known: w3, cw3"):
        get("cw9")
    with pytest.raises(ValueError, match=r"unknown format 'cw9'; known: f32.*; recipes: w3, cw3"):
        side("cw9")
    with pytest.raises(FileNotFoundError, match=r"no recipe file .*none\.toml"):
        side(str(tmp_path / "none.toml"))


def test_labels():
    own = Recipe("own", "turbo3", "q8_0", 4)
    assert pair_label(own, own) == "own"
    assert pair_label(own, "f16") == "own/f16"
    assert pair_label("f16", ["q8_0", "f16", "q8_0"]) == "f16/q8_0+f16"


# ---- caches


def test_a_side_is_what_the_recipe_says_of_it(tiny_model):
    """As k its K format and tokens, as v its V format; both together the whole recipe."""
    own = Recipe("own", "turbo3", "q8_0", sinks=2, window=3)
    cache = tiny_model.new_cache(own, own, 64)
    assert (cache.k_format, cache.v_format) == (["turbo3"] * 3, ["q8_0"] * 3)
    assert (cache.policy.sinks, cache.policy.window) == (2, 3)
    one = tiny_model.new_cache(own, "f16", 64)
    assert (one.k_format, one.v_format, one.policy.sinks) == (["turbo3"] * 3, "f16", 2)
    with pytest.raises(ValueError, match="recipes own and w3 keep different tokens exact"):
        tiny_model.new_cache(own, "w3", 64)


def test_without_a_recipe_there_is_no_policy(tiny_model):
    assert tiny_model.new_cache("turbo3", "q8_0", 64).policy is None


def test_what_is_on_is_said_once(tiny_path, capsys):
    import tqlab

    model = tqlab.load_model(tiny_path, device="cpu")
    for _ in range(2):
        model.new_cache("w3", "w3", 64)
    said = capsys.readouterr().err
    assert said.count("w3: K turbo3, V turbo3, 4 first and last 32 tokens f16") == 1


def test_a_cache_that_starts_later_counts_on(tiny_model):
    """A start is an offset of all positions: like tokens that nobody sees."""
    ids = torch.randint(
        tiny_model.config.n_vocab, (1, 20), generator=torch.Generator().manual_seed(1)
    )
    lead = ids[:, :1].repeat(1, 50)
    late = tiny_model(ids, tiny_model.new_cache("f32", "f32", 20, start=50))
    # rope depends on distances only, so logits do not change but for float32 angles
    plain = tiny_model(ids, tiny_model.new_cache("f32", "f32", 20))
    torch.testing.assert_close(late, plain, atol=2e-4, rtol=0)
    cos, _ = tiny_model.rope.tables(tiny_model.new_cache("f32", "f32", 20, start=50), 20)
    cache = tiny_model.new_cache("f32", "f32", 70)
    tiny_model.run(lead, cache)
    assert torch.equal(cos, tiny_model.rope.tables(cache, 20)[0])
    with pytest.raises(ValueError, match="20 tokens from position 120 on exceed the context"):
        tiny_model.new_cache("f32", "f32", 20, start=120)


def test_what_recipes_save_on_a_model_with_windows_and_experts(own_data):
    """Times less KL than turbo3, calibrated on the package's own text (LOG.md, 140 chunks)."""
    model = load_model("tiny-gemma4", "cpu")
    tokens = model.tokenizer.encode(data.load_text("tiny-stories").text[:10_000])

    def kl(name):
        return perplexity(model, tokens, 512, 4, name, name, reference=("f16", "f16")).kld_mean

    plain = kl("turbo3")
    assert 0.007 < plain < 0.016  # 0.0109; 0.0115 on 140 chunks
    # A router's jumps give KL heavy tails: 4 chunks differ by a third from 140.
    assert plain > 5 * kl("cw3")  # 7.8; 7.6
    assert plain > 15 * kl("best4")  # 27; 24
