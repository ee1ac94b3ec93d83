"""Front end: tokens, signatures, literals, the strict pass, source lines, CUDA text."""

import ctypes
import json
import re
from pathlib import Path

import pytest

import metalsim
from metalsim import _cuda, _frontend, _lexer, _signatures, _source_lines, _toolchain, _translate

SHADERS = Path(__file__).parent / "shaders"


def rewritten(source: str, backend: str = "cpu") -> str:
    return " ".join(_translate.translate_source(source, backend).code.split())


# ---- tokens and rewriting ----------------------------------------------------------------------
def test_tokens_rebuild_the_source():
    source = 'a[b[i]] = x->y >> 2; // "[[" \n[[unroll]] for (;;) s = "a\\"]]";'
    assert "".join(t.text for t in _lexer.tokenize(source)) == source


def test_attributes_are_told_from_subscripts():
    kinds = [t.text for t in _lexer.tokenize("a[b[i]] + c[[unroll]]")]
    assert kinds.count("]]") == 1
    assert kinds.count("[[") == 1


@pytest.mark.parametrize(
    ("metal", "cpp"),
    [
        ("1.0", "1.0f"),
        ("1.5e-3", "1.5e-3f"),
        (".5", ".5f"),
        ("2.0f", "2.0f"),
        ("3", "3"),
        ("0x1p-3f", "0x1p-3f"),
        ("1.0h", "MSL_HALF_LITERAL(1.0)"),
        ("2h", "MSL_HALF_LITERAL(2.0)"),
        ("1.0bf", "MSL_BFLOAT_LITERAL(1.0)"),
        ("7u", "7u"),
    ],
)
def test_literals(metal, cpp):
    assert rewritten(f"x = {metal};") == f"x = {cpp};"


def test_address_spaces_of_pointees_and_of_objects():
    assert rewritten("device const T* p = q;") == "MSL_AS_device const T* p = q;"
    assert rewritten("constant constexpr uint N = 3;") == "MSL_CONSTANT_CONSTEXPR uint N = 3;"
    assert rewritten("static constant uint N = 3;").split() == [
        "MSL_CONSTANT",
        "uint",
        "N",
        "=",
        "3;",
    ]
    text = rewritten("threadgroup float a[4], b;")
    assert "float msl_array_1[4]" in text
    assert "& b = msl_threadgroup<msl_array_2, 2>()" in text
    assert rewritten("threadgroup float a[4];", "cuda") == "__shared__ float a[4];"


def test_line_markers_give_the_place():
    tokens = _lexer.tokenize('# 1 "a.metal"\nint x;\n# 7 "b.metal"\nint y;\nint z;')
    places = {t.text: _lexer.place_of(tokens, i) for i, t in enumerate(tokens) if t.text in "xyz"}
    assert places == {"x": ("a.metal", 1), "y": ("b.metal", 7), "z": ("b.metal", 8)}


def test_signatures():
    source = """kernel void f(device const float* x, device int* y [[buffer(0)]], constant P& p,
        uint3 g [[threadgroup_position_in_grid]]) {}
    template <typename T> [[kernel]] void h(device T* x [[buffer(2)]]) {}
    template [[host_name("h_" "int")]] [[kernel]] void h<int>(device int*);
    template [[host_name("h_long")]] kernel decltype(h<long>) h<long>;"""
    kernels, _ = _signatures.find_kernels(_lexer.tokenize(source))
    assert [(k.host_name, k.call) for k in kernels] == [
        ("f", "f"),
        ("h_int", "h<int>"),
        ("h_long", "h<long>"),
    ]
    x, y, p, g = kernels[0].parameters
    assert (x.index, y.index, p.index, g.builtin) == (1, 0, 2, "threadgroup_position_in_grid")
    assert (x.const, y.const, p.const, p.pointer) == (True, False, True, False)
    assert kernels[1].buffers()[2].name == "x"
    assert _signatures.Kernel.from_json(kernels[0].to_json()) == kernels[0]


def test_attributes_before_the_kernel_keyword():
    source = """template <typename T>
    [[max_total_threads_per_threadgroup(64)]] kernel void f(device T* x) {}
    template [[host_name("f_int")]] kernel void f<int>(device int*);
    [[host_name("named")]] [[max_total_threads_per_threadgroup(32)]] [[kernel]]
    void g(device int* x) {}
    [[kernel, max_total_threads_per_threadgroup(96)]] void h(device int* x) {}"""
    kernels, _ = _signatures.find_kernels(_lexer.tokenize(source))
    assert [(k.host_name, k.call, k.max_threads) for k in kernels] == [
        ("f_int", "f<int>", 64),
        ("named", "g", 32),
        ("h", "h", 96),
    ]


