"""Quality of KV caches as others measured it, quoted beside rows of our own sweeps.

Perplexities of different texts are never compared: what is set side by side are ratios and orders.
"""

from .errors import Row

# The fork's own llama-perplexity (commit 69d8e4be4, CPU, F16 weights, 8 chunks of 512 tokens of
# English news): K/V -> perplexity, KL in nats a token, share of same top tokens.
_FORK_SMOLLM2 = {
    ("f16", "f16"): (32.15, 0.0, 1.0),
    ("q8_0", "q8_0"): (32.13, 0.0008, 0.976),
    ("q8_0", "turbo4"): (32.52, 0.0166, 0.923),
    ("q8_0", "turbo3"): (33.10, 0.030, 0.892),
    ("q8_0", "turbo2"): (34.70, 0.083, 0.818),
    ("turbo4", "turbo4"): (35.18, 0.092, 0.830),
    ("q4_0", "q4_0"): (36.94, 0.147, 0.788),
    ("turbo3", "turbo3"): (39.66, 0.205, 0.751),
    ("turbo2", "turbo2"): (91.76, 1.06, 0.471),
}
# With turbo2 values the fork keeps q8_0 values in the first and the last two layers.
_BOUNDARY = "turbo2"
# KL of the same format on K and V, and its stored bits: what was measured, on what, by whom.
_SYMMETRIC = (
    ("SmolLM2-135M, news", "quoted: the fork's program", "q4_0", 4.5, 0.147),
    ("SmolLM2-135M, news", "quoted: the fork's program", "turbo4", 8.5, 0.092),
    ("gemma-3-270m, news", "quoted: the fork's program", "q4_0", 4.5, 0.122),
    ("gemma-3-270m, news", "quoted: the fork's program", "turbo4", 4.25, 0.169),
    ("Qwen3.5-35B-A3B, wikitext-2", "quoted: turboquant_plus", "q4_0", 4.5, 0.008091),
    ("Qwen3.5-35B-A3B, wikitext-2", "quoted: turboquant_plus", "turbo4", 4.25, 0.009633),
)


def beside_fork(rows: list[Row]) -> list[Row]:
    """Rows of a SmolLM2 sweep that the fork measured too, in our order of KL, worst last.

    Row: the sweep's, and quoted_kld, quoted_same_top, rank and quoted_rank (of KL, 1 is best),
    times (KL here over KL quoted), ppl_ratio and quoted_ppl_ratio (over f16/f16), remark.
    Raises: ValueError without the f16/f16 row.
    """
    base = next((r for r in rows if (r["k"], r["v"]) == ("f16", "f16")), None)
    if base is None:
        raise ValueError("ratios of perplexity need the f16/f16 row of the sweep")
    shared = [r for r in rows if (r["k"], r["v"]) in _FORK_SMOLLM2 and r is not base]
    shared = [r | _beside(r, base) for r in sorted(shared, key=lambda r: r["kld_mean"])]
    theirs = sorted(r["quoted_kld"] for r in shared)
    return [
        r | {"rank": i, "quoted_rank": 1 + theirs.index(r["quoted_kld"])}
        for i, r in enumerate(shared, 1)
    ]


def _beside(row: Row, base: Row) -> Row:
    ppl, kld, same = _FORK_SMOLLM2[row["k"], row["v"]]
    return {
        "pair": f"{row['k']}/{row['v']}",
        "quoted_kld": kld,
        "quoted_same_top": same,
        "times": row["kld_mean"] / kld,
        "ppl_ratio": row["ppl"] / base["ppl"],
        "quoted_ppl_ratio": ppl / _FORK_SMOLLM2["f16", "f16"][0],
        "remark": "q8_0 V in four layers there" if row["v"] == _BOUNDARY else "",
    }


def symmetric_rows(rows: list[Row], names=("q4_0", "turbo4", "turbo4_lm")) -> list[Row]:
    """KL of one format on both K and V: ours first, model by model, then quoted from elsewhere.

    Row: data (model and text), format, bits, kld_mean, kld_se (None where none is quoted), source.
    """
    ours = [r for r in rows if r["k"] == r["v"] and r["k"] in names]
    models = [r["model_file"] for r in rows]
    ours.sort(key=lambda r: (models.index(r["model_file"]), names.index(r["k"])))
    keys = ("data", "source", "format", "bits", "kld_mean")
    quoted = [dict(zip(keys, row, strict=True)) for row in _SYMMETRIC if row[2] in names]
    return [_own(r) for r in ours] + [row | {"kld_se": None} for row in quoted]


def _own(row: Row) -> Row:
    model = row["model_file"].removesuffix(".gguf").split("-Instruct")[0]
    data = f"{model}, {row['text']}"
    own = {"data": data, "source": "here", "format": row["k"]}
    return own | {key: row[key] for key in ("bits", "kld_mean", "kld_se")}
