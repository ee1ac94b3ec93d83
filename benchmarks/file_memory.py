"""Peak memory of converting a checkpoint and of quantising it, measured by the operating system.

    .venv/bin/python benchmarks/file_memory.py [EXPERTS]

The checkpoint is one layer of Gemma 4 26B-A4B with EXPERTS experts (128 in the real one) in three
shards, their data a hole in a sparse file. Each piece of work runs in a process of its own.
Bars, for any model: 2 GB a process, 0.6 GB above what the imports take (16 workers).
"""

import json
import math
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

EMBD, FF, EXPERT_FF, HEADS, HEAD, VOCAB = 2816, 2112, 704, 16, 256, 25600
LIMIT, RISE = 2e9, 0.6e9  # bytes
CONFIG = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 1,
    "hidden_size": EMBD,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "sliding_window": 1024,
    "layer_types": ["sliding_attention"],
    "enable_moe_block": True,
    "top_k_experts": 8,
}
CHILD = """
import json, sys
from benchmarks.file_memory import peak_bytes
import tqlab
work, source, target = sys.argv[1:4]
before = peak_bytes()
if work == "convert":
    tqlab.convert_hf(source, target, progress=False)
else:
    tqlab.quantize_gguf(source, target, work, progress=False)
print(json.dumps([before, peak_bytes()]))
"""


def peak_bytes() -> int:
    """High-water mark of this process's memory, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage starts from what the parent process had
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(work: str, source: Path, target: Path) -> tuple[int, int]:
    """Peak bytes of a fresh process before and after `work`: "convert", or a type of weights."""
    command = [sys.executable, "-c", CHILD, work, str(source), str(target)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    before, after = json.loads(done.stdout)
    return before, after


def shapes(experts: int) -> dict[str, tuple[int, ...]]:
    """The layer's tensors as Hugging Face names them."""
    layer = {
        "self_attn.q_proj.weight": (HEADS * HEAD, EMBD),
        "self_attn.k_proj.weight": (8 * HEAD, EMBD),
        "self_attn.v_proj.weight": (8 * HEAD, EMBD),
        "self_attn.o_proj.weight": (EMBD, HEADS * HEAD),
        "mlp.gate_proj.weight": (FF, EMBD),
        "mlp.up_proj.weight": (FF, EMBD),
        "mlp.down_proj.weight": (EMBD, FF),
        "router.proj.weight": (experts, EMBD),
        "experts.gate_up_proj": (experts, 2 * EXPERT_FF, EMBD),
        "experts.down_proj": (experts, EMBD, EXPERT_FF),
        "input_layernorm.weight": (EMBD,),
        "pre_feedforward_layernorm.weight": (EMBD,),
    }
    whole = {"model.embed_tokens.weight": (VOCAB, EMBD), "model.norm.weight": (EMBD,)}
    return whole | {f"model.layers.0.{name}": shape for name, shape in layer.items()}


def write_checkpoint(folder: Path, experts: int) -> int:
    """A sparse BF16 checkpoint in three shards; returns its bytes."""
    folder.mkdir()
    parts: list[dict] = [{}, {}, {}]
    for name, shape in shapes(experts).items():
        parts[1 if "gate_up" in name else 2 if "down_proj" in name else 0][name] = shape
    files = [f"model-{i}-of-3.safetensors" for i in (1, 2, 3)]
    index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    vocab = {"<unk>": 0, "<bos>": 1, "a": 2}
    tokenizer = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "pre_tokenizer": None}
    for name, content in (
        ("config.json", CONFIG),
        ("tokenizer.json", tokenizer),
        ("model.safetensors.index.json", {"weight_map": index}),
    ):
        (folder / name).write_text(json.dumps(content))
    return sum(_write_shard(folder / f, part) for f, part in zip(files, parts, strict=True))


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]]) -> int:
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def row(work: str, folder: Path) -> bool:
    """Measure and print one piece of work; whether it kept the bars."""
    source = folder / ("hf" if work == "convert" else "convert.gguf")
    before, after = measured(work, source, folder / f"{work}.gguf")
    columns = "".join(f"{n / 1e6:>13.0f}" for n in (before, after, after - before))
    print(f"{work:<8}{columns}", flush=True)
    return after < LIMIT and after - before < RISE


def main() -> None:
    experts = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nbytes = write_checkpoint(folder / "hf", experts)
        largest = 2 * max(map(math.prod, shapes(experts).values()))
        print(f"{experts} experts: {nbytes / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")
        print("work       imports MB      peak MB      rise MB")
        kept = [row(work, folder) for work in ("convert", "tq4_1s", "q5_0")]
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