# ---- source lines ------------------------------------------------------------------------------
def test_calls_of_checks_get_the_line_of_the_last_loc():
    assembly = (
        '\t.file\t1 "/d" "k.metal"\n\t.loc\t1 5 3\n\tcallq\t__tsan_read4@PLT\n\t.loc\t1 0 0\n'
    )
    assembly += "\tbl\t___tsan_write8\n\tcallq\tother\n"
    lines = _source_lines.add_source_lines(assembly).split("\n")
    after = [lines[i + 1] for i, text in enumerate(lines) if "_tsan_" in text]
    assert after == ["Lmsl_pc_0:", "Lmsl_pc_1:"]
    assert re.findall(
        r"\.quad Lmsl_pc_(\d)\n\t\.quad Lmsl_file_1\n\t\.quad (\d)", "\n".join(lines)
    ) == [
        ("0", "5"),
        ("1", "5"),
    ]
    assert '\t.asciz "k.metal"' in lines


# ---- the strict pass ---------------------------------------------------------------------------
BAD = """#include <metal_stdlib>
using namespace metal;
struct P { uint n; };
float takes_thread(thread float* p) { return p[0]; }
float no_space(float* p) { return p[0]; }  // refused
float takes_device(device const float* p) { return p[0]; }
kernel void k(device float* x, constant P& p, uint i [[thread_position_in_grid]]) {
  const float* q = x;  // refused
  threadgroup float* s = (threadgroup float*)x;  // refused
  float v = takes_thread(x);  // refused
  p.n = 3;  // refused
  threadgroup float b[32];
  v += takes_device(b);  // refused
  float local[4];
  v += takes_thread(local);
  thread float* fine = local;
  float* bare = local;  // refused
  device float4* wide = (device float4*)x;
  x[i] = v + float4(1.0f, v, v, v).x + s[0] + q[0] + fine[0] + bare[0] + wide[0].y;
}
"""


def test_strict_refuses_what_lacks_an_address_space(compiler):
    errors = metalsim.strict_check(BAD, "bad.metal")
    lines = {int(re.match(r"bad\.metal:(\d+): error: ", e).group(1)) for e in errors}
    assert lines == {n for n, text in enumerate(BAD.split("\n"), 1) if "// refused" in text}


def test_strict_tells_references_to_arrays_apart(compiler):
    """By their address space, whatever the bounds hold."""
    source = """using namespace metal;
constant constexpr int N = 2;
template <int M>
float sum(thread float4 (&a)[N][M], thread const float (*p)[M * 2]) {
  float4 b[N * M];
  b[0] = float4(*p[0]);
  return a[0][0].x + b[0].y;
}
float bare4(float4 (&a)[N][3]) { return a[0][0].x; }  // refused
float one(thread float (&a)[N * 3]) { return a[0]; }
float bare1(float (&a)[N * 3]) { return a[0]; }  // refused
kernel void k(device float* x, uint i [[thread_position_in_grid]]) {
  float4 a[N][3];
  float b[N * 3], c[2][N * 3];
  threadgroup float t[N * 4][2];
  threadgroup float (&r)[2] = t[0];
  x[i] = sum<3>(a, c) + one(b) + bare4(a) + bare1(b) + r[0];
}
"""
    errors = metalsim.strict_check(source, "a.metal")
    lines = {int(re.match(r"a\.metal:(\d+): error: ", e).group(1)) for e in errors}
    assert lines == {n for n, text in enumerate(source.split("\n"), 1) if "// refused" in text}


def test_strict_refuses_threadgroup_variables_outside_kernels(compiler):
    source = "void f() {\n  threadgroup float a[4];\n}"
    assert metalsim.strict_check(source, "f.metal")[0].startswith("f.metal:2: error: threadgroup")


@pytest.mark.parametrize("stem", ["planted", "features", "style"])
def test_strict_accepts_the_test_shaders(compiler, stem):
    assert metalsim.strict_check((SHADERS / f"{stem}.metal").read_text()) == []


def test_strict_as_an_option_of_compile_shader(compiler):
    with pytest.raises(SyntaxError, match=r"bad\.metal:8"):
        metalsim.compile_shader(BAD, name="bad.metal", strict=True)


# ---- CUDA: translation only; nothing here needs a GPU ------------------------------------------
def test_cuda_text_holds_launchers_and_the_kernel_table(compiler):
    source = (SHADERS / "features.metal").read_text()
    text = metalsim.translate(source, "cuda", "features.metal")
    assert text.startswith('#include "msl_cuda.h"')
    table = json.loads(text.rsplit(_translate.KERNEL_TABLE, 1)[1])
    kernels = [_signatures.Kernel.from_json(k) for k in table]
    assert [k.host_name for k in kernels][-3:] == ["large", "full", "small_groups"]
    assert text.count('extern "C" __global__ void msl_launch_') == len(kernels)
    assert '#line 1 "features.metal"' in text
    assert "__shared__ T tile[8 * 12]" in text


