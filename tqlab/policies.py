"""Which type every tensor of a file goes to, and the table that says so.

Which tensors keep their type follows llama-quantize; the mixed policies are those of the weight
compression study (spec results 8).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from .gguf_file import GGUFFile, TensorInfo, type_layout
from .gguf_write import TensorPlan

# type -> GGUF's general.file_type
TYPES = {"tq4_1s": 44, "tq3_1s": 43, "q8_0": 7, "q5_0": 8, "q4_0": 2, "f16": 1}
_INTEGERS = ("i8", "i16", "i32", "i64", "f64")

# Tensors llama-quantize leaves alone whatever their rank, and other modalities' tensors.
_KEPT = re.compile(r"_norm|ffn_gate_inp|per_layer_model_proj|altup|laurel|^rope_|^(v|a|mm)\.")
_ROLE = re.compile(r"blk\.(\d+)\.(attn|ffn)_(q|k|v|qkv|output|gate|up|gate_up|down)(_exps|_shexp)?")
# No library writes K-quants in Python: the nearest type it does write.
_SUBSTITUTES = {"q4_k": "q5_0", "q5_k": "q5_0", "q6_k": "q8_0"}


@dataclass(frozen=True)
class Policy:
    """A mixed recipe: `boundary` layers at each end stay Q8_0, and so does what is not listed."""

    boundary: int
    attention: str
    gate_up: str
    down: str

    def type_of(self, name: str, n_layers: int) -> tuple[str, str]:
        """(type wanted, note) for a tensor."""
        match = _ROLE.match(name)
        if not match:
            return "q8_0", ""
        if not self.boundary <= int(match[1]) < n_layers - self.boundary:
            return "q8_0", f"first and last {self.boundary} layers"
        if match[2] == "attn":
            return self.attention, ""
        return (self.down if match[3] == "down" else self.gate_up), ""


POLICIES = {
    "config-i": Policy(2, attention="tq4_1s", gate_up="tq4_1s", down="q4_k"),
    "hybrid": Policy(2, attention="tq4_1s", gate_up="q4_k", down="q4_k"),
    "premium": Policy(4, attention="tq4_1s", gate_up="q5_k", down="q6_k"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: tensors of one role that go the same way."""

    role: str
    count: int
    source: str
    target: str
    bytes_before: int
    bytes_after: int
    note: str


@dataclass(frozen=True)
class Move:
    """One tensor's way: where it comes from, the type it goes to, and why if not as asked."""

    source: TensorInfo
    type: str
    note: str = ""

    @property
    def plan(self) -> TensorPlan:
        return TensorPlan(self.source.name, self.source.shape, self.type)

    @property
    def quantized(self) -> bool:
        return self.type != self.source.type


def plan(file: GGUFFile, type: str | None = None, policy: str | None = None) -> list[Move]:
    """The type every tensor gets, in file order."""
    n_layers = file.get(f"{file.need('general.architecture')}.block_count", 0)
    tied = "output.weight" not in file.tensors

    def wanted(name: str) -> tuple[str, str]:
        if policy:
            return POLICIES[policy].type_of(name, n_layers)
        head = name == "output.weight" or (tied and name == "token_embd.weight")
        if head and type not in ("q8_0", "f16"):
            return "q8_0", "the output head stays in q8_0"
        return type, ""

    return [_move(info, wanted) for info in file.tensors.values()]


def _move(info: TensorInfo, wanted: Callable[[str], tuple[str, str]]) -> Move:
    if _stays(info):
        return Move(info, info.type)
    asked, note = wanted(info.name)
    target = _SUBSTITUTES.get(asked, asked)
    if target != asked:
        note = f"for {asked}, which is not written here"
    if info.shape[-1] % type_layout(target)[0]:
        target, note = "f16", f"rows of {info.shape[-1]} do not fit {target}"
    return Move(info, target, note)


def _stays(info: TensorInfo) -> bool:
    """llama-quantize's rules: vectors, norms, scales, routers and small projections stay."""
    vector = math.prod(info.shape[:-1]) == 1
    named = not info.name.endswith(".weight") or _KEPT.search(info.name)
    return bool(vector or named or info.type in _INTEGERS)


def table(moves: list[Move]) -> list[Row]:
    """Tensors of the same role, types and note counted together, roles in file order."""
    groups: dict[tuple, list[Move]] = {}
    for m in moves:
        role = re.sub(r"^blk\.\d+\.", "blk.*.", m.source.name.removesuffix(".weight"))
        groups.setdefault((role, m.source.type, m.type, m.note), []).append(m)

    def total(of, group):
        return sum(of(m) for m in group)

    rows = [
        Row(
            *(role, len(group), source, target),
            total(lambda m: m.source.nbytes, group),
            total(lambda m: m.plan.nbytes, group),
            note,
        )
        for (role, source, target, note), group in groups.items()
    ]
    roles = [r.role for r in rows]
    return sorted(rows, key=lambda r: roles.index(r.role))


def format_table(rows: list[Row]) -> str:
    """The table as text, sizes in MB."""
    head = ("tensors", "count", "from", "to", "MB before", "MB after", "note")
    lines = [head] + [
        (
            *(r.role, str(r.count), r.source, r.target),
            *(f"{r.bytes_before / 1e6:.2f}", f"{r.bytes_after / 1e6:.2f}", r.note),
        )
        for r in rows
    ]
    before, after = sum(r.bytes_before for r in rows), sum(r.bytes_after for r in rows)
    total = (f"{before / 1e6:.2f}", f"{after / 1e6:.2f}")
    lines.append(("total", str(sum(r.count for r in rows)), "", "", *total, ""))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = (1, 4, 5)
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
