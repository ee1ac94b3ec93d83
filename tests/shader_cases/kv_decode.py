"""kv_decode.metal: 1 to 4 tokens, few and many rows, stretches with and without keys."""

import torch

from . import DTYPES, case
from .attention import GOLDEN, PAIRS, Setting, attends, golden

f32 = torch.float32
MAIN = ("turbo3", "turbo3", 128, f32)

CASES = [
    # 300 keys: five stretches of two steps each; 9 rows: three threadgroups, the last one short.
    case(attends, *MAIN, Setting(3, 300, kv_heads=1, group=3, spare=3)),
    case(attends, *MAIN, Setting(1, 33, group=1, batch=2)),
    case(attends, *MAIN, Setting(1, 1, group=2)),
    case(attends, *MAIN, Setting(1, 250, kv_heads=1, group=1)),  # keys in every stretch
    case(attends, *MAIN, Setting(1, 2100, kv_heads=1, group=1)),  # 36 stretches: over 32 lanes
    case(attends, *MAIN, Setting(1, 200, kv_heads=1, group=1, peak=True)),
    case(attends, *MAIN, Setting(3, 70, batch=2, window=9, pads=(3, 69))),
    case(attends, *MAIN, Setting(2, 70, batch=2, window=40, spare=5)),
    case(attends, *MAIN, Setting(4, 40, batch=3, pads=(0, 38, 40))),
    *(case(attends, *MAIN[:3], dtype, Setting(2, 40)) for dtype in DTYPES[1:]),
    *(case(attends, k, v, d, f32, Setting(1, 37, spare=2)) for k, v, d in PAIRS),
    *(case(golden, pair) for pair in GOLDEN),
]
