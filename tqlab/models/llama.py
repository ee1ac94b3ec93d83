"""The llama architecture (Llama, SmolLM2): pre-norm, SwiGLU, interleaved rope (spec gemma4 7).

GGUF converters permute the rows of q and k for interleaved rope; the file's order is used as it is.
"""

from torch.nn.functional import silu

from ..attention import attend
from .base import Decoder, Rope, rms_norm, rope_interleaved
from .config import Config, Keys
from .weights import Weights


class Layer:
    """One block's weights: q, k, v and gate, up share an input and one matrix each."""

    def __init__(self, w: Weights, c: Config, i: int):
        def name(part):
            return f"blk.{i}.{part}.weight"

        q_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads[i] * c.head_dim
        self.attn_norm = w.vector(name("attn_norm"), c.n_embd)
        qkv = [name(part) for part in ("attn_q", "attn_k", "attn_v")]
        self.qkv = w.matrix(*qkv, rows=(q_dim, kv_dim, kv_dim), columns=c.n_embd)
        self.out = w.matrix(name("attn_output"), rows=c.n_embd, columns=q_dim)
        self.ffn_norm = w.vector(name("ffn_norm"), c.n_embd)
        gate_up = [name("ffn_gate"), name("ffn_up")]
        self.gate_up = w.matrix(*gate_up, rows=(c.n_ff[i],) * 2, columns=c.n_embd)
        self.down = w.matrix(name("ffn_down"), rows=c.n_embd, columns=c.n_ff[i])


class Llama(Decoder):
    """Llama-style decoder."""

    rotate = staticmethod(rope_interleaved)

    def __init__(self, weights: Weights):
        c, keys = Config.from_gguf(weights.file), Keys(weights.file)
        super().__init__(c, weights)
        self.layers = [Layer(weights, c, i) for i in range(c.n_layers)]
        n_rot = keys.rotated("rope.dimension_count", c.head_dim)
        factors = weights.optional("rope_freqs.weight", n_rot // 2)
        self.rope = Rope(n_rot, c.rope_base, self.device, factors, keys.rope_scale())

    def rope_of(self, layer):
        return self.rope, self.rotate

    def hidden(self, ids, cache):
        c, x = self.config, self.embed.rows(ids)
        cos, sin = self.rope.tables(cache, ids.shape[1])
        for i, layer in enumerate(self.layers):
            qkv = self._heads(layer, rms_norm(x, layer.attn_norm, c.rms_eps))
            turned = self.rotate(qkv[:, : -c.n_kv_heads[i]], cos, sin)
            q, k, v = turned[:, : c.n_heads], turned[:, c.n_heads :], qkv[:, -c.n_kv_heads[i] :]
            o = attend(q, cache.update_and_fetch(i, k, v), c.head_dim**-0.5)
            x = x + layer.out(o.transpose(1, 2).flatten(2))
            gate, up = layer.gate_up(rms_norm(x, layer.ffn_norm, c.rms_eps)).chunk(2, -1)
            x = x + layer.down(silu(gate).mul_(up))
        return rms_norm(x, self.out_norm, c.rms_eps)

    def _heads(self, layer, x):
        """Of q, then k, then v: [B, T, n_embd] -> [B, heads, T, head_dim]."""
        y = layer.qkv(x)
        return y.view(*y.shape[:2], -1, self.config.head_dim).transpose(1, 2)
