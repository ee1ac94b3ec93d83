"""Gemma 4 with routed experts, in plain torch, for training. Parameters carry their GGUF names.

tqlab's own reader of the exported file is the check: both must give the same logits. All experts
run on every token and the router's weights, zero for all but the chosen, gate their sum: 12 times
the arithmetic, and still the fastest way at this size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, rms_norm, scaled_dot_product_attention

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Hyper-parameters; `sliding` says for each layer whether it sees a window only."""

    vocab: int = 3072
    embd: int = 256
    ff: int = 512
    experts: int = 96
    top_k: int = 8
    expert_ff: int = 32
    heads: int = 4
    kv_sliding: int = 2
    kv_full: int = 1
    dim_sliding: int = 128
    dim_full: int = 256
    window: int = 128
    context: int = 1024
    sliding: tuple[bool, ...] = (True, True, False, True, False)
    softcap: float = 30.0

    def heads_of(self, sliding: bool) -> tuple[int, int]:
        """KV heads and head size."""
        full, near = (self.kv_full, self.dim_full), (self.kv_sliding, self.dim_sliding)
        return near if sliding else full


def angles(shape: Shape, sliding: bool, steps: int) -> tuple[Tensor, Tensor]:
    """cos and sin [steps, head size / 2]; full layers rotate a quarter of their pairs."""
    half = shape.heads_of(sliding)[1] // 2
    base = 1e4 if sliding else 1e6
    frequencies = base ** -(torch.arange(half, dtype=torch.float64) / half)
    if not sliding:
        frequencies[half // 4 :] = 0
    turned = torch.arange(steps, dtype=torch.float64)[:, None] * frequencies
    return turned.cos().float(), turned.sin().float()


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class Layer(nn.Module):
    """One block. Matrices are named as in the file, without ".weight"."""

    def __init__(self, s: Shape, sliding: bool):
        super().__init__()
        self.s, self.sliding = s, sliding
        self.n_kv, self.dim = s.heads_of(sliding)

        def matrix(*size):
            return nn.Parameter(torch.randn(size) * size[-1] ** -0.5)

        def norm(size, value=1.0):
            return nn.Parameter(torch.full((size,), value))

        self.attn_norm, self.ffn_norm = norm(s.embd), norm(s.embd)
        self.post_attention_norm, self.post_ffw_norm = norm(s.embd, 0.4), norm(s.embd, 0.4)
        self.attn_q = matrix(s.heads * self.dim, s.embd)
        self.attn_k = matrix(self.n_kv * self.dim, s.embd)
        if sliding:  # full layers use the raw keys as values
            self.attn_v = matrix(self.n_kv * self.dim, s.embd)
        self.attn_output = matrix(s.embd, s.heads * self.dim)
        self.attn_q_norm, self.attn_k_norm = (norm(self.dim, self.dim**-0.25) for _ in "qk")
        self.ffn_gate, self.ffn_up = matrix(s.ff, s.embd), matrix(s.ff, s.embd)
        self.ffn_down = matrix(s.embd, s.ff)
        self.ffn_gate_inp = matrix(s.experts, s.embd)
        self.ffn_gate_inp_scale = norm(s.embd, float(s.embd) ** 0.5)
        self.pre_ffw_norm_2 = norm(s.embd)
        self.post_ffw_norm_1, self.post_ffw_norm_2 = norm(s.embd, 0.7), norm(s.embd, 0.7)
        self.ffn_gate_up_exps = matrix(s.experts, 2 * s.expert_ff, s.embd)
        self.ffn_down_exps = matrix(s.experts, s.embd, s.expert_ff)
        self.ffn_down_exps_scale = norm(s.experts)
        self.layer_output_scale = norm(1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None):
        """x [B, T, embd] -> the same, and how much the experts' load is out of balance."""
        o = self._attention(_norm(x, self.attn_norm), cos, sin, mask)
        h = x + _norm(o, self.post_attention_norm)
        u = _norm(h, self.ffn_norm)
        dense = _linear(
            gelu(_linear(u, self.ffn_gate), approximate="tanh") * _linear(u, self.ffn_up),
            self.ffn_down,
        )
        gates, imbalance = self._route(h)
        routed = self._experts(_norm(h, self.pre_ffw_norm_2), gates)
        f = _norm(dense, self.post_ffw_norm_1) + _norm(routed, self.post_ffw_norm_2)
        h = h + _norm(f, self.post_ffw_norm)
        return h * self.layer_output_scale.to(h.dtype), imbalance

    def _attention(self, n, cos, sin, mask):
        def heads(y):
            return y.unflatten(-1, (-1, self.dim)).transpose(1, 2)

        q, k = heads(_linear(n, self.attn_q)), heads(_linear(n, self.attn_k))
        v = heads(_linear(n, self.attn_v)) if self.sliding else k
        q, k = (
            _rope(_norm(q, self.attn_q_norm), cos, sin),
            _rope(_norm(k, self.attn_k_norm), cos, sin),
        )
        v = _norm(v, None)
        k, v = (y.repeat_interleave(self.s.heads // self.n_kv, 1) for y in (k, v))
        o = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=1.0)
        return _linear(o.transpose(1, 2).flatten(2), self.attn_output)

    def _route(self, h):
        """Each token's weight of every expert [B, T, E], and the Switch balance loss."""
        r = rms_norm(h.float(), h.shape[-1:], None, EPS) * self.ffn_gate_inp_scale
        p = linear(r * h.shape[-1] ** -0.5, self.ffn_gate_inp).softmax(-1)
        top, chosen = p.topk(self.s.top_k)
        gates = torch.zeros_like(p).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
        share = (gates > 0).float().mean((0, 1)) / self.s.top_k
        imbalance = self.s.experts * (share * p.mean((0, 1))).sum()
        return gates * self.ffn_down_exps_scale, imbalance

    def _experts(self, x, gates):
        f = self.s.expert_ff
        gate, up = self.ffn_gate_up_exps.split(f, 1)
        inner = gelu(_linear(x, gate.flatten(0, 1)), approximate="tanh") * _linear(
            x, up.flatten(0, 1)
        )
        inner = (inner.unflatten(-1, (-1, f)) * gates[..., None].to(x.dtype)).flatten(-2)
        return _linear(inner, self.ffn_down_exps.transpose(0, 1).flatten(1))


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return linear(x, weight.to(x.dtype))


def _norm(x: Tensor, weight: Tensor | None) -> Tensor:
    return rms_norm(x.float(), x.shape[-1:], weight, EPS).to(x.dtype)


class Gemma4(nn.Module):
    """The whole model; its matrix products run in `dtype`."""

    def __init__(self, s: Shape, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.s, self.dtype = s, dtype
        self.token_embd = nn.Parameter(torch.randn(s.vocab, s.embd) * s.embd**-0.5)
        self.output_norm = nn.Parameter(torch.ones(s.embd))
        self.blk = nn.ModuleList(Layer(s, sliding) for sliding in s.sliding)
        for sliding in (True, False):
            cos, sin = angles(s, sliding, s.context)
            self.register_buffer(f"cos_{sliding}", cos, persistent=False)
            self.register_buffer(f"sin_{sliding}", sin, persistent=False)
        ones = torch.ones(s.context, s.context, dtype=torch.bool)
        near = ones.tril() & ones.triu(1 - s.window)
        self.register_buffer("near", near, persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, T] -> last hidden states [B, T, embd], mean imbalance of the layers."""
        steps, total = ids.shape[1], 0.0
        x = (self.token_embd[ids] * self.s.embd**0.5).to(self.dtype)
        for layer in self.blk:
            cos, sin = (getattr(self, f"{t}_{layer.sliding}")[:steps] for t in ("cos", "sin"))
            mask = self.near[:steps, :steps] if layer.sliding else None
            x, imbalance = layer(x, cos, sin, mask)
            total = total + imbalance
        return _norm(x, self.output_norm), total / len(self.blk)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states -> float32 logits, softly capped."""
        y = _linear(x, self.token_embd).float()
        return self.s.softcap * torch.tanh(y / self.s.softcap)
