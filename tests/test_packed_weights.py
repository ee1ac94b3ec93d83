"""Packed TQ weights: x is rotated once, weights never, and no dense copy is held, measured."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tinyllama
import tinyvocab
import torch
from ggufwriter import File, Tensor

import tqlab
from tqlab import formats, metal, ops, rotation
from tqlab.models import matrices

MODEL = tinyllama.oracle(head_dim=16)
IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 64, 2, 118, 90]])


@pytest.fixture(scope="module", params=["tq4_1s", "tq3_1s"])
def path(request, tmp_path_factory):
    target = tmp_path_factory.mktemp("packed") / f"{request.param}.gguf"
    return tinyllama.gguf_file(MODEL, request.param).write(target)


def load(path, mode):
    return tqlab.load_model(path, device="cpu", weights=mode)


def test_packed_logits_are_the_dense_ones(path):
    torch.testing.assert_close(
        load(path, "packed")(IDS), load(path, "dense")(IDS), rtol=0, atol=1e-4
    )


def test_a_whole_model_through_the_shaders(path):
    """Mat-vec, mat-mul, rotation and embedding, executed lane by lane in the simulator."""
    model = load(path, "packed")
    expected = model(IDS)
    with metal.simulate("sim"):
        torch.testing.assert_close(model(IDS), expected, rtol=0, atol=1e-4)


@pytest.fixture
def rotations(monkeypatch):
    """The shapes that were rotated, and whether any weight was un-rotated."""
    seen, turn = [], ops.wht
    monkeypatch.setattr(
        ops, "wht", lambda x, *rest: (seen.append(tuple(x.shape)), turn(x, *rest))[1]
    )

    def refuse(*_):
        raise AssertionError("a weight was un-rotated")

    monkeypatch.setattr(rotation, "unrotate", refuse)
    return seen


def packed(fmt, rows, columns, seed=0):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return matrices.Packed(formats.get(fmt).quantize(x), fmt)


def test_joined_matrices_rotate_once(rotations):
    parts = [packed("tq4_1s", 6, 64, 1), packed("q8_0", 5, 64, 2), packed("tq3_1s", 4, 64, 3)]
    x = torch.randn(2, 3, 64)
    together = matrices.Joined(parts)(x)
    assert rotations == [(2, 3, 64)]
    assert torch.equal(together, torch.cat([part(x) for part in parts], -1))


def test_x_is_not_written(rotations):
    x = torch.randn(4, 64)
    kept = x.clone()
    packed("tq4_1s", 6, 64)(x)
    assert torch.equal(x, kept)
    assert torch.equal(packed("tq4_1s", 6, 64)(x.T.contiguous().T), packed("tq4_1s", 6, 64)(x))


# ---- memory

MEASURE = """
import gc, json, sys, torch, tqlab
from benchmarks.file_memory import peak_bytes

matrices, linear = sys.modules["tqlab.models.matrices"], sys.modules["tqlab.ops.linear"]
matrices._TILE_VALUES = linear._TILE_VALUES = 1 << 18  # so that a small model shows the difference
small = tqlab.formats.get("tq4_1s").quantize(torch.randn(64, 64))
matrices.Packed(small, "tq4_1s")(torch.randn(2, 64))  # what torch loads at first use
before = peak_bytes()
model = tqlab.load_model(sys.argv[1], device="cpu", weights=sys.argv[2])
cache = model.new_cache("q8_0", "turbo4", 16)
model(torch.arange(12)[None], cache, last_only=True)
model(torch.arange(1)[None], cache)
grown = peak_bytes() - before
floats = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.is_floating_point()]
held = sum({t.data_ptr(): t.nbytes for t in floats}.values())
print(json.dumps({"grown": grown, "floats": held, "nbytes": model.nbytes}))
"""


def random_tq4(name: str, rows: int, columns: int, rng) -> Tensor:
    """A matrix of random codes with small scales: quantising as much would take minutes."""
    fmt = formats.get("tq4_1s")
    b = rng.integers(0, 256, (rows * columns // 32, fmt.block_bytes), np.uint8)
    b[:, :4] = np.full(2, 0.02, np.float16).view(np.uint8)
    return Tensor(name, (columns, rows), fmt.ggml_type, b.tobytes())


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, int]:
    """A llama of 34 million weights, all matrices tq4_1s; and the bytes of a dense copy."""
    width, hidden, layers, rng = 1024, 4096, 2, np.random.default_rng(0)
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width))
    shapes |= {"ffn_gate": (hidden, width), "ffn_up": (hidden, width), "ffn_down": (width, hidden)}
    keys = {
        "block_count": layers,
        "context_length": 64,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "attention.head_count": 8,
        "attention.head_count_kv": 8,
    }
    metadata = [("general.architecture", "str", "llama"), ("general.name", "str", "large")]
    metadata += [(f"llama.{key}", "u32", n) for key, n in keys.items()]
    metadata += [("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5)]
    tensors = [random_tq4("token_embd.weight", len(tinyvocab.TOKENS), width, rng)]
    tensors += [Tensor.f32("output_norm.weight", np.ones(width))]
    for i in range(layers):
        tensors += [random_tq4(f"blk.{i}.{n}.weight", *shape, rng) for n, shape in shapes.items()]
        tensors += [
            Tensor.f32(f"blk.{i}.{n}.weight", np.ones(width)) for n in ("attn_norm", "ffn_norm")
        ]
    file = File([*metadata, *tinyvocab.metadata()], tensors)
    path = file.write(tmp_path_factory.mktemp("large") / "large.gguf")
    return path, 4 * sum(np.prod(t.ne) for t in tensors)


def measured(path: Path, mode: str) -> dict:
    command = [sys.executable, "-c", MEASURE, str(path), mode]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_tq4_1s_model_never_holds_a_dense_copy(large):
    """Peak resident memory of a fresh process, and every float tensor alive after two steps."""
    path, dense = large
    found = measured(path, "packed")
    assert found["nbytes"] < 0.16 * dense, "5 bits a weight, not 32"
    assert found["floats"] < 0.02 * dense, "norms, tables and activations only"
    assert found["grown"] < path.stat().st_size + 48e6 < 0.55 * dense


def test_the_measurement_sees_a_dense_copy(large):
    path, dense = large
    found = measured(path, "dense")
    assert found["grown"] > 0.9 * dense
    assert found["floats"] > 0.9 * dense
