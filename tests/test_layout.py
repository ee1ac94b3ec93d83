"""The shape of the repository: who imports whom, one list of requirements, no local paths."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# A module imports only modules of its own line or of the lines above it.
LAYERS = [
    "version device progress smoke data",
    "packing rotation codebook innerproduct",
    "formats",
    "metal",
    "ops",  # above formats: those are its references
    "gguf_file gguf_write policies quantize convert chat tokenizer",
    "calibration chunks transforms",
    "kvcache",
    "attention",
    "recipes calibrate",
    "models",
    "generate",
    "metrics",
    "sweep",
    "measure pr52 tables",
    "plots",
    "widgets",
    "selftest_cases sentence",
    "selftest",
    "cli",
    "__init__ __main__",
]
RANK = {name: rank for rank, line in enumerate(LAYERS) for name in line.split()}


def module_of(path: Path) -> str:
    """The name in LAYERS of a file under tqlab/: a module, or the package it lies in."""
    return path.relative_to(ROOT / "tqlab").parts[0].removesuffix(".py")


def imported(source: str, package: list[str]) -> set[str]:
    """Every dotted name a source imports, at any depth; `package` resolves relative imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def tqlab_imports(source: str, package: list[str]) -> set[str]:
    """The names in LAYERS that a source imports; __init__ for anything of tqlab itself."""
    parts = [name.split(".") for name in imported(source, package)]
    inside = [part[1:2] for part in parts if part[0] == "tqlab"]
    files = {module_of(path) for path in (ROOT / "tqlab").rglob("*.py")} | set(RANK)
    return {part[0] if part and part[0] in files else "__init__" for part in inside}


def too_high(module: str, imports: set[str]) -> list[str]:
    """The imports that point the wrong way."""
    return sorted(name for name in imports if RANK[name] > RANK[module])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tqlab").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_point_down(path):
    module = module_of(path)
    package = list(path.relative_to(ROOT).parent.parts)
    for name in {module} | (uses := tqlab_imports(path.read_text("utf-8"), package)):
        assert name in RANK, f"tqlab.{name} is new: add it to LAYERS in {Path(__file__).name}"
    assert not too_high(module, uses), f"tqlab.{module} may not import {too_high(module, uses)}"


@pytest.mark.parametrize("path", sorted((ROOT / "metalsim").rglob("*.py")), ids=lambda p: p.name)
def test_metalsim_knows_nothing_of_tqlab(path):
    package = list(path.relative_to(ROOT).parent.parts)
    assert not tqlab_imports(path.read_text("utf-8"), package)


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import tqlab", ["tqlab"], {"__init__"}),
        ("from tqlab import load_model", ["tqlab"], {"__init__"}),
        ("from tqlab import sweep, formats", ["tqlab"], {"sweep", "formats"}),
        ("def f():\n    from ..cli import main", ["tqlab", "formats"], {"cli"}),
        ("from . import turbo3", ["tqlab", "formats"], {"formats"}),
        ("import tqlab.ops as o, numpy", ["tqlab"], {"ops"}),
        ("from torch import sweep", ["tqlab"], set()),
    ],
)
def test_the_import_rule_sees(source, package, expected):
    assert tqlab_imports(source, package) == expected


def test_the_import_rule_refuses():
    assert too_high("formats", {"packing", "formats", "kvcache", "__init__"}) == [
        "__init__",
        "kvcache",
    ]


def test_conda_and_pip_ask_for_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert conda["channels"] == ["conda-forge", "nodefaults"]
    (block,) = (item["pip"] for item in conda["dependencies"] if isinstance(item, dict))
    assert [line for line in block if not line.startswith("-")] == wanted


def test_every_requirement_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+", pin) for pin in pins), "exact, no local version"
    pinned = {pin.split("==")[0] for pin in pins}
    asked = {re.split("[<>=]", name)[0].lower().replace("_", "-") for name in wanted}
    assert asked <= pinned


def texts() -> list[tuple[str, str]]:
    """(path, content) of every text file that git would carry."""
    # A checkout that belongs to another user is fine to list.
    command = ["git", "-c", "safe.directory=*", "ls-files"]
    command += ["--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for name in names.splitlines():
        try:
            found.append((name, (ROOT / name).read_text("utf-8")))
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
    return found


@pytest.mark.skipif(
    not shutil.which("git") or not (ROOT / ".git").exists(), reason="not a git checkout"
)
def test_no_local_paths():
    local = re.compile(r"(?<![\w.}~-])/(?:home|Users|root|tmp|work|private)/[\w.-]+")
    hits = [f"{name}: {match[0]}" for name, content in texts() for match in local.finditer(content)]
    assert not hits, f"a path of one machine: {hits[:5]}"