def test_translation_needs_no_clang(compiler, monkeypatch):
    source = (SHADERS / "features.metal").read_text()
    expected = metalsim.translate(source)

    def nothing():
        raise metalsim.CompilerNotFound("none")

    monkeypatch.setattr(_frontend, "find_compiler", nothing)
    if _frontend.shutil.which("cc") is None:
        pytest.skip("no cc on PATH")
    without_markers = [re.sub(r"(?m)^#.*\n", "", t) for t in (metalsim.translate(source), expected)]
    assert without_markers[0].split() == without_markers[1].split()


def test_values_travel_in_the_blob():
    parameters = [_signatures.Parameter("n", index=0), _signatures.Parameter("s", index=1)]
    packed, numel = _cuda._pack(
        _signatures.Kernel("k", "k", parameters), ([1, 2], 0.5), {0: "int32"}
    )
    assert numel is None
    assert packed.in_blob == 0b11
    assert bytes(packed.blob[:8]) == b"\1\0\0\0\2\0\0\0"
    assert bytes(packed.blob[packed.pointer[1] :][:4]) == b"\0\0\0\x3f"


def test_arguments_have_the_layout_of_the_header(compiler):
    """The launch copies _Arguments byte for byte into what the kernel sees as msl_arguments."""
    header = (_toolchain.PACKAGE / "include" / "msl_cuda.h").read_text()
    struct = re.search(r"struct msl_arguments \{.*?\n\};", header, re.S)[0]
    fields = [
        (name, getattr(_cuda._Arguments, name).offset) for name, _ in _cuda._Arguments._fields_
    ]
    checks = [f"static_assert(__builtin_offsetof(msl_arguments, {n}) == {at});" for n, at in fields]
    checks.append(f"static_assert(sizeof(msl_arguments) == {ctypes.sizeof(_cuda._Arguments)});")
    code = "\n".join([struct, *checks])
    _toolchain.find_compiler().frontend.run(["-std=c++17", "-x", "c++", "-fsyntax-only", "-"], code)


def test_every_function_of_the_maths_header_is_renamed_for_cuda():
    """CUDA declares abs(float) and the like globally: calls would be ambiguous."""
    include = _toolchain.PACKAGE / "include"
    maths = (include / "msl_math.h").read_text()
    names = set(re.findall(r"^MSL_(?:FLOAT|MAP)[12]\((\w+)", maths, re.M))
    names |= set(re.findall(r"^MSL_FN [\w<>, ]+? (\w+)\(", maths, re.M))
    renamed = re.findall(
        r"^#define (\w+) metal_\1$", (include / "msl_cuda_names.h").read_text(), re.M
    )
    assert "abs" in renamed
    assert {n for n in names if not n.startswith("msl_")} == set(renamed)


@pytest.mark.parametrize("stem", ["planted", "features", "style"])
def test_nvrtc_accepts_the_test_shaders(compiler, stem):
    try:
        _cuda._nvrtc()
    except RuntimeError as missing:
        pytest.skip(str(missing))
    text = metalsim.translate((SHADERS / f"{stem}.metal").read_text(), "cuda", f"{stem}.metal")
    assert _cuda.compile_cuda(text, "sm_90")


def test_nvrtc_finds_no_function_ambiguous(compiler):
    """Every function that CUDA has globally too, on a float, a half and a vector."""
    try:
        _cuda._nvrtc()
    except RuntimeError as missing:
        pytest.skip(str(missing))
    one = ["abs", "ceil", "cos", "exp", "exp2", "fabs", "floor", "log", "rint", "round", "rsqrt"]
    one += ["sign", "sin", "sqrt", "tanh", "trunc"]
    two = ["min", "max", "fmin", "fmax", "pow", "fmod", "copysign", "atan2", "step"]
    uses = [f"v = {f}(v); h = {f}(h); w = {f}(w);" for f in one]
    uses += [f"v = {f}(v, v); h = {f}(h, h); w = {f}(w, w);" for f in two]
    uses += ["v = fma(v, v, v) + float(isnan(v) || isinf(v)) + ldexp(v, 2) + clamp(v, 0.0f, 1.0f);"]
    uses += ["n = abs(n) + min(n, 3) + max(n, short(2)) + int(popcount(uint(n)));"]
    body = " ".join(uses)
    source = f"""using namespace metal;
    kernel void k(device float* x, device half* y, device float2* z, device int* i) {{
      float v = x[0]; half h = y[0]; float2 w = z[0]; int n = i[0];
      {body} x[0] = v; y[0] = h; z[0] = w; i[0] = n;
    }}"""
    assert _cuda.compile_cuda(metalsim.translate(source, "cuda"), "sm_90")


def test_unknown_backend():
    with pytest.raises(ValueError, match="opencl"):
        metalsim.translate("", "opencl")


def test_package_has_its_headers():
    assert {p.name for p in (_toolchain.PACKAGE / "include").iterdir()} >= {
        "msl_cpu.h",
        "msl_cuda.h",
    }
