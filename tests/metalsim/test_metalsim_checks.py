"""Every planted bug is reported at its line under every schedule, and nothing else is."""

import re
from pathlib import Path

import numpy as np
import pytest

import metalsim

SEEDS = range(50)
SOURCE = (Path(__file__).parent / "shaders" / "planted.metal").read_text().split("\n")
GROUPS_OF_32 = ("bug_in_place",)  # simdgroups in different threadgroups


def expectations() -> dict[str, set[tuple[str, int]]]:
    """For each bug the (kind, line) pairs that its comments name."""
    found: dict[str, set[tuple[str, int]]] = {}
    kernel = ""
    for number, text in enumerate(SOURCE, 1):
        if match := re.match(r"kernel void (\w+)", text):
            kernel = match.group(1)
        if match := re.search(r"// caught: (.*)", text):
            pairs = {(kind.strip(), number) for kind in match.group(1).split(",")}
            found.setdefault(kernel, set()).update(pairs)
    return found


BUGS = expectations()
CORRECT = re.findall(r"kernel void (ok_\w+)", "\n".join(SOURCE))


def arguments(kernel: str) -> list:
    """Arguments by parameter name, read from the kernel's signature."""
    start = next(i for i, t in enumerate(SOURCE) if f"void {kernel}(" in t)
    signature = "\n".join(SOURCE[start : start + 4]).split("{")[0]
    makers = {
        "const half\\* x": lambda: np.ones(128, np.float16),
        "half\\* y": lambda: np.ones(128, np.float16),
        "const uchar\\* x": lambda: np.zeros(512, np.uint8),
        "ushort\\* y": lambda: np.zeros(128, np.uint16),
        "uint\\* y": lambda: np.zeros(128, np.uint32),
        "float\\* x": lambda: np.arange(128, dtype=np.float32),
        "float\\* y": lambda: np.zeros(128, np.float32),
        "atomic_uint\\* count": lambda: np.zeros(1, np.uint32),
        "int& n": lambda: np.array([40], np.int32),
        "long& far": lambda: np.array([1 << 40], np.int64),
    }
    hits = [(m.start(), make) for p, make in makers.items() for m in re.finditer(p, signature)]
    starts: dict[int, object] = {}
    for name, make in makers.items():  # the more specific patterns come first
        for match in re.finditer(rf"[ \w]*{name}", signature):
            starts.setdefault(match.end(), make)
    assert hits
    return [starts[end]() for end in sorted(starts)]


def launch(library, kernel: str, seed: int) -> metalsim.Diagnostics | None:
    library.seed = seed
    try:
        group = 32 if kernel in GROUPS_OF_32 else 64
        getattr(library, kernel)(*arguments(kernel), threads=128, group_size=group)
    except metalsim.Diagnostics as caught:
        return caught
    return None


@pytest.mark.parametrize("kernel", sorted(BUGS))
def test_bug_is_caught_on_every_seed(load, kernel):
    library = load("planted")
    for seed in SEEDS:
        caught = launch(library, kernel, seed)
        assert caught is not None, f"seed {seed}"
        places = {(f.kind, f.line) for f in caught.findings}
        assert places & BUGS[kernel], f"seed {seed}: {caught}"
        assert places <= BUGS[kernel], f"seed {seed}: more than the planted bug: {caught}"


@pytest.mark.parametrize("kernel", CORRECT)
def test_no_false_alarm_on_any_seed(load, kernel):
    library = load("planted")
    for seed in SEEDS:
        assert launch(library, kernel, seed) is None


@pytest.mark.parametrize("check", [False, True])
def test_private_memory_starts_as_nan(compiler, check):
    source = """kernel void partial(device float* x, constant int& n) {
      float a[8];
      for (int i = 0; i < n; i++) a[i] = x[i];
      for (int i = 0; i < 8; i++) x[i] = a[i];
    }"""
    x = np.arange(8, dtype=np.float32)
    metalsim.compile_shader(source, check=check).partial(x, 5, threads=1, arg_casts={1: "int32"})
    np.testing.assert_array_equal(x, [0, 1, 2, 3, 4, *[np.nan] * 3])


def test_every_bug_kind_is_planted():
    assert {kind for pairs in BUGS.values() for kind, _ in pairs} == set(metalsim.KINDS)


def test_message_names_kind_file_line_and_threads(load):
    caught = launch(load("planted"), "bug_wrong_flag", 0)
    line = min(BUGS["bug_wrong_flag"])[1]
    assert re.search(
        rf"wrong memory flag: planted\.metal:{line}: .*lacks mem_threadgroup", str(caught)
    )
    assert caught.kinds == {"wrong memory flag"}
    assert isinstance(caught, RuntimeError)


def test_tensors_stay_as_they_were_when_a_launch_is_refused(load):
    x = np.arange(128, dtype=np.float32)
    with pytest.raises(metalsim.Diagnostics):
        load("planted").bug_in_place(x, threads=128, group_size=32)
    np.testing.assert_array_equal(x, np.arange(128, dtype=np.float32))


def test_partial_collectives_can_be_allowed(load):
    source = "\n".join(SOURCE)
    library = metalsim.compile_shader(
        source, check=True, name="planted.metal", partial_collectives=("bug_partial_sum",)
    )
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    library.bug_partial_sum(x, y, threads=64, group_size=64)
    np.testing.assert_array_equal(y[:10], [28] * 8 + [8, 9])


def test_the_example_in_the_readme_says_what_the_readme_shows(compiler):
    text = (Path(metalsim.__file__).parent / "README.md").read_text()
    program, shown = re.findall(r"```(?:python)?\n(.*?)```", text, re.S)[:2]
    with pytest.raises(metalsim.Diagnostics) as caught:
        exec(program, {})
    said = f"metalsim.Diagnostics: {caught.value}"
    assert said.split()[: len(shown.split()) - 1] == shown.split()[:-1]
