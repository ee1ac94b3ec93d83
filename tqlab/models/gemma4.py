"""The gemma4 text decoder, all its variants (spec gemma4 1 to 3).

What a file is, its metadata and tensors say: per-layer embeddings (E2B, E4B), a tail of layers that
read earlier layers' keys and values, layers without attn_v (V is the raw K), routed experts beside
the dense feed-forward. Norm weights are used as they are; the attention scale is 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import gelu

from ..attention import attend
from ..kvcache import LayerShape
from .base import Decoder, Rope, rms_norm, rope_neox, softcapped
from .config import Config, Keys
from .weights import Weights

_SOFTCAP, _SLIDING_BASE = 30.0, 10000.0  # what a file without the keys means


class Gemma4(Decoder):
    """Gemma 4, dense, E2B / E4B or mixture of experts."""

    def __init__(self, weights: Weights):
        c, keys = Config.from_gguf(weights.file), Keys(weights.file)
        super().__init__(c, weights)
        self.sliding = keys.sliding_layers(c.n_layers)
        self._shapes = layer_shapes(keys, c, self.sliding)
        self.softcap = keys.softcap(missing=_SOFTCAP)
        self.ropes = self._ropes(weights, keys)
        width = keys.count("embedding_length_per_layer_input", 0, least=0)
        self.ple = PerLayerEmbedding(weights, c, width) if width else None
        self.layers = [
            Layer(weights, c, i, shape, width, keys) for i, shape in enumerate(self._shapes)
        ]

    def _ropes(self, weights: Weights, keys: Keys) -> dict[bool, Rope]:
        """Angles of sliding (True) and full (False) layers; rope_freqs are for the full ones."""
        c = self.config
        n_full = keys.rotated("rope.dimension_count", c.head_dim)
        n_sliding = keys.rotated("rope.dimension_count_swa", sliding_head_dim(keys, c))
        base = keys.number("rope.freq_base_swa", _SLIDING_BASE)
        factors = weights.optional("rope_freqs.weight", n_full // 2)
        return {
            True: Rope(n_sliding, base, self.device),
            False: Rope(n_full, c.rope_base, self.device, factors, keys.rope_scale()),
        }

    def layer_shapes(self):
        return self._shapes

    def rope_of(self, layer):
        return self.ropes[self.sliding[layer]], rope_neox

    def hidden(self, ids, cache):
        c, x = self.config, self.embed.rows(ids) * self.config.n_embd**0.5
        ple = self.ple(ids, x).unbind(-2) if self.ple else (None,) * c.n_layers
        angles = {kind: rope.tables(cache, ids.shape[1]) for kind, rope in self.ropes.items()}
        for i, layer in enumerate(self.layers):
            x = layer(x, ple[i], angles[self.sliding[i]], cache)
        return rms_norm(x, self.out_norm, c.rms_eps)

    def head(self, x):
        return softcapped(self.unembed(x), self.softcap)


def sliding_head_dim(keys: Keys, c: Config) -> int:
    """The head size of sliding layers."""
    dim = keys.count("attention.key_length_swa", c.head_dim)
    if keys.count("attention.value_length_swa", dim) != dim:
        keys.fail("attention.value_length_swa", f"the length of keys, {dim}")
    return dim


def layer_shapes(keys: Keys, c: Config, sliding: tuple[bool, ...]) -> list[LayerShape]:
    """What each layer's cache stores. A shared layer reads the last own layer of its kind.

    Raises: GGUFError when no own layer is of a shared layer's kind.
    """
    window = keys.count("attention.sliding_window") if any(sliding) else None
    kinds = {True: (sliding_head_dim(keys, c), window), False: (c.head_dim, None)}
    own = c.n_layers - keys.count("attention.shared_kv_layers", 0, least=0)
    shapes = []
    for i, kind in enumerate(sliding):
        same = [j for j in range(own) if sliding[j] == kind]
        if i >= own and not same:
            keys.fail("attention.shared_kv_layers", f"an own layer for layer {i} to share")
        donor = None if i < own else same[-1]
        heads = c.n_kv_heads[i if donor is None else donor]
        shapes.append(LayerShape(heads, *kinds[kind], donor))
    return shapes


class PerLayerEmbedding:
    """One small vector a token and layer, from a packed table and the token's embedding."""

    def __init__(self, w: Weights, c: Config, width: int):
        self.layers, self.width, self.eps = c.n_layers, width, c.rms_eps
        n = c.n_layers * width
        self.table = w.table("per_layer_token_embd.weight", rows=c.n_vocab, columns=n)
        self.project = w.matrix("per_layer_model_proj.weight", rows=n, columns=c.n_embd)
        self.norm = w.vector("per_layer_proj_norm.weight", width)

    def __call__(self, ids: Tensor, x: Tensor) -> Tensor:
        """Shapes: ids int64 [B, T], x (scaled embeddings) [B, T, n_embd] -> [B, T, L, width]"""
        a = self.table.rows(ids) * self.width**0.5
        b = self.project(x) * x.shape[-1] ** -0.5
        a, b = (part.unflatten(-1, (self.layers, self.width)) for part in (a, b))
        return (a + rms_norm(b, self.norm, self.eps)) * 2**-0.5


