"""Every number in the shaders' tables is the Python package's: one source of truth."""

import re

import numpy as np
import pytest
import torch

from tqlab import codebook, formats, metal, rotation

ARRAY = re.compile(r"^constant (?:constexpr )?(uint|float) (\w+)\[(\d+)\] =\s*\{([^}]*)\};", re.M)
SCALAR = re.compile(r"^constant constexpr float (\w+) = ([\d.e+-]+)f;", re.M)


def texts() -> list[str]:
    files = [*metal.shader_dir().glob("*.metal"), *metal.shader_dir().glob("*.h")]
    return [path.read_text("ascii") for path in files]


def arrays() -> dict[str, np.ndarray]:
    """Every table by name. Fails on a name that is used twice."""
    found = {}
    for text in texts():
        for kind, name, size, body in ARRAY.findall(text):
            assert name not in found, f"{name} is defined twice"
            items = [item.strip().removesuffix("f") for item in body.split(",")]
            number, dtype = ((lambda i: int(i, 0)), np.uint32) if kind == "uint" else (float, "f4")
            found[name] = np.array([number(i) for i in items], dtype)
            assert len(items) == int(size), f"{name} has {len(items)} of {size} values"
    return found


def expected() -> dict[str, np.ndarray]:
    tables = {f"TABLE_{b}": getattr(codebook, b) for b in ("TQ3", "TQ4")}
    for name in ("turbo2", "turbo3", "turbo4", "turbo4_lm"):
        tables[f"TABLE_{name.upper()}"] = formats.get(name).table
        tables[f"STEPS_{name.upper()}"] = formats.get(name).thresholds
    for bits in (2, 3, 4):
        tables[f"TABLE_TRELLIS{bits}"] = formats.trellis.table(bits).numpy()
    masks = {
        "SIGNS_128_BEFORE": rotation._S1_128,
        "SIGNS_128_AFTER": rotation._S2_128,
    }
    floats = {name: np.array(t, np.float32) for name, t in tables.items()}
    return floats | {name: np.array(m, np.uint32) for name, m in masks.items()}


@pytest.mark.parametrize("name", sorted(set(arrays()) | set(expected())))
def test_table(name):
    shader, python = arrays(), expected()
    assert name in python, f"{name} is a table that no Python module vouches for"
    assert name in shader, f"{name} is missing from the shaders"
    np.testing.assert_array_equal(shader[name], python[name])


def test_signs_32():
    (mask,) = (int(m, 16) for t in texts() for m in re.findall(r"uint SIGNS_32 = (0x\w+);", t))
    assert (mask,) == rotation._T_32


@pytest.mark.parametrize("n", [32, 64, 128])
def test_scale(n):
    (value,) = (v for text in texts() for k, v in SCALAR.findall(text) if k == f"SCALE_{n}")
    last = rotation._signs(f"wht{n}", torch.device("cpu"))[1].abs()
    assert np.float32(value) == last.max().item() == last.min().item()


def test_length_of_64_values():
    (value,) = (v for text in texts() for k, v in SCALAR.findall(text) if k == "LENGTH_64")
    assert np.float32(value) == np.float32(formats.get("turbo3_h64")._length)


def test_shaders_are_ascii_and_say_what_they_do():
    for path in metal.shader_dir().glob("*.metal"):
        head = path.read_text("ascii").split("#include")[0]
        assert re.match(r"// \w\S* = ", head), f"{path.name}: the first line is one torch line"
        assert "// Shapes:" in head, f"{path.name}: shapes are missing"
        assert "// Grid:" in head, f"{path.name}: the grid is missing"
