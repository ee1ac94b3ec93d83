"""Tokens of a preprocessed shader: enough to see address spaces, attributes and signatures."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<line>\#[^\n]*)|(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
 |(?P<number>\.?\d(?:[eEpP][+-]|[\w.'])*)|(?P<name>[A-Za-z_]\w*)
 |(?P<op>\[\[|\]\]|::|->|<<|>>|[-+*/%&|^=!<>]=|.)""",
    re.X | re.S,
)
_LINE_MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')

BUILTINS = frozenset(
    [
        "thread_position_in_grid",
        "threadgroup_position_in_grid",
        "thread_position_in_threadgroup",
        "threads_per_grid",
        "threads_per_threadgroup",
        "dispatch_threads_per_threadgroup",
        "threadgroups_per_grid",
        "thread_index_in_threadgroup",
        "thread_index_in_simdgroup",
        "simdgroup_index_in_threadgroup",
        "simdgroups_per_threadgroup",
        "threads_per_simdgroup",
        "quadgroup_index_in_threadgroup",
        "thread_index_in_quadgroup",
    ]
)
_ATTRIBUTES = BUILTINS | frozenset(
    [
        "buffer",
        "host_name",
        "kernel",
        "threadgroup",
        "function_constant",
        "max_total_threads_per_threadgroup",
        "unroll",
        "user",
        "texture",
        "sampler",
        "clang",
        "maybe_unused",
        "nodiscard",
        "always_inline",
    ]
)


@dataclass(slots=True)
class Token:
    """`kind` is space, line, string, number, name or op."""

    kind: str
    text: str


def tokenize(source: str) -> list[Token]:
    """All tokens of `source`; `[[` and `]]` stay whole only around attributes."""
    tokens = [Token(m.lastgroup or "op", m.group()) for m in _TOKEN.finditer(source)]
    return _split_subscripts(tokens)


def _split_subscripts(tokens: list[Token]) -> list[Token]:
    """a[b[i]] ends in `]]` without being an attribute: split those."""
    result: list[Token] = []
    open_brackets: list[str] = []
    for i, token in enumerate(tokens):
        text = token.text
        if text == "[[" and not _opens_attribute(tokens, i):
            open_brackets += ["[", "["]
            result += [Token("op", "["), Token("op", "[")]
        elif text == "]]" and open_brackets[-1:] != ["[["]:
            del open_brackets[-2:]
            result += [Token("op", "]"), Token("op", "]")]
        else:
            if text in ("[", "[["):
                open_brackets.append(text)
            elif text in ("]", "]]") and open_brackets:
                open_brackets.pop()
            result.append(token)
    return result


def _opens_attribute(tokens: list[Token], i: int) -> bool:
    following = after(tokens, i)
    return following < len(tokens) and tokens[following].text in _ATTRIBUTES


def after(tokens: list[Token], i: int) -> int:
    """Index of the next token that is no white space (len(tokens) at the end)."""
    i += 1
    while i < len(tokens) and tokens[i].kind in ("space", "line"):
        i += 1
    return i


def before(tokens: list[Token], i: int) -> int:
    """Index of the previous token that is no white space (-1 at the start)."""
    i -= 1
    while i >= 0 and tokens[i].kind in ("space", "line"):
        i -= 1
    return i


def closing(tokens: list[Token], i: int) -> int:
    """Index of the token that closes the bracket at `i`.

    Raises:
        ValueError: when it is never closed.
    """
    opener = tokens[i].text
    closer = {"(": ")", "[": "]", "{": "}", "<": ">", "[[": "]]"}[opener]
    depth = 0
    for j in range(i, len(tokens)):
        text = tokens[j].text
        if text == opener:
            depth += 1
        elif text == closer:
            depth -= 1
        elif text == ">>" and closer == ">":
            depth -= 2
        if depth <= 0:
            return j
    raise ValueError(f"unbalanced {opener}")


def text_of(tokens: list[Token]) -> str:
    """The source text of some tokens, without line markers."""
    return "".join(t.text for t in tokens if t.kind != "line")


def place_of(tokens: list[Token], i: int) -> tuple[str, int]:
    """(file, line) of token `i`, from the preprocessor's line markers."""
    newlines = 0
    for token in reversed(tokens[:i]):
        marker = _LINE_MARKER.match(token.text) if token.kind == "line" else None
        if marker:
            # The marker names the line after its own newline.
            return marker.group(2), int(marker.group(1)) + newlines - 1
        newlines += token.text.count("\n")
    return "?", newlines + 1