class Layer:
    """One block: attention, feed-forward (dense, or dense beside experts), per-layer input."""

    def __init__(self, w: Weights, c: Config, i: int, shape: LayerShape, width: int, keys: Keys):
        def vector(part, size=c.n_embd):
            return w.vector(f"blk.{i}.{part}.weight", size)

        self.eps, self.index, self.shape = c.rms_eps, i, shape
        self._take_attention(w, c, vector)
        self.ffn = FeedForward(w, c, i)
        self.moe = MoE(w, c, i, keys) if w.has(f"blk.{i}.ffn_gate_inp.weight") else None
        self.ffn_norm, self.post_ffw_norm = vector("ffn_norm"), vector("post_ffw_norm")
        self.out_scale = w.optional(f"blk.{i}.layer_output_scale.weight", 1)
        self.ple = LayerInput(w, c, i, width) if width else None

    def _take_attention(self, w: Weights, c: Config, vector) -> None:
        """Shared layers may carry K and V weights, which nothing uses: they are not taken."""
        prefix, dim, own = f"blk.{self.index}.attn", self.shape.head_dim, self.shape.donor is None
        q_dim, kv_dim = c.n_heads * dim, self.shape.n_kv_heads * dim
        has_v = w.has(f"{prefix}_v.weight")
        parts = ["q", "k", "v"][: 1 + own + (own and has_v)]
        self.splits = [q_dim] + [kv_dim] * (len(parts) - 1)
        names = [f"{prefix}_{part}.weight" for part in parts]
        self.qkv = w.matrix(*names, rows=self.splits, columns=c.n_embd)
        self.out = w.matrix(f"{prefix}_output.weight", rows=c.n_embd, columns=q_dim)
        self.attn_norm, self.post_attn_norm = vector("attn_norm"), vector("post_attention_norm")
        self.q_norm = vector("attn_q_norm", dim)
        self.k_norm = vector("attn_k_norm", dim) if own else None

    def __call__(self, x: Tensor, ple: Tensor | None, angles, cache) -> Tensor:
        o = self._attention(rms_norm(x, self.attn_norm, self.eps), angles, cache)
        h = x + rms_norm(o, self.post_attn_norm, self.eps)
        f = self.ffn(rms_norm(h, self.ffn_norm, self.eps))
        f = self.moe.beside(f, h) if self.moe else f
        y = h + rms_norm(f, self.post_ffw_norm, self.eps)
        y = self.ple(y, ple) if self.ple else y
        return y if self.out_scale is None else y * self.out_scale

    def _attention(self, n, angles, cache):
        parts = torch.split(self.qkv(n), self.splits, -1)
        q, *kv = (p.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2) for p in parts)
        q = rope_neox(rms_norm(q, self.q_norm, self.eps), *angles)
        if kv:
            k = rope_neox(rms_norm(kv[0], self.k_norm, self.eps), *angles)
            v = rms_norm(kv[-1], None, self.eps)  # without attn_v: the raw K
            view = cache.update_and_fetch(self.index, k, v)
        else:
            view = cache.fetch(self.index)
        return self.out(attend(q, view, 1.0).transpose(1, 2).flatten(2))


