"""Calibration: the statistics are those of keys and queries before rope; unfit files and texts."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import tqlab
from tqlab import data
from tqlab.calibrate import _Recorder, cached_path, calibrate
from tqlab.calibration import Calibration, token_runs
from tqlab.chunks import cut
from tqlab.metrics import perplexity
from tqlab.models.base import rms_norm
from tqlab.recipes import Recipe

DATA = Path(__file__).parent / "data"
CTX = 48
MODELS = ("llama", "qwen2", "gemma3", "gemma4-e2b", "gemma4-moe96")


def prose(seed: int, n: int = 1200) -> data.Text:
    """Random letters and spaces: no two texts share a run."""
    source = torch.Generator().manual_seed(seed)
    text = "".join("abcdefgh lor w"[i] for i in torch.randint(14, (n,), generator=source))
    return data.Text(f"prose {seed}", text, f"{seed:064x}")


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory, tiny_path):
    """A tiny model of every architecture: both ropes, windows, shared layers, experts."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    if request.param.startswith("gemma4"):
        path = DATA / f"{request.param}.gguf"
    elif request.param == "llama":
        path = tiny_path
    else:
        getattr(tiny, request.param)()[0].write(path)
    return tqlab.load_model(path, device="cpu")


@pytest.fixture(scope="module")
def made(tiny_model) -> Calibration:
    return calibrate(tiny_model, prose(1), chunks=4, ctx=CTX)


@pytest.fixture
def file(made, tmp_path) -> Path:
    return made.save(tmp_path / "tiny.safetensors")


# ---- statistics


def test_statistics_are_those_of_the_first_layers_keys_and_queries(tiny_model, made):
    """Computed by hand: layer 0 sees embeddings, and before rope there is no position."""
    pieces = cut(tiny_model.tokenizer.encode(prose(1).text), CTX, 4, tiny_model)
    layer, c = tiny_model.layers[0], tiny_model.config
    x = rms_norm(tiny_model.embed.rows(pieces[:, 4:]), layer.attn_norm, c.rms_eps)
    heads = layer.qkv(x).unflatten(-1, (-1, c.head_dim)).flatten(0, 1).double()  # [N, heads, D]
    q, k = heads[:, : c.n_heads], heads[:, c.n_heads : c.n_heads + c.n_kv_heads[0]]
    mean = k.mean(0)
    cov = torch.einsum("nhd,nhe->hde", k - mean, k - mean) / len(k)
    groups = q.unflatten(1, (c.n_kv_heads[0], -1))
    second = torch.einsum("nhgd,nhge->hde", groups, groups) / len(q)
    for found, expected in zip(vars(made.layers[0]).values(), (mean, cov, second), strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, (expected / scale).float(), atol=1e-5, rtol=0)


def test_a_donor_hears_the_queries_of_the_layers_that_share_it(monkeypatch):
    model, heard = tqlab.load_model(DATA / "gemma4-e2b.gguf", device="cpu"), {}
    query = _Recorder.query
    monkeypatch.setattr(
        _Recorder, "query", lambda s, q: heard.update({s: heard.get(s, 0) + 1}) or query(s, q)
    )
    found = calibrate(model, prose(1), chunks=1, ctx=CTX)
    donors = [shape.donor for shape in model.layer_shapes()]
    assert [layer is None for layer in found.layers] == [d is not None for d in donors]
    own = [i for i, donor in enumerate(donors) if donor is None]
    assert list(heard.values()) == [1 + donors.count(i) for i in own]
    assert max(heard.values()) > 1


# ---- theorems on whole models


