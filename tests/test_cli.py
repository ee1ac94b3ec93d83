"""The command as users call it: tables, one JSON object, one-line errors with status 2."""

import json
import subprocess
import sys

import pytest

from tqlab import device, formats
from tqlab.cli import main

TEXT = "hello wor 12 " * 60


@pytest.fixture
def run(tmp_path, own_data, capsys):
    (tmp_path / "text.txt").write_text(TEXT)

    def call(*words):
        status = main([w.replace("TMP", str(tmp_path)) for w in map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_ppl_prints_a_table_with_its_source(run, tiny_path):
    words = ("ppl", tiny_path, "--text", "TMP/text.txt", "--ctx", 32, "--chunks", 2)
    status, out, _ = run(*words, "-ctk", "turbo3", "-ctv", "q8_0", "--reference", "f16/f16")
    assert status == 0
    assert "turbo3 / q8_0" in out
    assert "12.5" in out  # heads of 32 padded to 128: four times 3.125 bits
    assert "text.txt" in out
    assert "pad each head with zeros" in out


def test_json_is_one_object_and_nothing_else(run, tiny_path):
    words = ("ppl", tiny_path, "--text", "TMP/text.txt", "--ctx", 32, "--chunks", 1, "--json")
    status, out, _ = run(*words)
    row = json.loads(out)
    assert status == 0
    assert row["n_tokens"] == 15
    assert row["kld_mean"] is None


def test_sweep_writes_rows_and_a_figure(run, tiny_path, tmp_path):
    words = ("sweep", tiny_path, "--text", "TMP/text.txt", "--ctx", 32, "--chunks", 1)
    status, out, _ = run(*words, "--pairs", "f16/f16,q8_0/turbo4", "--out", "TMP/a/rows.jsonl")
    assert status == 0
    rows = [json.loads(line) for line in (tmp_path / "a" / "rows.jsonl").open()]
    assert [(r["k"], r["v"]) for r in rows] == [("f16", "f16"), ("q8_0", "turbo4")]
    assert rows[0]["text"] == "text.txt"
    assert (tmp_path / "a" / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert "q8_0 / turbo4" in out


def test_recipes_in_place_of_formats(run, tiny_path, tmp_path):
    """By name, from a file, in pairs; the parts are in the rows and beside the table."""
    (tmp_path / "own.toml").write_text('k = "turbo3"\nv = "q8_0"\nsinks = 3\n')
    words = ("ppl", tiny_path, "--text", "TMP/text.txt", "--ctx", 32, "--chunks", 1)
    status, out, _ = run(*words, "--recipe", "TMP/own.toml", "--offset", 9)
    assert status == 0
    assert "own: K turbo3, V q8_0, 3 first tokens f16" in out
    assert "positions from 9 on" in out
    row = json.loads(run(*words, "--recipe", "w3", "--json")[1])
    assert (row["k"], row["v"], row["offset"]) == ("w3", "w3", 0)
    assert "K turbo3, V turbo3" in row["recipe"]
    words = ("sweep", tiny_path, "--text", "TMP/text.txt", "--ctx", 32, "--chunks", 1)
    status, out, _ = run(*words, "--pairs", "f16/f16,w3", "--out", "TMP/rows.jsonl")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["f16", "w3"]
    status, out, _ = run("generate", tiny_path, "-p", "hello", "-n", 3, "--recipe", "w3", "--json")
    assert status == 0
    assert len(json.loads(out)["tokens"]) <= 3


def test_calibrate_writes_a_file_that_a_recipe_names(run, tiny_path, tmp_path):
    (tmp_path / "learn.txt").write_text("world hell low 21 " * 40)
    words = ("calibrate", tiny_path, "--text", "TMP/learn.txt", "--chunks", 2, "--json")
    status, out, _ = run(*words, "--out", "TMP/c.safetensors")
    made = json.loads(out)
    assert status == 0
    assert (made["text"], made["chunks"], made["ctx"]) == ("learn.txt", 2, 128)
    assert made["out"] == str(tmp_path / "c.safetensors")
    recipe = 'k = "turbo3"\nv = "turbo3"\ntransform = "bal"\ncalibration = "c.safetensors"\n'
    (tmp_path / "own.toml").write_text(recipe)
    words = ("ppl", tiny_path, "--ctx", 32, "--chunks", 1, "--recipe", "TMP/own.toml")
    status, out, _ = run(*words, "--text", "TMP/text.txt")
    assert status == 0
    assert "calibrated on learn.txt (2 x 128 tokens)" in out


def test_doctor_says_what_is_here(run):
    status, out, _ = run("doctor", "--json")
    assert status == 0
    report = json.loads(out)
    assert set(report["devices"]) == {"mps", "cuda"}
    assert report["auto_device"] in ("mps", "cuda", "cpu")
    assert {"wht", "kv_quantize", "tq_matvec"} <= set(report["shaders"])


@pytest.mark.skipif(device.pick().type != "cpu", reason="the engine of this device is not chosen")
def test_doctor_says_which_formats_attention_reads_in_shaders(run, monkeypatch):
    monkeypatch.setenv("TQLAB_METAL", "sim")
    report = json.loads(run("doctor", "--json")[1])["attention"]
    assert {"q8_0", "turbo3", "turbo4"} <= set(report["shaders"])
    assert {"f32", "q4_0"} <= set(report["torch"])
    monkeypatch.delenv("TQLAB_METAL")
    report = json.loads(run("doctor", "--json")[1])["attention"]
    assert report == {"shaders": [], "torch": list(formats.names())}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ppl", "nosuch", "--text", "TMP/text.txt"), "nosuch"),
        (("ppl", "MODEL", "--text", "TMP/missing.txt"), "missing.txt"),
        (("ppl", "MODEL", "--text", "TMP/empty.txt"), "empty"),
        (
            ("ppl", "MODEL", "--text", "TMP/text.txt", "-ctk", "q9"),
            "unknown format 'q9'; known: f32",
        ),
        (("ppl", "MODEL", "--text", "TMP/short.txt", "--ctx", "64"), "one chunk needs 64"),
        (("ppl", "MODEL", "--text", "TMP/text.txt", "--ctx", "2048"), "context"),
        (
            ("sweep", "MODEL", "--text", "TMP/text.txt", "--pairs", "f16"),
            "a pair is two format names",
        ),
        (
            ("ppl", "MODEL", "--text", "TMP/text.txt", "--recipe", "cw9"),
            "unknown recipe 'cw9'; known: w3",
        ),
        (
            ("ppl", "MODEL", "--text", "TMP/text.txt", "--recipe", "cw3", "-ctk", "f16"),
            "--recipe cw3 decides K and V: leave out -ctk and -ctv",
        ),
        (
            ("ppl", "MODEL", "--text", "TMP/text.txt", "--ctx", "64", "--offset", "100"),
            "64 tokens from position 100 on exceed the context",
        ),
        (("calibrate", "MODEL", "--text", "TMP/short.txt"), "one chunk needs 128"),
        (("ppl", "TMP/text.txt", "--text", "TMP/text.txt"), "not a GGUF file"),
        (("ppl", "MODEL", "--text", "TMP/text.txt", "--device", "tpu"), "unknown device 'tpu'"),
        (("ppl", "MODEL", "--text", "TMP/text.txt", "--weights", "thin"), "unknown weights mode"),
        (("fetch", "nosuch"), "unknown name 'nosuch'"),
    ],
)
def test_errors_are_one_line_and_status_2(run, tiny_path, tmp_path, words, message):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("hello")
    status, out, err = run(*[str(tiny_path) if w == "MODEL" else w for w in words])
    assert status == 2
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("tqlab: ")
    assert message in last
    assert "Traceback" not in err


def test_python_m_tqlab_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "tqlab", "--version"], capture_output=True, text=True
    )
    assert done.stdout.startswith("tqlab 0.")
