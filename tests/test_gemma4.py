"""Gemma 4: logits of every variant, the facts that logits do not show, and what files may do."""

import inspect
import types
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tiny import FULL, SLIDING

from tqlab.gguf_file import GGUFFile
from tqlab.models import gemma4, load_model, matrices
from tqlab.models.weights import Weights

DATA = Path(__file__).parent / "data"
FIXTURES = ["dense", "e2b", "e4b", "moe96"]
TOLERANCE = 1e-3
SPLITS = {"single": 1, "chunks of 7": 7, "uneven": [13] + [1] * 17 + [18]}

E_MODEL = {
    "attention_k_eq_v": False,
    "num_global_key_value_heads": None,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 3,
    "layer_types": [SLIDING, SLIDING, FULL] * 2,
}
EXPERTS = {"enable_moe_block": True, "moe_intermediate_size": 32}
VARIANTS = {
    "dense": {},
    "no K==V": {"attention_k_eq_v": False, "num_global_key_value_heads": None},
    "window 1": {"sliding_window": 1},
    "window 3": {"sliding_window": 3, "layer_types": [SLIDING, FULL, SLIDING, FULL]},
    "window past the end": {"sliding_window": 100},
    "only full": {"layer_types": [FULL, FULL]},
    "one KV head": {**E_MODEL, "num_key_value_heads": 1, "use_double_wide_mlp": True},
    "shared": E_MODEL,
    "donor not last": {**E_MODEL, "layer_types": [SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL]},
    "experts 7 top 3": {**EXPERTS, "num_experts": 7, "top_k_experts": 3},
    "experts 96 top 8": {**EXPERTS, "num_experts": 96, "top_k_experts": 8},
    "one expert": {**EXPERTS, "num_experts": 1, "top_k_experts": 1},
    "everything": {**E_MODEL, **EXPERTS, "num_experts": 5, "top_k_experts": 2},
}


def build(path, mode="dense", module=gemma4):
    """The model of a file, whatever its tokeniser."""
    return module.Gemma4(Weights(GGUFFile(path), torch.device("cpu"), mode))


def fixture(name):
    with np.load(DATA / f"gemma4-{name}.logits.npz") as arrays:
        return torch.from_numpy(arrays["ids"]).long()[None], torch.from_numpy(arrays["logits"])


def difference(model, ids, logits, split=None):
    whole = model(ids) if split is None else tiny.split_logits(model, ids, split)
    return float((whole - logits).abs().max())


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys(), scope="module")
def variant(request, tmp_path_factory):
    """(path, ids, transformers' logits)."""
    file, model = tiny.gemma4(seed=1, **request.param)
    ids = tiny.some_ids(2, 40)
    path = file.write(tmp_path_factory.mktemp("gemma4") / "model.gguf")
    return path, ids, tiny.reference(model, ids)


@pytest.mark.parametrize("mode", ["dense", "packed"])
@pytest.mark.parametrize("name", FIXTURES)
def test_fixture_logits(name, mode):
    model = load_model(DATA / f"gemma4-{name}.gguf", device="cpu", weights=mode)
    ids, logits = fixture(name)
    assert difference(model, ids, logits) < TOLERANCE
    for split in SPLITS.values():
        assert difference(model, ids, logits, split) < TOLERANCE


def test_variant_logits(variant):
    path, ids, logits = variant
    model = build(path)
    assert difference(model, ids, logits) < TOLERANCE
    for split in (1, 9):
        assert difference(model, ids, logits, split) < TOLERANCE


def planted(old, new):
    """The module with one slip in its source."""
    source = inspect.getsource(gemma4)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
    module = types.ModuleType("tqlab.models.gemma4_slip")
    module.__package__ = "tqlab.models"
    exec(compile(source.replace(old, new), "gemma4_slip", "exec"), module.__dict__)
    return module


