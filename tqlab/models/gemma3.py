"""The gemma3 text decoder: sliding and full layers, four norms a layer (spec gemma4 7).

Norm weights are used as they are: converters have already added the 1.
"""

import torch
from torch.nn.functional import gelu

from ..attention import attend
from ..kvcache import LayerShape
from .base import Decoder, Rope, rms_norm, rope_neox, softcapped
from .config import Config, Keys
from .weights import Weights

_PERIOD, _SLIDING_BASE = 6, 10000.0  # what a file without the keys means
_LAYERS_OF_27B = 62  # the one size whose attention scale is not head_dim^-0.5


class Layer:
    """One block's weights."""

    def __init__(self, w: Weights, c: Config, i: int):
        def name(part):
            return f"blk.{i}.{part}.weight"

        def norm(part, size=c.n_embd):
            return w.vector(name(part), size)

        q_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads[i] * c.head_dim
        self.splits = (q_dim, kv_dim, kv_dim)
        self.attn_norm, self.post_attn_norm = norm("attn_norm"), norm("post_attention_norm")
        self.ffn_norm, self.post_ffw_norm = norm("ffn_norm"), norm("post_ffw_norm")
        self.q_norm, self.k_norm = norm("attn_q_norm", c.head_dim), norm("attn_k_norm", c.head_dim)
        qkv = [name(part) for part in ("attn_q", "attn_k", "attn_v")]
        self.qkv = w.matrix(*qkv, rows=self.splits, columns=c.n_embd)
        self.out = w.matrix(name("attn_output"), rows=c.n_embd, columns=q_dim)
        gate_up = [name("ffn_gate"), name("ffn_up")]
        self.gate_up = w.matrix(*gate_up, rows=(c.n_ff[i],) * 2, columns=c.n_embd)
        self.down = w.matrix(name("ffn_down"), rows=c.n_embd, columns=c.n_ff[i])


class Gemma3(Decoder):
    """Gemma 3; every layer sees everything when the file states no window."""

    def __init__(self, weights: Weights):
        c, keys = Config.from_gguf(weights.file), Keys(weights.file)
        super().__init__(c, weights)
        windowed = keys.get("attention.sliding_window") is not None
        sliding = keys.sliding_layers(c.n_layers, _PERIOD)
        self.sliding = sliding if windowed else (False,) * c.n_layers
        self.window = keys.count("attention.sliding_window") if windowed else None
        self.layers = [Layer(weights, c, i) for i in range(c.n_layers)]
        per_head = c.n_embd / c.n_heads if c.n_layers == _LAYERS_OF_27B else c.head_dim
        self.scale = per_head**-0.5
        self.softcap = keys.softcap(missing=0.0)
        n_rot = keys.rotated("rope.dimension_count", c.head_dim)
        sliding_base = keys.number("rope.freq_base_swa", _SLIDING_BASE)
        self.ropes = {
            True: Rope(n_rot, sliding_base, self.device),
            False: Rope(n_rot, c.rope_base, self.device, scale=keys.rope_scale()),
        }

    def layer_shapes(self):
        c = self.config
        return [
            LayerShape(n, c.head_dim, window=self.window if sliding else None)
            for n, sliding in zip(c.n_kv_heads, self.sliding, strict=True)
        ]

    def rope_of(self, layer):
        return self.ropes[self.sliding[layer]], rope_neox

    def hidden(self, ids, cache):
        c, x = self.config, self.embed.rows(ids) * self.config.n_embd**0.5
        angles = {kind: rope.tables(cache, ids.shape[1]) for kind, rope in self.ropes.items()}
        for i, layer in enumerate(self.layers):
            n = rms_norm(x, layer.attn_norm, c.rms_eps)
            o = self._attention(i, layer, n, angles[self.sliding[i]], cache)
            x = x + rms_norm(o, layer.post_attn_norm, c.rms_eps)
            gate, up = layer.gate_up(rms_norm(x, layer.ffn_norm, c.rms_eps)).chunk(2, -1)
            f = layer.down(gelu(gate, approximate="tanh") * up)
            x = x + rms_norm(f, layer.post_ffw_norm, c.rms_eps)
        return rms_norm(x, self.out_norm, c.rms_eps)

    def _attention(self, i, layer, x, angles, cache):
        c = self.config
        parts = torch.split(layer.qkv(x), layer.splits, -1)
        q, k, v = (p.unflatten(-1, (-1, c.head_dim)).transpose(1, 2) for p in parts)
        q = rope_neox(rms_norm(q, layer.q_norm, c.rms_eps), *angles)
        k = rope_neox(rms_norm(k, layer.k_norm, c.rms_eps), *angles)
        o = attend(q, cache.update_and_fetch(i, k, v), self.scale)
        return layer.out(o.transpose(1, 2).flatten(2))

    def head(self, x):
        return softcapped(self.unembed(x), self.softcap)
