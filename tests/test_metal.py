"""Shaders found, inlined, compiled once; launches that cast and check; planted trouble named."""

import pytest
import torch

import metalsim
from tqlab import metal

CPU = torch.device("cpu")
HEADER = """
inline float next(device const float* x, uint i) {
  return x[i + 1];
}
"""
SHADER = """// y = x[i + 1] + k
#include "reach.h"
#include "reach.h"
#include <metal_stdlib>
using namespace metal;
kernel void reach(device const float* x, device float* y, constant int* k,
                  uint i [[thread_position_in_grid]]) {
  y[i] = next(x, i) + float(k[0] + k[1]);
}
"""


@pytest.fixture
def folder(tmp_path):
    """One shader with a header; the shader folder inside the test."""
    (tmp_path / "reach.h").write_text(HEADER)
    (tmp_path / "reach.metal").write_text(SHADER)
    with metal.shaders_from(tmp_path):
        yield tmp_path


def test_the_checkout_has_shaders():
    assert (metal.shader_dir() / "wht.metal").is_file()
    assert "wht" in metal.names()


def test_an_installed_package_keeps_shaders_beside_the_module(tmp_path, monkeypatch):
    (tmp_path / "tqlab" / "shaders").mkdir(parents=True)
    monkeypatch.setattr(metal, "__file__", str(tmp_path / "tqlab" / "metal.py"))
    assert metal.shader_dir() == tmp_path / "tqlab" / "shaders"


def test_headers_are_inlined_once_and_lines_keep_their_names(folder):
    text = metal.source("reach")
    assert text.count("inline float next") == 1
    assert '#line 1 "reach.h"' in text
    assert '#line 3 "reach.metal"' in text
    plain = metal.source("reach", marked=False)
    assert "#line" not in plain
    assert '#include "' not in plain


def test_the_digest_follows_headers(folder):
    before = metal.digest("reach")
    (folder / "reach.h").write_text(HEADER.replace("+ 1", "+ 2"))
    assert metal.digest("reach") != before


@pytest.mark.parametrize("name", ["absent", "orphan"])
def test_missing_files_are_named(folder, name):
    (folder / "orphan.metal").write_text('#include "nowhere.h"\n')
    with pytest.raises(FileNotFoundError, match=r"absent\.metal|nowhere\.h"):
        metal.source(name)


# ---- engines


def test_nothing_is_simulated_unless_asked(monkeypatch):
    monkeypatch.delenv("TQLAB_METAL", raising=False)
    assert metal.engine(CPU) is None
    assert metal.engine(torch.device("mps")) == "mps"


def test_the_environment_asks(monkeypatch):
    monkeypatch.setenv("TQLAB_METAL", "sim-checked")
    assert metal.engine(CPU) == "sim-checked"
    assert metal.engine(torch.device("cuda")) is None
    monkeypatch.setenv("TQLAB_METAL", "simulator")
    with pytest.raises(ValueError, match="TQLAB_METAL is one of sim, sim-checked, nvrtc"):
        metal.engine(CPU)


def test_a_with_block_asks_and_ends():
    with metal.simulate("sim"):
        assert metal.engine(CPU) == "sim"
        with metal.simulate("nvrtc"):
            assert metal.engine(CPU) is None
            assert metal.engine(torch.device("cuda")) == "nvrtc"
    assert metal.engine(CPU) is None
    with pytest.raises(ValueError, match="engine is one of"), metal.simulate("gpu"):
        pass


# ---- launches


def reach(x, k=(2, -5), engine="sim"):
    y = torch.zeros(3)
    with metal.simulate(engine):
        metal.launch("reach", "reach", x, y, list(k), threads=3)
    return y


def test_integers_arrive_as_int32(folder):
    """Uncast, [2, -5] would arrive as [2, 0, -5, -1] and add up to 2."""
    assert reach(torch.arange(4.0)).tolist() == [-2.0, -1.0, 0.0]


def test_checked_mode_names_the_header_and_line(folder):
    with pytest.raises(metalsim.Diagnostics, match=r"out of bounds.*reach\.h:3"):
        reach(torch.arange(3.0), engine="sim-checked")


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (torch.arange(8.0)[::2], (0, 0), "buffer 0 must be contiguous"),
        (torch.arange(4.0), (0, 2**31), "buffer 2 holds an integer beyond 32 bits"),
    ],
)
def test_bad_arguments_are_named(folder, x, k, message):
    with pytest.raises(ValueError, match=message):
        reach(x, k)


def test_a_library_is_compiled_once(folder):
    assert metal.library("reach", "sim") is metal.library("reach", "sim")
    assert metal.library("reach", "sim") is not metal.library("reach", "sim-checked")


def test_dtype_names():
    names = [metal.dtype_name(d) for d in (torch.float32, torch.float16, torch.bfloat16)]
    assert names == ["float", "half", "bfloat"]
