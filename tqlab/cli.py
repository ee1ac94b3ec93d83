"""The `tqlab` command: one function a subcommand, one table of them at the end.

With --json exactly one JSON object goes to stdout; errors are one line on stderr, exit status 2.
"""

import argparse
import contextlib
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from . import attention, data, device, formats, metal, recipes, tables
from .calibrate import CHUNKS, cached_path, calibrate, parts
from .convert import convert_hf
from .generate import Run, Sampling
from .metrics import perplexity
from .models import load_model
from .policies import POLICIES, TYPES
from .quantize import quantize_gguf
from .recipes import Side, label, side
from .selftest import instead, report, selftest, summary, write
from .sweep import DEFAULT_PAIRS, check_pair, sweep
from .version import VERSION


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        result = args.run(args)
    except (ValueError, OSError) as error:
        print(f"tqlab: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tqlab: interrupted", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result))
    return 0 if result.get("passed", True) else 1


def doctor(args) -> dict:
    """Versions, devices, shaders, cached models."""
    home = data.data_dir()
    models = sorted((home / "models").glob("*.gguf"))
    report = {
        "tqlab": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "devices": {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()},
        "auto_device": device.pick("auto").type,
        "shaders": sorted(p.stem for p in metal.shader_dir().glob("*.metal")),
        "attention": _attention_paths(),
        "data": str(home),
        "models": {p.name: p.stat().st_size for p in models},
        "reference_cache_bytes": _folder_size(home / "cache"),
    }
    _say(args, "\n".join(f"{key:>22}  {value}" for key, value in report.items()))
    return report


def _attention_paths() -> dict[str, list[str]]:
    """The cache formats that attention reads in shaders on this machine, and those it does not."""
    names, here = formats.names(), device.pick("auto")
    fused = [name for name in names if attention.fused(name, name, 128, here)]
    return {"shaders": fused, "torch": [name for name in names if name not in fused]}


def _folder_size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def fetch(args) -> dict:
    """Download a model or text, once."""
    path = data.fetch(args.name)
    _say(args, str(path))
    return {"name": args.name, "path": str(path)}


def ppl(args) -> dict:
    """Perplexity of a text through one K/V cache."""
    model, tokens, text = _model_and_tokens(args)
    reference, (k, v) = _pair(args.reference) if args.reference else None, _sides(args)
    options = {"reference": reference, "offset": args.offset}
    result = perplexity(model, tokens, args.ctx, args.chunks, k, v, **options)
    row = {"model": args.model, "text": text.name, "ctx": args.ctx, "offset": args.offset}
    row |= {"k": label(k), "v": label(v), "recipe": parts(model, k, v)}
    row |= asdict(result) | {"bits": (result.k_bits + result.v_bits) / 2}
    _say(args, f"{tables.sweep_table([row])}\n\n{tables.sweep_notes([row])}")
    return row


def run_sweep(args) -> dict:
    """Perplexity and KL of many K/V pairs: a table, JSON Lines and a figure."""
    pairs = [_pair(p) for p in args.pairs.split(",")] if args.pairs else list(DEFAULT_PAIRS)
    out = Path(args.out)
    model, tokens, text = _model_and_tokens(args)
    rows = sweep(model, tokens, pairs, args.ctx, args.chunks, out, text=text, offset=args.offset)
    _say(args, f"{tables.sweep_table(rows)}\n\n{tables.sweep_notes(rows)}")
    figure = out.with_suffix(".png")
    _draw(rows, figure)
    _say(args, f"\nrows: {out}\nfigure: {figure}")
    return {"rows": rows, "out": str(out), "figure": str(figure)}


def run_generate(args) -> dict:
    """Text from a prompt, through a packed cache."""
    if not args.p:
        raise ValueError("give a prompt: -p PROMPT")
    sampling = Sampling(args.temp, args.top_k, args.top_p, args.seed)
    prompts = [[{"role": "user", "content": p}] for p in args.p] if args.chat else args.p
    model = load_model(args.model, args.device, args.weights)
    run = Run(model, prompts, *_sides(args), args.n, sampling, args.thinking)
    if args.json or len(prompts) > 1:
        run.finish()
    else:
        for piece in run.pieces():
            print(piece, end="", flush=True)
        print()
    results = run.results()
    if len(prompts) > 1:
        _say(args, "\n---\n".join(r.text for r in results))
    print(_speeds(results, model.nbytes), file=sys.stderr)
    found = [asdict(r) | {"weights_nbytes": model.nbytes} for r in results]
    return found[0] if len(found) == 1 else {"generations": found}


def _speeds(results, weights_nbytes: int) -> str:
    one, new = results[0], sum(len(r.tokens) for r in results)
    return (
        f"{sum(r.n_prompt for r in results)} prompt tokens at {one.prefill_tok_s:.1f} tok/s, {new} "
        f"new at {one.decode_tok_s:.1f} tok/s ({one.finish}), "
        f"cache {one.cache_nbytes / 1e6:.2f} MB, "
        f"weights {weights_nbytes / 1e6:.1f} MB"
    )


