"""Fixtures for metalsim's own tests: shaders by file name, compiled once per mode."""

import sys
from pathlib import Path

import pytest

# This folder's name must not stand in for the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import metalsim

SHADERS = Path(__file__).parent / "shaders"


@pytest.fixture(scope="session")
def compiler():
    """The compiler in use."""
    try:
        return metalsim.find_compiler()
    except metalsim.CompilerNotFound as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def load(compiler):
    """load("planted", check=True): the library of a shader in this folder."""
    libraries = {}

    def get(stem: str, check: bool = True):
        if (stem, check) not in libraries:
            name = f"{stem}.metal"
            source = (SHADERS / name).read_text()
            libraries[stem, check] = metalsim.compile_shader(
                source, check=check, name=name, timeout=30
            )
        library = libraries[stem, check]
        library.seed = 0
        return library

    return get


@pytest.fixture(params=[False, True], ids=["plain", "checked"])
def features(request, load):
    """The correct kernels, in both modes."""
    return load("features", request.param)