SLIPS = {  # what: (fixture, the source's text, what it becomes)
    "embedding scale": ("dense", "(ids) * self.config.n_embd**0.5", "(ids)"),
    "attention scale": ("dense", "attend(q, view, 1.0)", "attend(q, view, q.shape[-1] ** -0.5)"),
    "K==V after its norm": ("dense", "rms_norm(kv[-1], None", "rms_norm(k, None"),
    "V norm": ("dense", "v = rms_norm(kv[-1], None, self.eps)", "v = kv[-1]"),
    "q norm": ("dense", "rope_neox(rms_norm(q, self.q_norm, self.eps), *", "rope_neox(q, *"),
    "window": ("dense", "(sliding_head_dim(keys, c), window)", "(c.head_dim // 2, window + 1)"),
    "rope factors": ("dense", "self.device, factors,", "self.device, None,"),
    "sliding base": ("dense", "True: Rope(n_sliding, base,", "True: Rope(n_sliding, c.rope_base,"),
    "layer scale": ("dense", "y if self.out_scale is None else y * self.out_scale", "y"),
    "softcap": ("dense", "softcapped(self.unembed(x), self.softcap)", "self.unembed(x)"),
    "post-attention norm": ("dense", "rms_norm(o, self.post_attn_norm, self.eps)", "o"),
    "layer scale before PLE": (
        "e2b",
        "self.ple(y, ple) if self.ple",
        "self.ple(y / 2, ple) * 2 if 1",
    ),
    "donor": ("e2b", "if i < own else same[-1]", "if i < own else same[0]"),
    "PLE table scale": ("e2b", "self.table.rows(ids) * self.width**0.5", "self.table.rows(ids)"),
    "PLE layer order": ("e2b", "ple[i], angles", "ple[-1 - i], angles"),
    "gate and up": ("moe96", "gate, up = gate_up.chunk", "up, gate = gate_up.chunk"),
    "experts' norm": ("moe96", "rms_norm(h, self.pre_norm", "rms_norm(h, self.dense_norm"),
    "sigmoid routing": ("moe96", "(r).softmax(-1)", "(r).sigmoid()"),
    "router scale": ("moe96", "* self.router_scale * h.shape", "* h.shape"),
}


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS.keys())
def test_a_slip_shows_in_logits(slip):
    name, old, new = slip
    model = build(DATA / f"gemma4-{name}.gguf", module=planted(old, new))
    assert difference(model, *fixture(name)) > 5 * TOLERANCE


def moe_of(module):
    model = build(DATA / "gemma4-moe96.gguf", module=module)
    return model.layers[1].moe, GGUFFile(DATA / "gemma4-moe96.gguf")