class FeedForward:
    """down(gelu(gate) * up); its width is that of the file's tensors."""

    def __init__(self, w: Weights, c: Config, i: int):
        gate, up, down = (f"blk.{i}.ffn_{part}.weight" for part in ("gate", "up", "down"))
        width = w.shape(gate)[0]
        self.gate_up = w.matrix(gate, up, rows=(width, width), columns=c.n_embd)
        self.down = w.matrix(down, rows=c.n_embd, columns=width)

    def __call__(self, x):
        return self.down(gated(self.gate_up(x)))


def gated(gate_up: Tensor) -> Tensor:
    """gelu of the first half times the second half."""
    gate, up = gate_up.chunk(2, -1)
    return gelu(gate, approximate="tanh") * up


class LayerInput:
    """Adds the layer's own small vector of each token to the residual stream."""

    def __init__(self, w: Weights, c: Config, i: int, width: int):
        self.gate = w.matrix(f"blk.{i}.inp_gate.weight", rows=width, columns=c.n_embd)
        self.project = w.matrix(f"blk.{i}.proj.weight", rows=c.n_embd, columns=width)
        self.norm, self.eps = w.vector(f"blk.{i}.post_norm.weight", c.n_embd), c.rms_eps

    def __call__(self, y, ple):
        gate = gelu(self.gate(y), approximate="tanh")
        return y + rms_norm(self.project(gate * ple), self.norm, self.eps)


class MoE:
    """Routed experts; how many and how wide is read from their tensors."""

    def __init__(self, w: Weights, c: Config, i: int, keys: Keys):
        def name(part):
            return f"blk.{i}.{part}"

        def norm(part):
            return w.vector(name(f"{part}.weight"), c.n_embd)

        n, _, width = w.shape(name("ffn_down_exps.weight"))
        self.eps, self.n_experts, self.top_k = c.rms_eps, n, keys.count("expert_used_count")
        if self.top_k > n:
            keys.fail("expert_used_count", f"no more than the {n} experts of layer {i}")
        self.router = w.matrix(name("ffn_gate_inp.weight"), rows=n, columns=c.n_embd)
        self.router_scale = w.vector(name("ffn_gate_inp.scale"), c.n_embd)
        self.expert_scale = w.optional(name("ffn_down_exps.scale"), n)
        self.gate_up = _gate_up(w, name, n, width, c.n_embd)
        self.down = w.experts(name("ffn_down_exps.weight"), n=n, rows=c.n_embd, columns=width)
        self.pre_norm, self.post_norm = norm("pre_ffw_norm_2"), norm("post_ffw_norm_2")
        self.dense_norm = norm("post_ffw_norm_1")

    def beside(self, dense: Tensor, h: Tensor) -> Tensor:
        """The dense branch's output and the experts', each normed, added: [B, T, n_embd]."""
        routed = self.experts(rms_norm(h, self.pre_norm, self.eps), *self.route(h))
        normed = rms_norm(routed, self.post_norm, self.eps)
        return rms_norm(dense, self.dense_norm, self.eps) + normed

    def route(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of each token's experts.

        Shapes: h float32 [B, T, n_embd] -> float32 [B, T, k], int64 [B, T, k]
        """
        r = rms_norm(h, None, self.eps) * self.router_scale * h.shape[-1] ** -0.5
        shares = self.router(r).softmax(-1)
        chosen = self.choose(shares)
        weights = shares.gather(-1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[chosen]
        return weights, chosen

    def choose(self, shares: Tensor) -> Tensor:
        """The experts with the largest shares, the largest first: [B, T, n] -> int64 [B, T, k]."""
        return shares.topk(self.top_k).indices

    def experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The weighted sum of each token's experts.

        Shapes: x [B, T, n_embd]; weights and chosen [B, T, k] -> [B, T, n_embd]
        """
        chosen = chosen.flatten(0, 1)
        out = self.down(gated(self.gate_up(x.flatten(0, 1), chosen)), chosen)
        return (out.view(*weights.shape, -1) * weights[..., None]).sum(-2)


def _gate_up(w: Weights, name, n: int, width: int, n_embd: int):
    """Gate rows first, up rows second, of every expert; some files keep two tensors."""
    fused = name("ffn_gate_up_exps.weight")
    if w.has(fused):
        return w.experts(fused, n=n, rows=2 * width, columns=n_embd)
    parts = [name(f"ffn_{part}_exps.weight") for part in ("gate", "up")]
    return w.experts(*parts, n=n, rows=width, columns=n_embd)