@pytest.mark.parametrize("transform", ["centre", "pair-scale", "bal", "x"])
def test_without_rounding_a_recipe_changes_no_logit(model, transform, monkeypatch):
    """Every architecture, fed in chunks, from position 0 and from 30 on, windows shorter and
    longer than the layers' own."""
    monkeypatch.setattr("tqlab.kvcache.mixed.EXACT", "f32")
    monkeypatch.setattr(model, "calibration", calibrate(model, prose(1), chunks=3, ctx=CTX))
    ids = torch.randint(100, (1, 40), generator=torch.Generator().manual_seed(3))
    expected = model(ids)
    for sinks, window, start in ((0, 0, 0), (3, 4, 30), (2, 11, 0)):
        recipe = Recipe("own", "f32", "f32", sinks, window, transform)
        cache = model.new_cache(recipe, recipe, 40, start=start)
        found = torch.cat([model(part, cache) for part in ids.split([17, 1, 22], 1)], 1)
        # T and T^-1 cancel to the square root of their condition, some hundreds of roundings
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["cw3", "xw3"])
def test_named_recipes_give_the_same_logits_for_any_split(model, name, monkeypatch):
    """The packed bytes are the same for any split but where rounding tips an index."""
    monkeypatch.setattr(model, "calibration", calibrate(model, prose(1), chunks=3, ctx=CTX))
    ids = torch.randint(100, (1, 45), generator=torch.Generator().manual_seed(4))
    recipe = replace(tqlab.recipes.get(name), sinks=2, window=5)

    def logits(split):
        cache = model.new_cache(recipe, recipe, 45)
        return torch.cat([model(part, cache) for part in ids.split(split, 1)], 1).log_softmax(-1)

    whole, exact = logits([45]), model(ids).log_softmax(-1)
    own = (exact.exp() * (exact - whole)).sum(-1).mean()
    for split in ([1] * 45, [13, 1, 31]):
        other = logits(split)
        between = (whole.exp() * (whole - other)).sum(-1).mean()
        assert between < max(3e-3, own / 5)


# ---- the file


