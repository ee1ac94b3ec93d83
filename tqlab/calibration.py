"""What a model's keys and queries look like before rope, per layer and KV head, and its file.

A file holds statistics, not transforms: every recipe derives its own from the same file. It names
the model's bytes and the text it was made on, and is refused where either does not fit.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

VERSION = "1"
MAX_LAYERS = 10000
RUN = 32  # tokens in a row that two different texts do not share
_VARIED = 8  # different tokens in a run that says something: rulers and blank lines do not


@dataclass(frozen=True)
class LayerStats:
    """Keys and queries of one layer before rope.

    Fields: mean float32 [H_kv, D] of keys; cov float32 [H_kv, D, D] of keys; second float32
    [H_kv, D, D]: E[q q^T] summed over the query heads that read the KV head.
    """

    mean: Tensor
    cov: Tensor
    second: Tensor


@dataclass(frozen=True)
class Origin:
    """Where statistics come from: the model's file, the text, and how much of it."""

    model: str
    model_sha256: str
    n_layers: int
    text: str
    text_sha256: str
    ctx: int
    chunks: int


@dataclass(frozen=True)
class Calibration:
    """Statistics of a model's own layers (None: the layer reads another's keys).

    Fields: runs (int64 hashes of every 32 tokens in a row of the text, sorted); path (its file).
    """

    layers: Sequence[LayerStats | None]
    origin: Origin
    runs: Tensor
    path: Path | None = None

    def save(self, path: str | Path) -> Path:
        """Write the file at once: a reader sees all of it or none."""
        path = Path(path)
        tensors = {"runs": self.runs}
        for i, layer in enumerate(self.layers):
            for name, x in (vars(layer) if layer else {}).items():
                tensors[f"layer.{i}.{name}"] = x.contiguous()
        metadata = {"tqlab-calibration": VERSION, "origin": json.dumps(asdict(self.origin))}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            save_file(tensors, part, metadata)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Raises: ValueError naming the file and what is wrong; FileNotFoundError."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no calibration file {path}: make one with tqlab calibrate")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from None
        try:
            return cls(*_parse(metadata, tensors), path)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a calibration file ({error}); make it again") from None

    def check(self, model_sha256: str, shapes: Sequence) -> None:
        """Raises: ValueError naming the file when it was made for another model."""
        if self.origin.model_sha256 != model_sha256:
            raise ValueError(
                f"{self.path}: made for {self.origin.model} (sha256 "
                f"{self.origin.model_sha256[:12]}), not for this model ({model_sha256[:12]})"
            )
        if len(self.layers) != len(shapes):
            raise ValueError(f"{self.path}: {len(self.layers)} layers; the model has {len(shapes)}")
        for i, (layer, shape) in enumerate(zip(self.layers, shapes, strict=True)):
            wanted = None if shape.donor is not None else (shape.n_kv_heads, shape.head_dim)
            found = None if layer is None else tuple(layer.mean.shape)
            if wanted != found:
                raise ValueError(
                    f"{self.path}: layer {i} has (KV heads, head dim) {found}, not {wanted}"
                )

    def refuse_text(self, tokens) -> None:
        """Raises: ValueError when `tokens` share a stretch with the text calibrated on."""
        shared = int(np.isin(token_runs(tokens), self.runs.numpy()).sum())
        if shared:
            raise ValueError(
                f"this text shares {shared} runs of {RUN} tokens with {self.origin.text}, on which "
                "the recipe was calibrated: measure on another text, or calibrate on another one"
            )


def _parse(metadata: dict, tensors: dict) -> tuple[list, Origin, Tensor]:
    if metadata.get("tqlab-calibration") != VERSION:
        raise ValueError(f"version {metadata.get('tqlab-calibration')!r}, expected {VERSION!r}")
    runs = tensors.pop("runs")
    origin, own = Origin(**json.loads(metadata["origin"])), {name.split(".")[1] for name in tensors}
    if not isinstance(origin.n_layers, int) or not len(own) <= origin.n_layers <= MAX_LAYERS:
        raise ValueError(f"{origin.n_layers} layers, {len(own)} of them with keys")
    layers: list = [None] * origin.n_layers
    for i in map(int, own):
        layers[i] = LayerStats(**{f: tensors[f"layer.{i}.{f}"] for f in ("mean", "cov", "second")})
        _check_layer(i, layers[i])
    return layers, origin, runs


def _check_layer(i: int, layer: LayerStats) -> None:
    heads, dim = layer.mean.shape
    if layer.cov.shape != (heads, dim, dim) or layer.second.shape != (heads, dim, dim):
        raise ValueError(f"layer {i}: shapes do not belong together")
    if not all(bool(x.isfinite().all()) for x in vars(layer).values()):
        raise ValueError(f"layer {i}: values that are not finite")


def token_runs(tokens) -> np.ndarray:
    """Hashes of every 32 tokens in a row that are varied enough to tell texts apart, sorted.

    Shapes: ints [n] -> int64 [<= n - 31]
    """
    ids = torch.as_tensor(tokens).flatten().to(torch.int32).numpy().astype("<i4")
    if len(ids) < RUN:
        return np.empty(0, np.int64)
    rows = np.lib.stride_tricks.sliding_window_view(ids, RUN)
    sorted_rows = np.sort(rows, 1)
    varied = (np.diff(sorted_rows, axis=1) != 0).sum(1) >= _VARIED - 1
    hashes = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows[varied]]
    return np.unique(np.frombuffer(b"".join(hashes), "<i8").astype(np.int64))
