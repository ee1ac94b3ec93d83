"""Tables: aligned text, escaped HTML, and every source named."""

from tqlab import tables

ROW = {
    "model": "m",
    "text": "t",
    "text_sha256": "0123456789abcdef",
    "text_python": "3.11.7",
    "ctx": 512,
    "chunks": 8,
    "k": "q8_0",
    "v": "turbo4",
    "k_bits": 8.5,
    "v_bits": 8.5,
    "cache_nbytes": 6266880,
    "ppl": 13.104,
    "ppl_se": 0.787,
    "kld_mean": 0.01253,
    "kld_se": 0.00041,
    "same_top": 0.944,
    "dp_rms": 0.031,
    "seconds": 17.9,
}


def test_columns_line_up_and_html_is_escaped():
    table = tables.Table([{"a": 1.5, "b": "<x>"}, {"a": 10.25, "b": None}])
    assert repr(table).splitlines() == ["    a  b", "  1.5  <x>", "10.25  –"]
    assert "&lt;x&gt;" in table._repr_html_()
    assert "<x>" not in table._repr_html_()


def test_sweep_cells():
    line = repr(tables.sweep_table([ROW])).splitlines()[1]
    for cell in (
        "q8_0 / turbo4",
        "8.5",
        "6.27",
        "13.104 ± 0.787",
        "0.0125 ± 0.0004",
        "94.4 %",
        "17.9",
    ):
        assert cell in line


def test_small_divergences_keep_their_digits():
    line = repr(tables.sweep_table([ROW | {"kld_mean": 0.000523, "kld_se": 0.000025}]))
    assert "0.00052 ± 0.00003" in line


def test_missing_reference_is_a_dash():
    line = repr(tables.sweep_table([ROW | {"kld_mean": None, "same_top": None, "dp_rms": None}]))
    assert line.splitlines()[1].count("–") == 3


def test_notes_name_every_text_once():
    notes = tables.sweep_notes([ROW, ROW, ROW | {"text": "u"}])
    assert notes.count("m on t of Python 3.11.7 (sha256 0123456789ab)") == 1
    assert notes.count("m on u") == 1
