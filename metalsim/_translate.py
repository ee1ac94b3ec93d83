"""Metal source to C++: address spaces, attributes and literals rewritten, the rest left alone.

Not a parser: the C++ compiler does the rest, and the shader's own line numbers are kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ._lexer import Token, after, before, closing, text_of, tokenize
from ._signatures import Kernel, Parameter, fail, find_kernels

SPACES = ("device", "constant", "thread", "threadgroup")
_VECTOR = re.compile(r"(?:float|half|bfloat|u?int|u?short|u?char|u?long|bool)[234]")
_SUFFIXED = re.compile(r"([\d.]+(?:[eE][+-]?\d+)?)(h|H|bf|BF)")
_FLOATING = re.compile(r"(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?")
KERNEL_TABLE = "// metalsim-kernels: "


@dataclass
class Translation:
    """C++ text for one back end and the kernels in it."""

    code: str
    kernels: list[Kernel]


def translate_source(preprocessed: str, backend: str) -> Translation:
    """Rewrites preprocessed Metal source for `backend` (cpu, cuda or strict).

    Raises:
        SyntaxError: for what the Metal compiler or compile_shader would refuse.
    """
    tokens = tokenize(preprocessed)
    kernels, bodies = find_kernels(tokens)
    body = _Rewriter(tokens, backend, bodies).run()
    return Translation(re.sub(r'(?m)^# (\d+ "[^"]*").*$', r"#line \1", body), kernels)


class _Rewriter:
    def __init__(self, tokens: list[Token], backend: str, bodies: list[tuple[int, int]]) -> None:
        self.tokens, self.backend, self.bodies = tokens, backend, bodies
        self.out: list[str] = []
        self.arrays = 0

    def run(self) -> str:
        i = 0
        while i < len(self.tokens):
            i = self._rewrite(i)
        return "".join(self.out)

    def _rewrite(self, i: int) -> int:
        """Emits the text for the token at `i`; returns the index of the next one to handle."""
        token = self.tokens[i]
        if token.text == "[[":
            return self._drop_attribute(i)
        if token.kind == "number":
            self.out.append(_literal(token.text))
            return i + 1
        if token.kind == "name":
            return self._rewrite_name(i, token.text)
        self.out.append(token.text)
        return i + 1

    def _drop_attribute(self, i: int) -> int:
        end = closing(self.tokens, i)
        text = text_of(self.tokens[i : end + 1])
        if "function_constant" in text:
            raise fail(self.tokens, i, "function constants cannot be set by compile_shader")
        self.out.append("\n" * text.count("\n"))
        return end + 1

    def _rewrite_name(self, i: int, name: str) -> int:
        following = self.tokens[j].text if (j := after(self.tokens, i)) < len(self.tokens) else ""
        if name == "double" or (name == "std" and following == "::"):
            raise fail(self.tokens, i, f"{name} does not exist in Metal")
        if name == "threadgroup" and self._declares(i):
            return self._threadgroup_declaration(i)
        if name == "constant" and self._declares(i):
            return self._constant_declaration(i)
        if name in SPACES:
            self.out.append(f"MSL_AS_{name}")
        elif self.backend == "strict" and _VECTOR.fullmatch(name) and self._constructs(i):
            self.out.append(f"msl_make<{name}>")
        else:
            self.out.append(name)
        return i + 1

    def _constructs(self, i: int) -> bool:
        """Whether the vector type at `i` is called: not so in thread float4 (&a)[2]."""
        opening = after(self.tokens, i)
        if opening >= len(self.tokens) or self.tokens[opening].text != "(":
            return False
        first = self.tokens[after(self.tokens, opening)].text
        qualified = self.tokens[before(self.tokens, i)].text in (*SPACES, "const", "volatile")
        return not (first == "&" or (first == "*" and qualified))

    def _declares(self, i: int) -> bool:
        """Whether the address space at `i` qualifies an object rather than a pointee."""
        j = after(self.tokens, i)
        while j < len(self.tokens):
            token = self.tokens[j]
            if token.text == "<":
                j = closing(self.tokens, j)
            elif token.text in ("[", ";", "=", "{"):
                return True
            elif token.kind != "name" and token.text != "::":
                return False
            j = after(self.tokens, j)
        return False

    def _threadgroup_declaration(self, i: int) -> int:
        """threadgroup T a[n], b; -> references into memory the runtime hands out."""
        if self.backend == "strict" and not any(a < i < b for a, b in self.bodies):
            raise fail(self.tokens, i, "threadgroup variable declared outside a kernel function")
        if self.backend == "cuda":
            self.out.append("__shared__")
            return i + 1
        end = i
        while self.tokens[end].text != ";":
            end += 1
        text = text_of(self.tokens[i + 1 : end])
        match = re.match(r"\s*((?:volatile\s+)?[\w:]+(?:\s*<.*>)?)\s+(.*)$", text, re.S)
        if not match or "=" in text:
            raise fail(self.tokens, i, f"threadgroup declaration not understood:{text[:200]}")
        for declarator in re.split(r",(?![^\[]*\])", match.group(2)):
            self.out.append(self._array(i, match.group(1), declarator))
        self.out.append("\n" * text.count("\n"))
        return end + 1

    def _array(self, i: int, element: str, declarator: str) -> str:
        match = re.match(r"\s*(\w+)\s*((?:\[.*\])?)\s*$", declarator, re.S)
        if not match:
            raise fail(self.tokens, i, f"threadgroup declaration not understood: {declarator}")
        name, dimensions = match.groups()
        self.arrays += 1
        alias = f"msl_array_{self.arrays}"
        space = "MSL_AS_threadgroup " if self.backend == "strict" else ""
        memory = f"msl_threadgroup<{space}{alias}, {self.arrays}>()"
        return f"typedef {element} {alias}{dimensions}; {space}{alias}& {name} = {memory}; "

    def _constant_declaration(self, i: int) -> int:
        """[static] constant [constexpr] T x = ...: the qualifiers come back once, in our order."""
        constexpr = False
        for at in range(len(self.out) - 1, -1, -1):
            if self.out[at] in ("static", "const", "constexpr"):
                constexpr |= self.out[at] == "constexpr"
                self.out[at] = ""
            elif self.out[at].strip():
                break
        j = after(self.tokens, i)
        while self.tokens[j].text in ("const", "constexpr", "static"):
            constexpr |= self.tokens[j].text == "constexpr"
            self.tokens[j].text = ""
            j = after(self.tokens, j)
        self.out.append("MSL_CONSTANT_CONSTEXPR" if constexpr else "MSL_CONSTANT")
        return i + 1


def _literal(text: str) -> str:
    """1.0h and 1.0bf become constructors; 1.0 is a float, because Metal has no double."""
    if text.startswith(("0x", "0X")):
        return text
    if match := _SUFFIXED.fullmatch(text):
        digits, suffix = match.groups()
        digits = digits if "." in digits or "e" in digits.lower() else f"{digits}.0"
        return f"MSL_{'HALF' if suffix in 'hH' else 'BFLOAT'}_LITERAL({digits})"
    return f"{text}f" if _FLOATING.fullmatch(text) else text


# ---- launchers: one function per kernel that binds buffers and built-ins -----------------------
def cpu_program(t: Translation) -> str:
    """A complete translation unit for the CPU runtime."""
    lines = ['#include "msl_cpu.h"', t.code, '#line 1 "launchers"']
    for n, kernel in enumerate(t.kernels):
        arguments = ", ".join(_cpu_argument(p) for p in kernel.parameters)
        lines.append(
            f"MSL_UNCHECKED static void msl_launch_{n}(void** b) {{ {kernel.call}({arguments}); }}"
        )
    table = ", ".join(f'{{"{k.host_name}", msl_launch_{n}}}' for n, k in enumerate(t.kernels))
    count = len(t.kernels)
    lines.append(f'extern "C" {{ extern const msl_kernel msl_kernels[] = {{{table or "{}"}}};')
    lines.append(f"extern const unsigned msl_kernel_count = {count}; }}")
    return "\n".join(lines) + "\n"


def _cpu_argument(p: Parameter) -> str:
    if p.builtin:
        return f"MSL_BUILTIN_{p.builtin}"
    return f"msl_{'pointer' if p.pointer else 'reference'}_argument{{b[{p.index}]}}"


def cuda_program(t: Translation) -> str:
    """A translation unit for NVRTC; its last line is the kernel table that the loader reads."""
    lines = ['#include "msl_cuda.h"', t.code, '#line 1 "launchers"']
    for n, kernel in enumerate(t.kernels):
        arguments = ", ".join(_cuda_argument(p) for p in kernel.parameters)
        head = f'extern "C" __global__ void msl_launch_{n}(const __grid_constant__ msl_arguments a)'
        lines.append(f"{head} {{ MSL_TAIL_RETURNS {kernel.call}({arguments}); }}")
    lines.append(KERNEL_TABLE + json.dumps([k.to_json() for k in t.kernels]))
    return "\n".join(lines) + "\n"


def _cuda_argument(p: Parameter) -> str:
    if p.builtin:
        return f"MSL_BUILTIN_{p.builtin}"
    return f"msl_{'pointer' if p.pointer else 'reference'}_argument{{MSL_ARGUMENT({p.index})}}"
