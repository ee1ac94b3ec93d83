"""kv_prefill.metal: tiles of queries and keys, with edges, windows, padding and grouped heads."""

import torch

from . import DTYPES, case
from .attention import GOLDEN, PAIRS, Setting, attends, decode_steps, golden

f32 = torch.float32
MAIN = ("turbo3", "turbo3", 128, f32)


def golden_by_tiles(pair: str) -> None:
    with decode_steps(0):
        golden(pair)


CASES = [
    # 51 rows: two tiles of queries, the last one short; 70 keys: three tiles.
    case(attends, *MAIN, Setting(17, 70, kv_heads=1, group=3, spare=3)),
    case(attends, *MAIN, Setting(5, 5, kv_heads=3, group=1)),
    # A window that skips whole tiles, and a row whose padding hides every key of some queries.
    case(attends, *MAIN, Setting(20, 70, kv_heads=1, batch=2, window=9, pads=(0, 65))),
    case(attends, *MAIN, Setting(33, 34, kv_heads=1, group=1, pads=(34,))),
    case(attends, *MAIN, Setting(9, 70, kv_heads=1, group=1, peak=True)),
    *(case(attends, *MAIN[:3], dtype, Setting(9, 20, kv_heads=1)) for dtype in DTYPES[1:]),
    *(case(attends, k, v, d, f32, Setting(7, 37, kv_heads=1, spare=2)) for k, v, d in PAIRS),
    *(case(golden_by_tiles, pair) for pair in GOLDEN),
]
