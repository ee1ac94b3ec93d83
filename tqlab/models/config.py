"""Hyper-parameters from GGUF metadata, every value checked before anything is built on it."""

from dataclasses import dataclass

from ..gguf_file import GGUFError, GGUFFile


class Keys:
    """Typed reads of a file's `<architecture>.*` metadata.

    Raises: GGUFError naming the key, its value and what was expected.
    """

    def __init__(self, file: GGUFFile):
        self.file, self.arch = file, file.need("general.architecture")

    def get(self, key: str, default=None):
        """The value as the file has it, or `default`."""
        return self.file.get(f"{self.arch}.{key}", default)

    def fail(self, key: str, expected: str):
        """Refuse the value of `key`."""
        value = self.get(key)
        text = repr(value) if len(repr(value)) < 80 else f"{repr(value)[:77]}..."
        raise GGUFError(f"{self.file.path}: {self.arch}.{key} is {text}, expected {expected}")

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; needed when `default` is None."""
        value = self._needed(key, default)
        if isinstance(value, (bool, str, list)) or not 0 < value < 1 << 31:
            self.fail(key, "a positive number")
        return value

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` up; needed when `default` is None."""
        value = self._needed(key, default)
        if not _is_int(value) or not least <= value < 1 << 31:
            self.fail(key, f"a whole number from {least} up" if least else "a whole number")
        return value

    def per_layer(self, key: str, n_layers: int, default: int | None = None) -> tuple[int, ...]:
        """A count for every layer, from one number or an array of them."""
        value = self._needed(key, default)
        if not isinstance(value, list):
            return (self.count(key, default),) * n_layers
        if len(value) != n_layers or not all(_is_int(v) and 0 < v < 1 << 31 for v in value):
            self.fail(key, f"{n_layers} positive whole numbers, one a layer")
        return tuple(value)

    def sliding_layers(self, n_layers: int, period: int | None = None) -> tuple[bool, ...]:
        """Which layers see a window only: an array, or a period whose last layer sees everything.

        `period` is taken when the file has no such key; needed when it is None.
        """
        key = "attention.sliding_window_pattern"
        value = self._needed(key, period)
        if not isinstance(value, list):
            period = self.count(key, period)
            return tuple(i % period < period - 1 for i in range(n_layers))
        if len(value) != n_layers or any(v not in (0, 1) for v in value):
            self.fail(key, f"{n_layers} booleans, one a layer")
        return tuple(map(bool, value))

    def rotated(self, key: str, head_dim: int) -> int:
        """How many dims of a head rope turns: all of them unless the file says otherwise."""
        n_dims = self.count(key, head_dim)
        if n_dims > head_dim or n_dims % 2:
            self.fail(key, f"an even number up to the head's {head_dim}")
        return n_dims

    def softcap(self, missing: float) -> float:
        """The final logits' softcap; 0 means none."""
        value = self.get("final_logit_softcapping", missing)
        return 0.0 if value == 0 else self.number("final_logit_softcapping", missing)

    def rope_scale(self) -> float:
        """What linear rope scaling divides positions by; other kinds of scaling are refused."""
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 1.0))
        kind = self.get("rope.scaling.type", "linear")
        if kind not in ("none", "linear"):
            self.fail("rope.scaling.type", "none or linear")
        return 1.0 if kind == "none" else float(factor)

    def _needed(self, key: str, default):
        value = self.get(key)
        value = default if value is None else value
        return self.file.need(f"{self.arch}.{key}") if value is None else value


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Config:
    """Hyper-parameters every architecture has; the names are GGUF's.

    n_ff and n_kv_heads have one entry a layer. head_dim is that of layers which see everything.
    """

    architecture: str
    name: str
    n_layers: int
    n_embd: int
    n_ff: tuple[int, ...]
    n_heads: int
    n_kv_heads: tuple[int, ...]
    head_dim: int
    n_vocab: int
    context_length: int
    rms_eps: float
    rope_base: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> "Config":
        """Read `<architecture>.*` keys. Raises GGUFError naming a missing or absurd key."""
        keys = Keys(file)
        n_layers, n_embd = keys.count("block_count"), keys.count("embedding_length")
        if n_layers > len(file.tensors):
            keys.fail("block_count", f"no more than the file's {len(file.tensors)} tensors")
        n_heads = keys.count("attention.head_count")
        head_dim = keys.count("attention.key_length", n_embd // n_heads)
        if keys.count("attention.value_length", head_dim) != head_dim:
            keys.fail("attention.value_length", f"the length of keys, {head_dim}")
        return cls(
            architecture=keys.arch,
            name=str(file.get("general.name", file.path.stem)),
            n_layers=n_layers,
            n_embd=n_embd,
            n_ff=keys.per_layer("feed_forward_length", n_layers),
            n_heads=n_heads,
            n_kv_heads=_kv_heads(keys, n_layers, n_heads),
            head_dim=head_dim,
            n_vocab=file.info("token_embd.weight").shape[0],
            context_length=keys.count("context_length"),
            rms_eps=keys.number("attention.layer_norm_rms_epsilon"),
            rope_base=keys.number("rope.freq_base", 10000.0),
        )


def _kv_heads(keys: Keys, n_layers: int, n_heads: int) -> tuple[int, ...]:
    counts = keys.per_layer("attention.head_count_kv", n_layers, n_heads)
    for count in counts:
        if n_heads % count:
            raise GGUFError(
                f"{keys.file.path}: {n_heads} query heads do not share {count} KV heads"
            )
    return counts
