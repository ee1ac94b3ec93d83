"""From sampled stories to token ids: deduplicated, split, spelled by a small BPE vocabulary."""

import json
import random
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tqlab import chat
from tqlab.tokenizer.vocabulary import SPACE

N_VOCAB = 3072
HELD_OUT = 280_000  # characters of the held-out text
TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text()
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|think|>"]
VISIBLE = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"]
VISIBLE += ["<|tool_response>", "<tool_response|>", '<|"|>']
_MARK = "REQUEST"  # rendering a template compiles it: once, not for every story
_ASKED = chat.render(TEMPLATE, [{"role": "user", "content": _MARK}], bos_token="<bos>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def read(paths: list[Path]) -> list[dict]:
    """The stories of JSON Lines files, each once."""
    rows = (json.loads(line) for path in paths for line in path.open())
    return list({row["story"].lower(): row for row in rows}.values())


def split(rows: list[dict], start: int) -> tuple[list[dict], str]:
    """Shuffled rows to train on, and a text of stories that are in none of them."""
    rows = rows[:]
    random.Random(start).shuffle(rows)
    held, size = [], 0
    while size + len(rows[-1]["story"]) + 2 < min(HELD_OUT, len(rows) * 20):
        held.append(rows.pop()["story"])
        size += len(held[-1]) + 2
    return rows, "\n\n".join(held) + "\n"


def vocabulary(texts: list[str]) -> Tokenizer:
    """A byte-fallback BPE trained on `texts`, laid out as Gemma 4's: no piece crosses a space."""
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    words = pre_tokenizers.Split(SPACE, "merged_with_next")
    marks = pre_tokenizers.Split(Regex(r"[^\p{L}\u2581]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, marks])
    special = [*CONTROL, *VISIBLE, *BYTES]
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=special, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def spell(tokenizer: Tokenizer, rows: list[dict], start: int) -> np.ndarray:
    """All rows as one stream of ids: half as plain text, half as answers in the chat format.

    Plain text comes in runs of stories with blank lines between; every run and chat begins with
    <bos>. Shape: uint16 [n].
    """
    source, texts, run = random.Random(start), [], []
    for row in rows:
        if source.random() < 0.5:
            texts.append(_chat(row))
            continue
        run.append(row["story"])
        if source.random() < 0.2:
            texts.append("<bos>" + "\n\n".join(run) + "<eos>")
            run = []
    source.shuffle(texts)
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return np.concatenate([np.array(e.ids, np.uint16) for e in encoded])


def _chat(row: dict) -> str:
    return _ASKED.replace(_MARK, row["request"]) + row["story"] + "<turn|>\n"
