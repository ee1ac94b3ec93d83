"""Strict pass: what Apple's compiler refuses about address spaces, found with clang's.

The shader is compiled, never run, with real address spaces and declarations only. Pointers that
lack one are found in clang's syntax tree, because plain C++ accepts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ._toolchain import PACKAGE, find_compiler, preprocess
from ._translate import translate_source

_SPACED = re.compile(r"device|constant|threadgroup|address_space|annotate_type|msl_thread|MSL_AS_")
_BOUNDS = re.compile(r"\[[^\[\]]*\]")  # may hold a product
_CASTS = ("CStyleCastExpr", "CXXReinterpretCastExpr")
_DECLARATIONS = ("ParmVarDecl", "VarDecl", "FieldDecl")
_ERROR = re.compile(r"^(.+?:\d+):\d+: (?:fatal )?error: (.*)$", re.M)


def strict_check(source: str, name: str = "shader.metal") -> list[str]:
    """Errors as `file:line: error: text`; an empty list for a clean shader.

    Known false alarm: vecT(a, b) on a vector type that depends on a template parameter.

    Raises:
        CompilerNotFound: when there is no compiler.
    """
    try:
        translation = translate_source(preprocess(source, name), "strict")
    except SyntaxError as error:
        return [str(error)]
    uses = [
        f"void* msl_use_{n}() {{ return (void*)&{k.call}; }}"
        for n, k in enumerate(translation.kernels)
    ]
    unit = "\n".join(['#include "msl_strict.h"', translation.code, '#line 1 "uses"', *uses])
    arguments = [*_flags(), "-Xclang", "-ast-dump=json", "-"]
    code, tree, text = find_compiler().frontend.attempt(arguments, unit)
    errors = set(_Walker(source, name).walk(json.loads(tree))) if tree else set()
    refused = _messages(text) if code else []
    found = [f"{name}:{line}: error: {message}" for line, message in sorted(errors)]
    places = {message.split(": ")[0] for message in refused}
    return refused + [m for m in found if m.split(": ")[0] not in places]


def _flags() -> list[str]:
    include = f"-I{PACKAGE / 'include'}"
    return [
        "-std=c++17",
        "-x",
        "c++",
        include,
        "-nostdinc",
        "-fsyntax-only",
        "-w",
        "-ferror-limit=0",
    ]


def _messages(text: str) -> list[str]:
    found = [f"{place}: error: {message}" for place, message in _ERROR.findall(text)]
    return list(dict.fromkeys(found)) or [text]


@dataclass
class _Place:
    file: str = ""
    line: int = 0


class _Walker:
    """Walks clang's JSON tree, which names a file or line only where it changes."""

    def __init__(self, source: str, name: str) -> None:
        self.lines, self.name = source.split("\n"), name
        self.at = _Place()

    def walk(self, root: dict[str, Any]) -> Iterator[tuple[int, str]]:
        """(line, message) for every declaration or cast that is refused."""
        stack = [root]
        while stack:
            node = stack.pop()
            place = self._place(node)
            own = place.file == self.name and not node.get("isImplicit")
            if message := self._judge(node, place.line) if own else "":
                yield place.line, message
            if node.get("isImplicit"):  # a copy constructor nobody wrote
                continue
            stack.extend(reversed([n for n in node.get("inner", []) if n]))

    def _place(self, node: dict[str, Any]) -> _Place:
        span = node.get("range", {})
        own = self._update(node.get("loc"))
        begin = self._update(span.get("begin"))
        self._update(span.get("end"))
        return own or begin or _Place()

    def _update(self, location: dict[str, Any] | None) -> _Place | None:
        if not location:
            return None
        parts = [location[k] for k in ("spellingLoc", "expansionLoc") if k in location]
        for part in parts or [location]:
            if file := part.get("presumedFile") or part.get("file"):
                self.at.file = file
            if line := part.get("presumedLine") or part.get("line"):
                self.at.line = line
        return _Place(self.at.file, self.at.line)

    def _judge(self, node: dict[str, Any], line: int) -> str:
        kind, type_name = node.get("kind"), (node.get("type") or {}).get("qualType", "")
        if node.get("castKind") == "AddressSpaceConversion" and kind in _CASTS:
            return f"cast changes the address space: {type_name}"
        if kind in _DECLARATIONS and self._unspaced(node, type_name, line):
            return f"pointer or reference without address space: {node.get('name')} : {type_name}"
        return ""

    def _unspaced(self, node: dict[str, Any], type_name: str, line: int) -> bool:
        bare = _BOUNDS.sub("", type_name)
        if not re.search(r"[*&]", bare) or re.search(r"[(][^*&]|[)][(]|\bauto\b", bare):
            return False
        if _SPACED.search(type_name):
            return False
        # clang drops the annotation from some spelled types: look for `thread` in the source.
        text = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        name = re.escape(node.get("name", ""))
        return not re.search(rf"\bthread\b[^;,(){{}}]*(?:\(\s*[*&]\s*)?\b{name}\b", text)
