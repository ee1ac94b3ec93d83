"""The C++ compiler, and the cache of what it has built."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ._signatures import Kernel
from ._source_lines import add_source_lines
from ._translate import Translation, cpu_program, translate_source

PACKAGE = Path(__file__).resolve().parent
METAL_VERSION = 310  # what a macOS 14 toolchain compiles as
_COMMON = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-w",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fvisibility=hidden",
]
_SHADER = [
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-ftrivial-auto-var-init=pattern",  # private memory nobody has written: NaN, not luck
]
# The hooks know accesses of 1 to 16 bytes only, hence no vectoriser.
_CHECKED = [
    "-g1",
    "-fsanitize=thread",
    "-fsanitize=array-bounds",
    "-fno-sanitize-trap=array-bounds",
    "-fstrict-flex-arrays=3",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-fno-optimize-sibling-calls",
    "-mllvm",
    "-tsan-instrument-read-before-write",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
]


class CompilerNotFound(RuntimeError):
    """Neither the ziglang wheel nor a clang++ on PATH."""


@dataclass(frozen=True)
class Compiler:
    """A clang: the command that runs it, and what identifies it."""

    command: tuple[str, ...]
    version: str
    is_zig: bool

    @property
    def frontend(self) -> Compiler:
        """clang itself: zig's driver expects every compile to leave an object file."""
        return Compiler((self.command[0], "clang"), "", False) if self.is_zig else self

    @property
    def linker(self) -> Compiler:
        """A linker for C: zig would build its C++ library, which is not needed, for a minute."""
        return Compiler((self.command[0], "cc"), "", False) if self.is_zig else self

    def run(self, arguments: list[str], text: str = "") -> str:
        """Its output.

        Raises:
            SyntaxError: with the compiler's messages, when it fails.
        """
        code, output, messages = self.attempt(arguments, text)
        if code:
            raise SyntaxError(messages.strip() or f"{self.command[0]} failed")
        return output

    def attempt(self, arguments: list[str], text: str = "") -> tuple[int, str, str]:
        """Exit status, output and messages."""
        command = [*self.command, *arguments]
        with tempfile.TemporaryDirectory() as kept:  # zig never prunes what it keeps of a compile
            environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": kept}
            result = subprocess.run(
                command, input=text, capture_output=True, text=True, env=environment
            )
        return result.returncode, result.stdout, result.stderr


@functools.cache
def find_compiler() -> Compiler:
    """$METALSIM_CXX, else the ziglang wheel, else clang++ on PATH.

    Raises:
        CompilerNotFound: when there is none of them.
    """
    override = os.environ.get("METALSIM_CXX", "")
    names = [override] if override else ["clang++", *(f"clang++-{n}" for n in range(25, 14, -1))]
    if not override and (spec := importlib.util.find_spec("ziglang")) and spec.origin:
        version = importlib.metadata.version("ziglang")
        return Compiler((str(Path(spec.origin).parent / "zig"), "c++"), f"zig {version}", True)
    for name in names:
        if path := shutil.which(name):
            text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            return Compiler((path,), text.splitlines()[0] if text else path, False)
    raise CompilerNotFound("metalsim needs a compiler: pip install ziglang, or put clang++ on PATH")


def cache_directory() -> Path:
    """$METALSIM_CACHE, else the platform's cache directory."""
    if path := os.environ.get("METALSIM_CACHE"):
        return Path(path)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "metalsim"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metalsim"


def preprocess(source: str, name: str, command: list[str] | None = None) -> str:
    """`source` with its macros expanded and line markers that say `name`.

    Raises:
        SyntaxError: for what the preprocessor refuses.
    """
    # Apple's headers are ours already: the includes go, their line stays.
    source = re.sub(r"(?m)^[ \t]*#[ \t]*include[ \t]*<metal_\w+>[^\n]*", "", source)
    compiler = find_compiler().frontend if command is None else Compiler(tuple(command), "", False)
    defines = ["-D__METAL__=1", "-D__METAL_MACOS__=1", f"-D__METAL_VERSION__={METAL_VERSION}"]
    flags = ["-E", "-x", "c++", "-undef", "-nostdinc", *defines, "-"]
    return compiler.run(flags, f'#line 1 "{name}"\n{source}')


