"""The kernels of a shader: their names, and what each parameter is bound to."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from ._lexer import BUILTINS, Token, after, before, closing, place_of, text_of

MAX_THREADS = 1024


@dataclass
class Parameter:
    """A kernel parameter: a buffer with an index, or a built-in such as a thread position."""

    name: str
    builtin: str = ""
    index: int = -1
    pointer: bool = True
    const: bool = False


@dataclass
class Kernel:
    """A kernel under its host name; `call` is the C++ expression that names it."""

    host_name: str
    call: str
    parameters: list[Parameter] = field(default_factory=list)
    max_threads: int = MAX_THREADS

    def buffers(self) -> dict[int, Parameter]:
        """Buffer parameters by index."""
        return {p.index: p for p in self.parameters if not p.builtin}

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Kernel:
        """The inverse of `to_json`."""
        parameters = [Parameter(**p) for p in data["parameters"]]
        return Kernel(data["host_name"], data["call"], parameters, data["max_threads"])


def fail(tokens: list[Token], i: int, message: str) -> SyntaxError:
    """A SyntaxError that names the file and line of token `i`."""
    file, line = place_of(tokens, i)
    return SyntaxError(f"{file}:{line}: error: {message}")


def find_kernels(tokens: list[Token]) -> tuple[list[Kernel], list[tuple[int, int]]]:
    """Kernels of a shader and the token ranges of their bodies.

    Blanks out explicit instantiations and kernel keywords in `tokens`, keeping line numbers.

    Raises:
        SyntaxError: for a parameter that torch.mps.compile_shader could not bind.
    """
    kernels: list[Kernel] = []
    signatures: dict[str, Kernel] = {}
    bodies: list[tuple[int, int]] = []
    i = 0
    while i < len(tokens):
        following = _attribute(tokens, after(tokens, i)) if tokens[i].text == "template" else ""
        if host := _host_name(following):
            i = _take_instantiation(tokens, i, host, kernels)
        elif _is_kernel_keyword(tokens, i):
            signature, is_template, body = _take_kernel(tokens, i)
            signatures[signature.call] = signature
            bodies.append(body)
            if not is_template:
                kernels.append(Kernel(signature.host_name, signature.call))
        i += 1
    for kernel in kernels:
        signature = signatures.get(_base_name(kernel.call))
        if signature is None:
            raise SyntaxError(f"instantiation of {kernel.call}, which is no kernel")
        kernel.parameters, kernel.max_threads = signature.parameters, signature.max_threads
    return kernels, bodies


def _base_name(call: str) -> str:
    match = re.match(r"\w+", call)
    return match.group() if match else call


def _blank(tokens: list[Token], start: int, end: int) -> None:
    for token in tokens[start : end + 1]:
        if token.kind != "line":
            token.kind, token.text = "space", "\n" * token.text.count("\n")


# ---- template [[host_name("x")]] kernel void f<T>(...); ----------------------------------------
def _attribute(tokens: list[Token], i: int) -> str:
    has_one = i < len(tokens) and tokens[i].text == "[["
    return text_of(tokens[i : closing(tokens, i) + 1]) if has_one else ""


def _host_name(attributes: str) -> str:
    match = re.search(r"host_name\s*\((.*?)\)", attributes, re.S)
    return "".join(re.findall(r'"((?:\\.|[^"\\])*)"', match.group(1))) if match else ""


def _take_instantiation(tokens: list[Token], i: int, host: str, kernels: list[Kernel]) -> int:
    end = i
    while tokens[end].text != ";":
        end += 1
    body = re.sub(r"\[\[.*?\]\]", "", text_of(tokens[i + 1 : end]), flags=re.S).strip()
    by_type = re.match(r"(?:kernel\s+)?decltype\s*\(\s*(.*)\)\s*\1\s*$", body, re.S)
    by_signature = re.match(r"(?:kernel\s+)?void\s+(\w+\s*(?:<.*?>)?)\s*\(", body, re.S)
    match = by_type or by_signature
    if not match:
        raise fail(tokens, i, f"instantiation not understood: {body[:200]}")
    kernels.append(Kernel(host, match.group(1).strip()))
    _blank(tokens, i, end)
    return end


# ---- kernel void f(...) { ... } ----------------------------------------------------------------
def _is_kernel_keyword(tokens: list[Token], i: int) -> bool:
    if tokens[i].text == "kernel" and tokens[i].kind == "name":
        return True
    following = after(tokens, i)
    return tokens[i].text == "[[" and following < len(tokens) and tokens[following].text == "kernel"


def _take_kernel(tokens: list[Token], i: int) -> tuple[Kernel, bool, tuple[int, int]]:
    first = _first_attribute(tokens, i)
    is_template = tokens[before(tokens, first)].text in (">", ">>")
    end = closing(tokens, i) if tokens[i].text == "[[" else i
    at = after(tokens, end)
    while tokens[at].text == "[[":
        at = after(tokens, closing(tokens, at))
    attributes = text_of(tokens[first:at])
    _blank(tokens, i, end)
    tokens[i].kind, tokens[i].text = "name", "MSL_KERNEL"
    if tokens[at].text != "void":
        raise fail(tokens, at, f"a kernel returns void, not {tokens[at].text}")
    name = after(tokens, at)
    opening = after(tokens, name)
    end = closing(tokens, opening)
    brace = after(tokens, end)
    body = (brace, closing(tokens, brace)) if tokens[brace].text == "{" else (brace, brace)
    call = tokens[name].text
    kernel = Kernel(_host_name(attributes) or call, call, max_threads=_thread_limit(attributes))
    kernel.parameters = _parameters(tokens, opening, end)
    return kernel, is_template, body


def _first_attribute(tokens: list[Token], i: int) -> int:
    """Where the run of attributes that ends before token `i` begins; `i` without any."""
    while (last := before(tokens, i)) >= 0 and tokens[last].text == "]]":
        i = last
        while tokens[i].text != "[[":
            i -= 1
    return i


def _thread_limit(attributes: str) -> int:
    match = re.search(r"max_total_threads_per_threadgroup\s*\(\s*(\d+)", attributes)
    return min(MAX_THREADS, int(match.group(1))) if match else MAX_THREADS


def _parameters(tokens: list[Token], opening: int, end: int) -> list[Parameter]:
    found = [_parameter(tokens, a, b) for a, b in _split_at_commas(tokens, opening + 1, end)]
    used = {p.index for p in found}
    free = iter(i for i in range(len(found) + len(used)) if i not in used)
    for parameter in found:
        if not parameter.builtin and parameter.index < 0:
            parameter.index = next(free)
    return found


def _split_at_commas(tokens: list[Token], start: int, end: int) -> list[tuple[int, int]]:
    pieces, depth, begin = [], 0, start
    for i in range(start, end):
        if tokens[i].text in ("(", "<", "[", "{", "[["):
            depth += 1
        elif tokens[i].text in (")", ">", "]", "}", "]]"):
            depth -= 1
        elif tokens[i].text == "," and depth == 0:
            pieces.append((begin, i))
            begin = i + 1
    if text_of(tokens[begin:end]).strip():
        pieces.append((begin, end))
    return pieces


def _parameter(tokens: list[Token], start: int, end: int) -> Parameter:
    source = text_of(tokens[start:end])
    bare = re.sub(r"\[\[.*?\]\]", "", source, flags=re.S).strip()
    names = re.findall(r"\w+", bare)
    parameter = Parameter(names[-1] if names else "?")
    for attribute, value in re.findall(r"\[\[\s*(\w+)\s*(?:\(\s*([^)]*)\))?", source):
        if attribute in BUILTINS:
            parameter.builtin = attribute
        elif attribute == "buffer":
            parameter.index = int(value, 0)
        elif attribute == "threadgroup":
            message = f"dynamic threadgroup memory ({bare}) cannot be set by compile_shader"
            raise fail(tokens, start, message)
        elif attribute in ("texture", "sampler"):
            raise fail(tokens, start, f"textures are not supported ({bare})")
    if not parameter.builtin:
        _check_buffer(tokens, start, bare, parameter)
    return parameter


def _check_buffer(tokens: list[Token], start: int, bare: str, parameter: Parameter) -> None:
    if not re.search(r"[*&]", bare):
        raise fail(tokens, start, f"a kernel parameter must be a pointer or reference: {bare}")
    if not re.search(r"\b(device|constant)\b", bare):
        raise fail(tokens, start, f"kernel parameter without address space: {bare}")
    parameter.pointer = "*" in bare
    parameter.const = bool(re.search(r"\b(const|constant)\b", bare.split("*")[0]))