def check_routing(module):
    """The router against the description, in float64; random scales tell the orders apart."""
    moe, file = moe_of(module)
    h = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3)) * 3
    weight, scale, each = (
        file.dequantize(f"blk.1.{part}").double()
        for part in ("ffn_gate_inp.weight", "ffn_gate_inp.scale", "ffn_down_exps.scale")
    )
    r = h.double() / (h.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    p = ((r * scale / 8) @ weight.T).softmax(-1)  # 8 = sqrt(64)
    best, chosen = p.sort(-1, descending=True)
    best, chosen = best[..., :8], chosen[..., :8]
    expected = best / best.sum(-1, keepdim=True) * each[chosen]
    weights, picked = moe.route(h)
    assert torch.equal(picked, chosen)
    torch.testing.assert_close(weights, expected.float(), atol=1e-6, rtol=1e-5)


def check_per_layer_inputs(module):
    """The per-layer vectors against the description, in float64."""
    path = DATA / "gemma4-e2b.gguf"
    model, file = build(path, module=module), GGUFFile(path)
    # Small embeddings, so that the norm's epsilon tells the scale of the projection's input.
    ids, x = tiny.some_ids(1, 6), 1e-3 * torch.randn(1, 6, 64, generator=torch.manual_seed(4))
    table, project, norm = (
        file.dequantize(f"per_layer_{part}.weight").double()
        for part in ("token_embd", "model_proj", "proj_norm")
    )
    a = table[ids].view(1, 6, 10, 16) * 4
    b = (x.double() @ project.T / 8).view(1, 6, 10, 16)
    b = b / (b.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm
    expected = ((a + b) / 2**0.5).float()
    torch.testing.assert_close(model.ple(ids, x), expected, atol=1e-5, rtol=1e-4)


def check_projection_input(module):
    """The projection reads the embedding after its scaling by sqrt(n_embd)."""
    model, seen = build(DATA / "gemma4-e2b.gguf", module=module), []
    inner = model.ple.project
    model.ple.project = lambda x: seen.append(x) or inner(x)
    ids = tiny.some_ids(1, 6)
    model(ids)
    torch.testing.assert_close(seen[0], model.embed.rows(ids) * 8)


HIDDEN = {
    "top-k renorm": (check_routing, "weights / weights.sum(-1, keepdim=True)", "weights"),
    "scale inside the renorm": (
        check_routing,
        """        weights = weights / weights.sum(-1, keepdim=True)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[chosen]
""",
        """        weights = weights * self.expert_scale[chosen]
        weights = weights / weights.sum(-1, keepdim=True)
""",
    ),
    "PLE 2^-0.5": (check_per_layer_inputs, ") * 2**-0.5", ")"),
    "PLE projection's output scale": (check_per_layer_inputs, "* x.shape[-1] ** -0.5", "* 1.0"),
    "PLE projection's input": (
        check_projection_input,
        "self.ple(ids, x)",
        "self.ple(ids, x * c.n_embd**-0.5)",
    ),
}


@pytest.mark.parametrize("check", [check_routing, check_per_layer_inputs, check_projection_input])
def test_facts_that_logits_do_not_show(check):
    check(gemma4)


@pytest.mark.parametrize("slip", HIDDEN.values(), ids=HIDDEN.keys())
def test_a_slip_that_logits_do_not_show_is_caught(slip):
    check, old, new = slip
    with pytest.raises(AssertionError, match="not close"):
        check(planted(old, new))


def test_only_experts_in_use_are_run_and_each_once(monkeypatch):
    moe, _ = moe_of(gemma4)
    calls = []
    run = matrices.Dense.__call__
    monkeypatch.setattr(matrices.Dense, "__call__", lambda m, x: calls.append(len(x)) or run(m, x))
    x = torch.randn(1, 30, 64)
    weights, chosen = moe.route(x)
    calls.clear()
    moe.experts(x, weights, chosen)
    assert len(calls) == 2 * len(chosen.unique())
    assert sum(calls) == 2 * 30 * 8


@pytest.mark.parametrize("mode", ["dense", "packed"])
def test_per_layer_table_is_unpacked_by_looked_up_rows_only(tmp_path, monkeypatch, mode):
    kinds = {"per_layer_token_embd.weight": "q8_0", "token_embd.weight": "q8_0"}
    file, _ = tiny.gemma4(types=lambda name: kinds.get(name, "f32"), **E_MODEL)
    model = build(file.write(tmp_path / "m.gguf"), mode)
    rows = []
    run = matrices.dequantize
    monkeypatch.setattr(
        matrices, "dequantize", lambda raw, kind: rows.append(len(raw)) or run(raw, kind)
    )
    model.ple.table.rows(tiny.some_ids(1, 5))
    model.embed.rows(tiny.some_ids(1, 5))
    assert rows == ([5] if mode == "dense" else [5, 5])
    table = tiny.N_VOCAB * 6 * 16 * 34 // 32
    dense = tiny.N_VOCAB * 64 * 4
    assert model.ple.table.nbytes == table
    assert model.embed.nbytes == (dense if mode == "dense" else dense * 34 // 128)


def test_packed_and_dense_weights_agree(tmp_path):
    def kind(name):
        exact = ("norm", "scale", "gate_inp", "rope")
        return "f32" if any(part in name for part in exact) else quantised(name)

    def quantised(name):
        return "tq4_1s" if "exps" in name else "q8_0" if not name.endswith("proj.weight") else "f32"

    file, _ = tiny.gemma4(types=kind, **VARIANTS["everything"])
    path, ids = file.write(tmp_path / "m.gguf"), tiny.some_ids(2, 20)
    dense, packed = build(path, "dense"), build(path, "packed")
    torch.testing.assert_close(packed(ids), dense(ids), atol=1e-4, rtol=0)
    assert packed.nbytes < dense.nbytes / 2


def kl(logits, other):
    """Mean divergence of `other` from `logits`, nats."""
    return float(
        (logits.softmax(-1) * (logits.log_softmax(-1) - other.log_softmax(-1))).sum(-1).mean()
    )


PAIRS = [("f16", "f16"), ("q8_0", "turbo4"), ("turbo3", "turbo3"), ("turbo2", "q4_0")]


@pytest.mark.parametrize(("k", "v"), PAIRS)
@pytest.mark.parametrize("name", FIXTURES)
def test_every_format_gives_the_same_in_any_split(name, k, v):
    """One pass needs no ring, the others do; what is packed must be the same."""
    model, (ids, logits) = build(DATA / f"gemma4-{name}.gguf"), fixture(name)
    whole, *others = (tiny.split_logits(model, ids, split, k, v)[0] for split in (48, 1, 11))
    damage = kl(logits, whole)
    assert all(kl(whole, other) < damage / 50 + 1e-5 for other in others)
    assert damage < (1e-3 if k == "f16" else 1.5)


def test_the_cache_holds_windows_and_own_layers_only():
    model = build(DATA / "gemma4-e2b.gguf")
    cache = model.new_cache("f16", "f16", 100)
    own_sliding, own_full, both = 4, 1, 2 * 2  # bytes of K and V
    assert cache.nbytes == both * (own_sliding * 8 * 32 + own_full * 100 * 64)


def test_padded_rows_match_single_prompts(tmp_path):
    file, _ = tiny.gemma4(**VARIANTS["everything"])
    model, ids, pads = build(file.write(tmp_path / "m.gguf")), tiny.some_ids(3, 25), [0, 11, 20]
    cache = model.new_cache("f32", "f32", 25, batch=3, pads=pads)
    parts = [model(part, cache) for part in ids.split([22, 1, 2], 1)]
    for row, pad in enumerate(pads):
        alone = model(ids[row : row + 1, pad:])
        together = torch.cat(parts, 1)[row : row + 1, pad:]
        torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)
