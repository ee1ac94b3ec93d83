"""Every shader in the simulator, plain and checked, over its cases; and the strict pass."""

import pytest
from shader_cases import cases

import metalsim
from tqlab import metal

SHADERS = metal.names()
ALL = [
    pytest.param(run, id=f"{shader}-{run.__name__}") for shader in SHADERS for run in cases(shader)
]


@pytest.fixture(scope="module")
def compiler():
    try:
        return metalsim.find_compiler()
    except metalsim.CompilerNotFound as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("run", ALL)
@pytest.mark.parametrize("engine", ["sim", "sim-checked"])
def test_case(compiler, engine, run):
    with metal.simulate(engine):
        run()


@pytest.mark.parametrize("shader", SHADERS)
def test_has_cases(shader):
    assert cases(shader), f"add tests/shader_cases/{shader}.py"


@pytest.mark.parametrize("shader", SHADERS)
def test_strict(compiler, shader):
    """Nothing that Apple's compiler would refuse about address spaces."""
    assert metalsim.strict_check(metal.source(shader, marked=False), f"{shader}.metal") == []
