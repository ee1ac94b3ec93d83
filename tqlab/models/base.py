"""What every decoder shares: configuration, rope, norms, and running ids through a cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..gguf_file import GGUFError, GGUFFile
from ..kvcache import KVCache, LayerShape

PREFILL_CHUNK = 512  # tokens that go through the layers at once


@dataclass(frozen=True)
class Config:
    """Hyper-parameters every architecture has; the names are GGUF's."""

    architecture: str
    name: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    context_length: int
    rms_eps: float
    rope_base: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> "Config":
        """Read `<architecture>.*` keys. Raises GGUFError naming a missing or absurd key."""
        arch = file.need("general.architecture")

        def positive(key, default=None):
            value = file.get(f"{arch}.{key}", default)
            value = file.need(f"{arch}.{key}") if value is None else value
            if isinstance(value, (bool, str, list)) or not 0 < value < 1 << 31:
                raise GGUFError(
                    f"{file.path}: {arch}.{key} is {value!r}, expected a positive number"
                )
            return value

        n_heads, n_embd = positive("attention.head_count"), positive("embedding_length")
        n_kv_heads = positive("attention.head_count_kv", n_heads)
        if n_heads % n_kv_heads:
            raise GGUFError(
                f"{file.path}: {n_heads} query heads do not share {n_kv_heads} KV heads"
            )
        return cls(
            architecture=arch,
            name=str(file.get("general.name", file.path.stem)),
            n_layers=positive("block_count"),
            n_embd=n_embd,
            n_ff=positive("feed_forward_length"),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=positive("attention.key_length", n_embd // n_heads),
            n_vocab=file.info("token_embd.weight").shape[0],
            context_length=positive("context_length"),
            rms_eps=positive("attention.layer_norm_rms_epsilon"),
            rope_base=positive("rope.freq_base", 10000.0),
        )


class Decoder:
    """A decoder-only transformer read from a GGUF file.

    Subclasses build their layers in `__init__` and implement `layer_shapes` and `hidden`.
    Fields: config, tokenizer (set by load_model), device, weights_mode, nbytes (weights held).
    """

    def __init__(self, config: Config, weights):
        self.config, self.device = config, weights.device
        self.weights_mode, self._weights = weights.mode, weights
        self.tokenizer = None
        self.path = weights.file.path

    @property
    def nbytes(self) -> int:
        """Bytes of weights held, as measured while they were taken from the file."""
        return self._weights.nbytes

    def layer_shapes(self) -> list[LayerShape]:
        """What each layer's cache stores."""
        return [LayerShape(self.config.n_kv_heads, self.config.head_dim)] * self.config.n_layers

    def new_cache(self, k: str = "q8_0", v: str = "turbo4", max_tokens: int = 4096, batch: int = 1):
        """An empty cache on the model's device.

        Raises: ValueError for unknown formats, unfit heads, or more tokens than the context.
        """
        if max_tokens > self.config.context_length:
            raise ValueError(
                f"{max_tokens} tokens exceed the context of {self.config.name}: "
                f"{self.config.context_length}"
            )
        return KVCache(self.layer_shapes(), k, v, max_tokens, batch, self.device)

    def __call__(
        self, ids: Tensor, cache: KVCache | None = None, last_only: bool = False
    ) -> Tensor:
        """Logits of `ids` behind whatever the cache holds; without a cache, one full f32 pass.

        Shapes: ids int64 [B, T] -> float32 [B, T or 1, vocab]
        Raises: ValueError for ids of another shape or outside the vocabulary, or a full cache.
        """
        ids = self._checked(ids)
        cache = self.new_cache("f32", "f32", ids.shape[1], ids.shape[0]) if cache is None else cache
        x = self.run(ids, cache)
        return self.head(x[:, -1:] if last_only else x)

    @torch.inference_mode()
    def run(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Last hidden states of `ids`, before the head; the cache advances by T.

        Shapes: ids int64 [B, T] -> float32 [B, T, n_embd]
        """
        ids = self._checked(ids)
        cache.reserve(ids.shape[1])
        parts = []
        for chunk in ids.split(PREFILL_CHUNK, 1):
            parts.append(self.hidden(chunk, cache))
            cache.advance(chunk.shape[1])
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def hidden(self, ids: Tensor, cache: KVCache) -> Tensor:
        """One chunk through all layers and the final norm: int64 [B, T] -> [B, T, n_embd]."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        """Logits: float32 [..., n_embd] -> float32 [..., vocab]."""
        raise NotImplementedError

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.dim() != 2 or ids.shape[1] == 0 or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"ids must be int64 [B, T] with T > 0, got {ids.dtype} {list(ids.shape)}"
            )
        worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
        if not 0 <= worst < self.config.n_vocab:
            raise ValueError(f"token id {worst} is outside the vocabulary of {self.config.n_vocab}")
        return ids.long().to(self.device)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x * (mean(x^2) + eps)^-0.5 * weight over the last axis, float32."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


class Rope:
    """Rotary angles, built in float64 on the CPU (MPS has none) and kept as float32 tables."""

    def __init__(self, n_dims: int, base: float, device, factors: Tensor | None = None):
        exponent = torch.arange(0, n_dims, 2, dtype=torch.float64) / n_dims
        self.frequencies = base**-exponent
        if factors is not None:
            self.frequencies = self.frequencies / factors.double().cpu()
        self.device, self._length = device, 0

    def tables(self, start: int, steps: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions start .. start + steps: float32 [steps, n_dims / 2]."""
        if start + steps > self._length:
            self._length = 2 * (start + steps)
            angles = torch.arange(self._length, dtype=torch.float64)[:, None] * self.frequencies
            self._cos = angles.cos().float().to(self.device)
            self._sin = angles.sin().float().to(self.device)
        return self._cos[start : start + steps], self._sin[start : start + steps]


def rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (2j, 2j + 1): x [..., T, D], tables [T, D / 2] (ggml's NORM type)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