def logits(args) -> dict:
    """Logits of given token ids, written to a .npz file."""
    try:
        ids = torch.tensor([[int(i) for i in args.ids.split(",")]])
    except ValueError:
        raise ValueError(f"--ids {args.ids!r}: whole numbers with commas are expected") from None
    model = load_model(args.model, args.device, args.weights)
    cache = model.new_cache(*_sides(args), ids.shape[1])
    values = model(ids, cache)[0].cpu().numpy()
    with open(args.out, "wb") as file:  # np.savez would change a name without .npz
        np.savez(file, logits=values)
    _say(args, f"{args.out}: logits {list(values.shape)}")
    return {"out": args.out, "shape": list(values.shape)}


def run_calibrate(args) -> dict:
    """Statistics of a model's keys and queries over a text, for recipes that need them."""
    text = data.load_text(args.text)
    model = load_model(args.model, args.device, args.weights)
    done = calibrate(model, text, args.out or cached_path(model), args.chunks)
    origin = done.origin
    _say(args, f"{done.path}: {origin.model} on {text.name}, {origin.chunks} x {origin.ctx} tokens")
    return asdict(origin) | {"out": str(done.path)}


def quantize(args) -> dict:
    """Rewrite a GGUF file in another weight type, or by a policy."""
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        done = quantize_gguf(args.src, args.dst, args.type, args.policy)
    line = f"{done.path}: {done.bytes_before / 1e6:.1f} -> {done.bytes_after / 1e6:.1f} MB, "
    line += f"{done.bits_per_weight:.2f} bits a weight, {done.seconds:.1f} s"
    _say(args, f"{line} ({done.weights_per_s / 1e6:.1f} M weights/s)")
    return asdict(done) | {"path": str(done.path)}


def convert(args) -> dict:
    """Turn a Hugging Face checkpoint folder into a GGUF file."""
    done = convert_hf(args.directory, args.dst)
    line = f"{done.path}: {done.architecture}, {done.n_tensors} tensors in {done.type}"
    _say(args, f"{line}, {done.nbytes / 1e6:.1f} MB, {done.seconds:.1f} s")
    return asdict(done) | {"path": str(done.path)}


def _draw(rows: list[dict], path: Path) -> None:
    from . import plots  # matplotlib takes a second to load

    plots.kld_against_bits(rows).savefig(path, dpi=150)


def _model_and_tokens(args):
    """Everything is checked before the model is loaded: formats, then the text."""
    if hasattr(args, "recipe"):
        _sides(args)
    text = data.load_text(args.text)
    model = load_model(args.model, args.device, args.weights)
    return model, model.tokenizer.encode(text.text), text


def _sides(args) -> tuple[Side, Side]:
    """What K and V are kept in: the recipe, or -ctk and -ctv.

    Raises: ValueError for unknown names, or both at once.
    """
    if not args.recipe:
        k, v = args.formats
        return side(args.ctk or k), side(args.ctv or v)
    if args.ctk or args.ctv:
        raise ValueError(f"--recipe {args.recipe} decides K and V: leave out -ctk and -ctv")
    return (recipes.get(args.recipe),) * 2


def _pair(text: str) -> tuple[str, str]:
    """ "k/v" or a recipe -> (k, v). Raises ValueError for anything else."""
    return check_pair(text.strip())


def run_selftest(args) -> dict:
    """Every op, torch's matmul and SDPA, and a sentence, against references; 1 on failure."""
    rows = selftest(args.device, quick=True if args.quick else None)
    result = report(rows, args.device)
    path = write(result, Path(args.out) if args.out else None)
    where = " (simulated: shaders executed lane by lane on the CPU)" if result["simulated"] else ""
    _say(args, f"{result['device']}, torch {result['torch']}{where}")
    _say(args, f"{tables.Table(summary(rows))}\n\n{rows[-1]['note']}\n\n{instead(result)}")
    _say(args, f"rows: {path}")
    return result


def _say(args, text: str) -> None:
    if not args.json:
        print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tqlab", description="Understand, measure and trust TurboQuant."
    )
    parser.add_argument("--version", action="version", version=f"tqlab {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, add_arguments) in _COMMANDS.items():
        summary = function.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=function)
        command.add_argument("--json", action="store_true", help="one JSON object on stdout")
        add_arguments(command)
    return parser


def _no_arguments(p) -> None:
    pass


def _fetch_arguments(p) -> None:
    p.add_argument("name", metavar="NAME", help="a known name, hf://owner/repo[/file.gguf]")


