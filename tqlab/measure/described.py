"""Gemma 4 models described by their published shapes alone: no weights, no file.

A `Described` answers what a GGUF file would answer, so sizes come from the code that reads, plans
and stores real files, never from a formula of their own. Source: spec gemma4 1 and 3.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from ..gguf_file import Header, TensorInfo, type_layout
from ..kvcache import LayerShape
from ..models.config import Config, Keys
from ..models.gemma4 import layer_shapes

_VOCAB = 262144
_HEADS = {"attention.key_length": 512, "attention.key_length_swa": 256}
_HEADS |= {"attention.value_length": 512, "attention.value_length_swa": 256}
_COMMON = _HEADS | {"attention.layer_norm_rms_epsilon": 1e-6}


def _dense(layers, embd, heads, kv, ff, period, window, context, **more) -> dict:
    """GGUF metadata; `kv`: KV heads of sliding and of global layers."""
    sliding = [i % period < period - 1 for i in range(layers)]
    return _COMMON | {
        "block_count": layers,
        "embedding_length": embd,
        "attention.head_count": heads,
        "attention.head_count_kv": [kv[0] if s else kv[1] for s in sliding],
        "feed_forward_length": ff,
        "attention.sliding_window_pattern": sliding,
        "attention.sliding_window": window,
        "context_length": context,
        **more,
    }


_SMALL = {"embedding_length_per_layer_input": 256, "period": 5, "window": 512, "context": 131072}
_LARGE = {"window": 1024, "context": 262144, "period": 6}


def _e2b() -> dict:
    shared = {"attention.shared_kv_layers": 20}
    return _dense(35, 1536, 8, (1, 1), [6144] * 15 + [12288] * 20, **_SMALL, **shared)


def _a4b(experts: int) -> dict:
    moe = {"expert_count": experts, "expert_feed_forward_length": 704, "expert_used_count": 8}
    return _dense(30, 2816, 16, (8, 2), 2112, **_LARGE, **moe)


_MODELS = {
    "E2B": _e2b(),
    "26B-A4B, 96 experts": _a4b(96),
    "26B-A4B": _a4b(128),
    "31B": _dense(60, 5376, 32, (16, 4), 21504, **_LARGE),
}
DESCRIBED = tuple(_MODELS)


class Described(Header):
    """What a GGUF file of a published model says about itself, without its weights.

    Fields as in GGUFFile: path (only a name), metadata, tensors (matrices in `type`, 1-D in f32).
    """

    @property
    def n_weights(self) -> int:
        """Values in all tensors."""
        return sum(math.prod(t.shape) for t in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def config(self) -> Config:
        """The hyper-parameters, read and checked as those of a real file."""
        return Config.from_gguf(self)

    def layer_shapes(self) -> list[LayerShape]:
        """What each layer's cache stores, by the code that reads real Gemma 4 files."""
        keys, config = Keys(self), self.config()
        return layer_shapes(keys, config, keys.sliding_layers(config.n_layers))


def describe(name: str, type: str = "bf16") -> Described:
    """A Gemma 4 model of `DESCRIBED`, as a GGUF file with its matrices in `type`.

    Raises: ValueError for an unknown name.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; described are {', '.join(DESCRIBED)}")
    own = _MODELS[name]
    metadata = {f"gemma4.{key}": value for key, value in own.items()}
    metadata |= {"general.architecture": "gemma4", "general.name": name}
    tensors = [_tensor(n, shape, type) for n, shape in tensor_shapes(own, _VOCAB)]
    return Described(Path(name), metadata, {t.name: t for t in tensors})


def _tensor(name: str, shape: tuple[int, ...], type: str) -> TensorInfo:
    kept = len(shape) == 1 or "ffn_gate_inp" in name
    name = name if name.endswith(".scale") else f"{name}.weight"
    block, size, _ = type_layout("f32" if kept else type)
    nbytes = math.prod(shape) // block * size
    return TensorInfo(name, shape, "f32" if kept else type, 0, nbytes)


def tensor_shapes(m: dict, vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name without .weight, shape in torch order) of all tensors of a Gemma 4 with metadata `m`.

    `m` has GGUF's keys without "gemma4."; the two arrays may also be single numbers.
    """
    embd, layers = m["embedding_length"], m["block_count"]
    width = m.get("embedding_length_per_layer_input", 0)
    yield "token_embd", (vocab, embd)
    yield "output_norm", (embd,)
    yield "rope_freqs", (m["attention.key_length"] // 2,)
    if width:
        yield "per_layer_token_embd", (vocab, width * layers)
        yield "per_layer_model_proj", (width * layers, embd)
        yield "per_layer_proj_norm", (width,)
    for i in range(layers):
        parts = _attention(m, i) | _feed_forward(m, i) | _per_layer(embd, width)
        yield from ((f"blk.{i}.{part}", shape) for part, shape in parts.items())


def _attention(m: dict, i: int) -> dict:
    embd, sliding = m["embedding_length"], m["attention.sliding_window_pattern"][i]
    head = m["attention.key_length_swa" if sliding else "attention.key_length"]
    q, kv = m["attention.head_count"] * head, _of_layer(m["attention.head_count_kv"], i) * head
    shapes = {"attn_norm": (embd,), "attn_q": (q, embd), "attn_k": (kv, embd)}
    # All but E2B and E4B use the raw key as the value in global layers.
    if sliding or m.get("embedding_length_per_layer_input"):
        shapes["attn_v"] = (kv, embd)
    shapes |= {"attn_q_norm": (head,), "attn_k_norm": (head,), "attn_output": (embd, q)}
    return shapes | {"post_attention_norm": (embd,)}


def _feed_forward(m: dict, i: int) -> dict:
    embd, ff = m["embedding_length"], _of_layer(m["feed_forward_length"], i)
    shapes = {"ffn_gate": (ff, embd), "ffn_up": (ff, embd), "ffn_down": (embd, ff)}
    shapes |= {"ffn_norm": (embd,), "post_ffw_norm": (embd,), "layer_output_scale": (1,)}
    return shapes | (_experts(m) if "expert_count" in m else {})


def _of_layer(value: int | list[int], i: int) -> int:
    return value[i] if isinstance(value, list) else value


def _experts(m: dict) -> dict:
    embd, n, ff = m["embedding_length"], m["expert_count"], m["expert_feed_forward_length"]
    norms = ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2", "ffn_gate_inp.scale")
    shapes = dict.fromkeys(norms, (embd,)) | {"ffn_gate_inp": (n, embd)}
    shapes |= {"ffn_gate_up_exps": (n, 2 * ff, embd), "ffn_down_exps": (n, embd, ff)}
    return shapes | {"ffn_down_exps.scale": (n,)}


def _per_layer(embd: int, width: int) -> dict:
    if not width:
        return {}
    return {"inp_gate": (width, embd), "proj": (embd, width), "post_norm": (embd,)}
