"""What every decoder shares: rope, norms, and running ids through a cache."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..calibrate import plan
from ..calibration import Calibration
from ..kvcache import KVCache, LayerShape
from ..recipes import Side
from ..tokenizer import Tokenizer
from .config import Config
from .turn import Turn
from .weights import Weights

DEFAULT_TOKENS = 4096  # of a new cache
PREFILL_CHUNK = 512  # tokens that go through the layers at once


class Decoder:
    """A decoder-only transformer read from a GGUF file.

    Subclasses build their layers in `__init__` and implement `hidden` (and `layer_shapes` and
    `head` where theirs are special). The head is tied when the file has no output.weight.
    Fields: config, device, weights_mode, nbytes (weights held); make_tokenizer (set by load_model);
    calibration (what recipes that name no file of their own are derived from; None: found or made
    when one asks).
    """

    make_tokenizer: Callable[[], Tokenizer] | None = None
    calibration: Calibration | None = None

    def __init__(self, config: Config, weights: Weights):
        self.config, self.device = config, weights.device
        self.weights_mode, self._weights = weights.mode, weights
        self.path = weights.file.path
        size = {"rows": config.n_vocab, "columns": config.n_embd}
        self.embed = weights.matrix("token_embd.weight", **size)
        tied = not weights.has("output.weight")
        self.unembed = self.embed if tied else weights.matrix("output.weight", **size)
        self.out_norm = weights.vector("output_norm.weight", config.n_embd)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The file's tokeniser, built when first asked for: large vocabularies take seconds.

        Raises: GGUFError for a kind that is not known.
        """
        return self.make_tokenizer() if self.make_tokenizer else None

    @property
    def nbytes(self) -> int:
        """Bytes of weights held, as measured while they were taken from the file."""
        return self._weights.nbytes

    def layer_shapes(self) -> list[LayerShape]:
        """What each layer's cache stores."""
        return [LayerShape(n, self.config.head_dim) for n in self.config.n_kv_heads]

    def rope_of(self, layer: int) -> tuple["Rope", Callable]:
        """The rope of a layer's keys, and how it pairs channels."""
        raise NotImplementedError

    def turn(self, layer: int, n_positions: int) -> Turn:
        """How rope turns a layer's keys, for positions below `n_positions`."""
        rope, rotate = self.rope_of(layer)
        turn = rope.turn(rotate, self.layer_shapes()[layer].head_dim)
        turn.reserve(n_positions)
        return turn

    def new_cache(
        self,
        k: Side = "q8_0",
        v: Side = "turbo4",
        max_tokens: int | None = None,
        batch: int = 1,
        pads: Sequence[int] | None = None,
        start: int = 0,
    ) -> KVCache:
        """An empty cache on the model's device.

        `k`, `v`: a format, one for each layer, or a recipe (`tqlab.recipes`).
        `max_tokens` None: 4096, or the model's context where that is shorter.
        `pads`: how many tokens at the left of each row are padding, when prompts differ in length.
        `start`: the position of the first token, as rope counts.
        Raises: ValueError for unknown formats, unfit heads, or more tokens than the context.
        """
        context = self.config.context_length
        max_tokens = min(DEFAULT_TOKENS, context - start) if max_tokens is None else max_tokens
        if start < 0 or start + max_tokens > context:
            behind = f" from position {start} on" if start else ""
            raise ValueError(
                f"{max_tokens} tokens{behind} exceed the context of {self.config.name}: {context}"
            )
        k, v, policy = plan(self, k, v, start + max_tokens)
        size = (max_tokens, batch, self.device)
        return KVCache(self.layer_shapes(), k, v, *size, pads, policy, start)

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
        return self.unembed(x)

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.dim() != 2 or ids.shape[1] == 0 or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"ids must be int64 [B, T] with T > 0, got {ids.dtype} {list(ids.shape)}"
            )
        worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
        if not 0 <= worst < self.config.n_vocab:
            raise ValueError(f"token id {worst} is outside the vocabulary of {self.config.n_vocab}")
        return ids.long().to(self.device)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x * (mean(x^2) + eps)^-0.5 * weight over the last axis, float32; without a weight: 1."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


def softcapped(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap); unchanged where cap is 0."""
    return cap * (logits / cap).tanh() if cap else logits


class Rope:
    """Rotary angles, computed in float64 on the CPU (MPS has none) and handed out in float32.

    `factors` divide the frequencies one by one (a huge one means: does not rotate); `scale` divides
    the positions.
    """

    def __init__(
        self, n_dims: int, base: float, device, factors: Tensor | None = None, scale: float = 1.0
    ):
        exponent = torch.arange(0, n_dims, 2, dtype=torch.float64) / n_dims
        self.frequencies, self.device = base**-exponent / scale, device
        if factors is not None:
            factors = factors.double().cpu()
            self.frequencies = torch.where(factors > 1e20, 0.0, self.frequencies / factors)
        self._turn = None

    def turn(self, rotate: Callable, head_dim: int) -> Turn:
        """The same for keys at any position, made when first asked for."""
        if self._turn is None:
            self._turn = Turn(self.frequencies, rotate, head_dim, self.device)
        return self._turn

    def tables(self, cache: KVCache, steps: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions of the next `steps` tokens, float32.

        Shapes: [T, n_dims / 2]; with padded rows, whose first real token has position 0,
        [B, 1, T, n_dims / 2]
        """
        positions = torch.arange(cache.offset, cache.offset + steps, dtype=torch.float64)
        if cache.pads is not None:
            positions = (positions - cache.pads.cpu()[:, None, None]).clamp_(min=0)
        angles = (positions + cache.start)[..., None] * self.frequencies
        return angles.cos().float().to(self.device), angles.sin().float().to(self.device)


def rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (2j, 2j + 1): x [..., T, D], tables [T, <= D / 2] (ggml's NORM type)."""
    n = 2 * cos.shape[-1]
    pairs = x[..., :n].unflatten(-1, (-1, 2))
    if x.device.type == "cpu":  # one complex product: ten times faster, and bit for bit the same
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    else:
        a, b = pairs.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    turned = turned.flatten(-2)
    return turned if n == x.shape[-1] else torch.cat([turned, x[..., n:]], -1)


def rope_neox(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (j, j + n / 2) of the first n dims: x [..., T, D], tables [T, n / 2]."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)