def _model_arguments(p) -> None:
    p.add_argument("model", metavar="MODEL", help="a GGUF file or a fetched name, e.g. smollm2")
    p.add_argument("--device", default="auto", help="auto, mps, cuda or cpu (default: auto)")
    p.add_argument("--weights", default="auto", help="auto, packed or dense (default: auto)")


def _cache_arguments(p, k: str, v: str | None = None) -> None:
    p.set_defaults(formats=(k, v or k))
    for flag, name, default in (("-ctk", "K", k), ("-ctv", "V", v or k)):
        help_text = f"{name} format: {', '.join(formats.names())} (default: {default})"
        p.add_argument(flag, metavar="FORMAT", help=help_text)
    known = f"{', '.join(recipes.names())} or a file: in place of -ctk and -ctv"
    p.add_argument("--recipe", metavar="NAME|FILE.toml", help=known)


def _text_arguments(p) -> None:
    _model_arguments(p)
    p.add_argument("--text", default=data.PYDOC_TOPICS, help="a UTF-8 file or a known text")
    p.add_argument("--ctx", type=int, default=512, help="tokens a chunk (default: 512)")
    p.add_argument("--chunks", type=int, default=8, help="number of chunks (default: 8)")
    p.add_argument("--offset", type=int, default=0, help="added to all positions (default: 0)")


def _ppl_arguments(p) -> None:
    _text_arguments(p)
    _cache_arguments(p, "f16")
    p.add_argument(
        "--reference", metavar="K/V", help="pair to take KL divergence from, e.g. f16/f16"
    )


def _sweep_arguments(p) -> None:
    _text_arguments(p)
    default = ",".join("/".join(pair) for pair in DEFAULT_PAIRS)
    p.add_argument("--pairs", metavar="K/V,RECIPE,...", help=f"default: {default}")
    p.add_argument("--out", default="results.jsonl", help="JSON Lines, appended and resumed")


def _generate_arguments(p) -> None:
    _model_arguments(p)
    _cache_arguments(p, "q8_0", "turbo4")
    p.add_argument("-p", action="append", metavar="PROMPT", help="once for each prompt of a batch")
    p.add_argument("--chat", action="store_true", help="a user's message: use the chat template")
    p.add_argument("--thinking", action="store_true", help="let the model think first")
    p.add_argument("-n", type=int, default=64, help="new tokens at most (default: 64)")
    p.add_argument("--temp", type=float, default=0.0, help="temperature; 0 is greedy (default: 0)")
    p.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    p.add_argument("--top-p", type=float, help="draw from the likeliest with this sum, 0 to 1")
    p.add_argument("--seed", type=int, help="makes sampling repeatable")


def _logits_arguments(p) -> None:
    _model_arguments(p)
    _cache_arguments(p, "f32")
    p.add_argument("--ids", required=True, metavar="2,5,9", help="token ids")
    p.add_argument("--out", required=True, metavar="FILE.npz", help='array "logits" [T, vocab]')


def _calibrate_arguments(p) -> None:
    _model_arguments(p)
    default = f"a UTF-8 file or a known text (default: {data.CALIBRATION_TEXT})"
    p.add_argument("--text", default=data.CALIBRATION_TEXT, help=default)
    p.add_argument("--chunks", type=int, default=CHUNKS, help=f"(default: {CHUNKS})")
    p.add_argument("--out", metavar="FILE.safetensors", help="default: where recipes look for it")


def _quantize_arguments(p) -> None:
    p.add_argument("src", metavar="IN.gguf")
    p.add_argument("dst", metavar="OUT.gguf")
    p.add_argument("--type", help=f"one of {', '.join(TYPES)}")
    p.add_argument("--policy", help=f"one of {', '.join(POLICIES)}")


def _convert_arguments(p) -> None:
    p.add_argument("directory", metavar="HF_DIR", help="a folder with *.safetensors and *.json")
    p.add_argument("dst", metavar="OUT.gguf")


def _selftest_arguments(p) -> None:
    known = "auto, mps, cuda, cpu; sim or sim-checked (no GPU needed); nvrtc (shaders on CUDA)"
    p.add_argument("--device", default="auto", help=f"{known} (default: auto)")
    p.add_argument("--quick", action="store_true", help="fewer sizes; always so when simulated")
    p.add_argument("--out", metavar="FILE.json", help="default: data/results/selftest-DEVICE.json")


_COMMANDS = {
    "doctor": (doctor, _no_arguments),
    "fetch": (fetch, _fetch_arguments),
    "ppl": (ppl, _ppl_arguments),
    "sweep": (run_sweep, _sweep_arguments),
    "generate": (run_generate, _generate_arguments),
    "logits": (logits, _logits_arguments),
    "calibrate": (run_calibrate, _calibrate_arguments),
    "quantize": (quantize, _quantize_arguments),
    "convert": (convert, _convert_arguments),
    "selftest": (run_selftest, _selftest_arguments),
}