# ---- builds ------------------------------------------------------------------------------------
def build(source: str, name: str, check: bool) -> tuple[Path, list[Kernel]]:
    """The shared library for a shader, from the cache if it has been built before.

    Raises:
        SyntaxError: when the shader does not compile.
        CompilerNotFound: when there is no compiler.
    """
    compiler = find_compiler()
    flags = _shader_flags(compiler, check)
    place = cache_directory() / _key(source, name, *flags, compiler.version)
    if not (place / "kernels.json").exists():
        translation = translate_source(preprocess(source, name), "cpu")
        _in_temporary(place, lambda d: _build_shader(d, compiler, flags, translation))
    kernels = json.loads((place / "kernels.json").read_text())
    return place / "shader.so", [Kernel.from_json(k) for k in kernels]


def _build_shader(folder: Path, compiler: Compiler, flags: list[str], t: Translation) -> None:
    code, assembly = folder / "shader.cpp", folder / "shader.s"
    code.write_text(cpu_program(t))
    runtime = _runtime_object(compiler)
    compiler.run([*flags, f"-I{PACKAGE / 'include'}", "-S", str(code), "-o", str(assembly)])
    # latin-1: a string of constants may hold any byte
    assembly.write_text(add_source_lines(assembly.read_text("latin-1")), "latin-1")
    objects = [str(assembly), str(runtime)]
    shared = ["-shared", "-fPIC", *objects, "-lm", "-o", str(folder / "shader.so")]
    compiler.linker.run(shared)
    (folder / "kernels.json").write_text(json.dumps([k.to_json() for k in t.kernels]))


def _runtime_object(compiler: Compiler) -> Path:
    place = cache_directory() / _key("runtime", compiler.version)
    if not place.exists():
        if compiler.is_zig:
            note = "first use of ziglang: it builds its C library once, up to two minutes"
            print(f"metalsim: {note}", file=sys.stderr, flush=True)
        flags = [*_COMMON, "-fno-sanitize=undefined", "-c", str(PACKAGE / "runtime" / "all.cpp")]
        _in_temporary(place, lambda d: compiler.run([*flags, "-o", str(d / "runtime.o")]))
    return place / "runtime.o"


def _in_temporary(place: Path, make) -> None:
    """Fills a new folder and renames it to `place`: others see all of it or nothing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="building-", dir=place.parent))
    try:
        make(folder)
        os.rename(folder, place)
    except OSError:
        if not place.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _key(*parts: str) -> str:
    machine = (platform.system(), platform.machine())
    text = "\0".join([*parts, *machine, _package_digest()])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@functools.cache
def _package_digest() -> str:
    digest = hashlib.sha256()
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("include/*.h"), *PACKAGE.glob("runtime/*")]
    for path in sorted(files):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _shader_flags(compiler: Compiler, check: bool) -> list[str]:
    flags = [*_COMMON, *_SHADER, "-fno-sanitize=undefined", *_machine_flags(compiler)]
    return flags + (_CHECKED if check else [])


def _machine_flags(compiler: Compiler) -> list[str]:
    """Hardware half conversions where the machine surely has them; results do not depend on it."""
    if platform.machine() not in ("x86_64", "AMD64") or not os.path.exists("/proc/cpuinfo"):
        return []
    text = Path("/proc/cpuinfo").read_text()
    features = set(re.search(r"flags\s*:(.*)", text).group(1).split())  # type: ignore[union-attr]
    if not {"avx2", "f16c", "fma", "bmi2", "movbe"} <= features:
        return []
    return ["-march=x86_64_v3" if compiler.is_zig else "-march=x86-64-v3"]