def test_a_file_gives_back_what_was_saved(made, file, tiny_model):
    found = Calibration.load(file)
    assert found.origin == made.origin
    assert (found.origin.text, found.origin.chunks, found.origin.ctx) == ("prose 1", 4, CTX)
    assert torch.equal(found.runs, made.runs)
    for a, b in zip(found.layers, made.layers, strict=True):
        assert all(torch.equal(vars(a)[name], vars(b)[name]) for name in vars(a))
    found.check(found.origin.model_sha256, tiny_model.layer_shapes())
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def changed(file: Path, drop=None, metadata=None, **tensors) -> Path:
    """The file with other contents."""
    with safe_open(file, "pt") as old:
        kept = {name: old.get_tensor(name) for name in old.keys() if name != drop}  # noqa: SIM118
        kept |= {name.replace("__", "."): x for name, x in tensors.items()}
        save_file(kept, file, metadata if metadata is not None else old.metadata())
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {}}, r"version None, expected '1'"),
        ({"drop": "layer.1.cov"}, r"layer\.1\.cov"),
        ({"drop": "runs"}, r"runs"),
        ({"layer__0__cov": torch.zeros(2, 3, 3)}, r"layer 0: shapes do not belong together"),
        ({"layer__0__mean": torch.full((2, 32), math.nan)}, r"layer 0: values that are not finite"),
        ({"layer__x__mean": torch.zeros(2, 32)}, r"not a calibration file"),
        ({"layer__7__mean": torch.zeros(2, 32)}, r"3 layers, 4 of them with keys"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(file, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        Calibration.load(changed(file, **changes))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_safetensors_are_refused(tmp_path):
    path = tmp_path / "junk.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="not a safetensors file"):
        Calibration.load(path)
    with pytest.raises(FileNotFoundError, match="make one with tqlab calibrate"):
        Calibration.load(tmp_path / "none.safetensors")


def test_another_models_file_is_refused(file, tiny_model):
    found, shapes = Calibration.load(file), tiny_model.layer_shapes()
    sha = found.origin.model_sha256
    with pytest.raises(ValueError, match=r"made for tiny \(sha256 .*not for this model \(abab"):
        found.check("ab" * 32, shapes)
    with pytest.raises(ValueError, match=r"3 layers; the model has 2"):
        found.check(sha, shapes[:2])
    with pytest.raises(ValueError, match=r"layer 0 has .* \(2, 32\), not \(2, 64\)"):
        found.check(sha, [replace(shape, head_dim=64) for shape in shapes])


# ---- where it comes from


def test_a_recipe_calibrates_once_and_keeps_the_file(tiny_path, own_data, capsys):
    def fresh():
        model = tqlab.load_model(tiny_path, device="cpu")
        model.new_cache("cw3", "cw3", 64)
        return model, capsys.readouterr().err

    model, said = fresh()
    assert f"calibrating tiny on {data.CALIBRATION_TEXT}, once" in said
    assert cached_path(model).is_file()
    assert own_data in cached_path(model).parents
    again, said = fresh()
    assert "calibrating" not in said
    assert f"calibrated on {data.CALIBRATION_TEXT} (12 x 128 tokens)" in said
    assert again.calibration.origin == model.calibration.origin


def test_a_recipes_own_file_comes_first(tiny_path, own_data, file):
    model = tqlab.load_model(tiny_path, device="cpu")
    own = Recipe("own", "turbo3", "turbo3", transform="bal", calibration=str(file))
    assert model.new_cache(own, own, 64).policy.calibration.origin.text == "prose 1"
    assert not cached_path(model).exists()


def test_without_a_transform_nothing_is_calibrated(tiny_path, own_data):
    model = tqlab.load_model(tiny_path, device="cpu")
    model.new_cache("w3", "w3", 64)
    assert model.calibration is None


def test_matrices_are_counted_apart(tiny_model, made, monkeypatch):
    """They belong to the model; what a cache stores is counted without them."""
    monkeypatch.setattr(tiny_model, "calibration", made)
    recipe = Recipe("own", "f32", "f32", transform="bal")
    cache = tiny_model.new_cache(recipe, recipe, 64)
    assert cache.nbytes == tiny_model.new_cache("f32", "f32", 64).nbytes
    assert cache.shared_nbytes == 3 * 2 * 4 * (2 * 32 * 32 + 32)  # T, T^-1 and mu


# ---- texts


@pytest.mark.parametrize("part", [slice(None), slice(0, 300), slice(40, 200)])
def test_measuring_on_the_text_of_the_calibration_is_refused(tiny_model, made, part, monkeypatch):
    """The whole of it, its beginning, and a piece out of its middle, cut in other places."""
    monkeypatch.setattr(tiny_model, "calibration", made)
    tokens = tiny_model.tokenizer.encode(prose(1).text)[part]
    for call in (
        lambda: perplexity(tiny_model, tokens, CTX, 2, "best3", "best3"),
        lambda: tqlab.sweep(tiny_model, tokens, ["best3"], CTX, 2, out=None),
    ):
        with pytest.raises(ValueError, match=r"shares \d+ runs of 32 tokens with prose 1"):
            call()
    perplexity(tiny_model, tokens, CTX, 2, "w3", "w3")  # which needs no calibration


def test_another_text_is_measured(tiny_model, made, monkeypatch, own_data):
    monkeypatch.setattr(tiny_model, "calibration", made)
    tokens = tiny_model.tokenizer.encode(prose(2).text)
    (row,) = tqlab.sweep(tiny_model, tokens, ["best3"], CTX, 2, out=None)
    assert (row["k"], row["v"], row["offset"]) == ("best3", "best3", 0)
    for part in ("K trellis3", "V trellis3", "last 32", "calibrated on prose 1 (4 x 48 tokens)"):
        assert part in row["recipe"]
    assert row["shared_nbytes"] > 0


def test_runs_that_say_nothing_are_left_out():
    """Rulers and blank lines repeat in any text."""
    assert len(token_runs([7] * 100)) == 0
    assert len(token_runs(list(range(31)))) == 0
    assert len(token_runs(list(range(40)))) == 9
    assert len(token_runs(list(range(40)) * 2)) == 40  # 49 places, 9 of them seen before


def test_a_text_too_short_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"one chunk needs 64: lower ctx"):
        calibrate(tiny_model, data.Text("short", "hello", "0" * 64), ctx=64)


def test_positions_may_start_anywhere(tiny_model, made, monkeypatch, own_data):
    """The reference moves along, and the row says so; no other point's row is taken for it."""
    monkeypatch.setattr(tiny_model, "calibration", made)
    tokens = tiny_model.tokenizer.encode(prose(2).text)
    rows = [
        tqlab.sweep(tiny_model, tokens, [pair], CTX, 2, None, offset=offset)[0]
        for pair in (("f16", "f16"), "best3")
        for offset in (0, 60)
    ]
    assert [row["offset"] for row in rows] == [0, 60, 0, 60]
    assert len({row["key"] for row in rows}) == 4
    assert all(row["kld_mean"] < 1e-4 for row in rows[:2])
    with pytest.raises(ValueError, match=r"48 tokens from position 100 on exceed the context"):
        perplexity(tiny_model, tokens, CTX, 2, offset=100)
