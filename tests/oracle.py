"""Scalar quantisers written from the format descriptions alone: an oracle for tqlab.formats.

One block at a time, one number at a time, in float32; nothing here imports tqlab.
"""

import numpy as np

F = np.float32
TINY = F(1e-10)

# Signs as they are written out in the description, 32 to a line.
S1 = """
-++--+-+--+++++++-+-+--+++-++--- -++-++-+-++--+-++++-----+-++++-+
--+---+---+---+++--+++--++-++-+- -++-+-+-++++-+-++-++-----++-++-+
"""
S2 = """
++++-++-+---+---++--+-+-+--+-+++ ++---+------+++-+-+++--+------++
+-+----+-+-+--++-+-++-+----+--+- +-+++--+-+-++--+-+-++-+-+-----+-
"""
T = "+-+-++-+--+-++-+--+-+--+-++-+--+"


def signs(text):
    return [F(1 if c == "+" else -1) for c in text if c in "+-"]


def mirrored(*half):
    return [F(-v) for v in reversed(half)] + [F(v) for v in half]


def with_zero(*half):
    return [F(-v) for v in reversed(half)] + [F(0)] + [F(v) for v in half]


# name -> (bits, centroids, thresholds), unit-norm vectors of 128 values
TURBO = {
    "turbo2": (2, mirrored(0.039994, 0.133462), with_zero(0.086728)),
    "turbo3": (
        3,
        mirrored(0.021460, 0.065717, 0.117832, 0.190685),
        with_zero(0.043589, 0.091775, 0.154259),
    ),
    "turbo4": (
        4,
        mirrored(0.006938, 0.020989, 0.035597, 0.051262, 0.068756, 0.089527, 0.117195, 0.173926),
        with_zero(0.013963, 0.028293, 0.043430, 0.060009, 0.079142, 0.103361, 0.145560),
    ),
}
# Blocks of 64 take the same codes: their unit vectors are shrunk by sqrt(64 / 128) first.
TURBO |= {f"{name}_h64": TURBO[name] for name in ("turbo2", "turbo3")}
# name -> (bits, centroids, thresholds), unit variance
TQ = {
    "tq4_1s": (
        4,
        mirrored(
            0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590
        ),
        with_zero(0.258222, 0.522404, 0.799550, 1.099286, 1.437139, 1.843532, 2.400804),
    ),
    "tq3_1s": (
        3,
        [
            F(v)
            for v in (
                -1.996684, -1.291398, -0.740341, -0.247508,
                0.230106, 0.725222, 1.277503, 1.988943,
            )
        ],
        [F(v) for v in (-1.644041, -1.015870, -0.493925, -0.008701, 0.477664, 1.001363, 1.633223)],
    ),
}  # fmt: skip


def hadamard(values):
    v, h = list(values), 1
    while h < len(v):
        for j in range(len(v)):
            if not j & h:
                v[j], v[j + h] = v[j] + v[j + h], v[j] - v[j + h]
        h *= 2
    return v


def rotate_kv(x):
    """64 or 128 values; 64 take the first signs."""
    c = F(1 / np.sqrt(len(x)))
    mixed = hadamard([s * F(v) for s, v in zip(signs(S1), x, strict=False)])
    return [v * (c * s) for v, s in zip(mixed, signs(S2), strict=False)]


def rotate32(x):
    mixed = hadamard([t * F(v) for t, v in zip(signs(T), x, strict=True)])
    return [v * F(0.17677669529663688) for v in mixed]


def unrotate(y, before, after, scale):
    """The inverse in float64, to be compared with a tolerance."""
    mixed = hadamard([float(v) * float(s) for v, s in zip(y, after, strict=True)])
    return [scale * v * float(s) for v, s in zip(mixed, before, strict=True)]


def bucket(value, thresholds):
    return sum(1 for t in thresholds if t <= value)


def total(values):
    acc = F(0)
    for v in values:
        acc = F(acc + v)
    return acc


def half(value) -> bytes:
    return np.float16(value).tobytes()


def stream(indices, bits) -> bytes:
    """Little-endian bit stream: index j at bit j * bits."""
    whole = sum(int(v) << (j * bits) for j, v in enumerate(indices))
    return whole.to_bytes(len(indices) * bits // 8, "little")


def unstream(data, bits) -> list[int]:
    whole = int.from_bytes(bytes(data), "little")
    return [(whole >> (j * bits)) & ((1 << bits) - 1) for j in range(8 * len(data) // bits)]


def turbo_block(x, name) -> bytes:
    bits, table, thresholds = TURBO[name]
    n = np.sqrt(total(v * v for v in x))
    inv = F(1) / n if n > TINY else F(0)
    inv = inv * F(np.sqrt(len(x) / 128))
    index = [bucket(r, thresholds) for r in rotate_kv([v * inv for v in x])]
    rec = np.sqrt(total(table[k] * table[k] for k in index))
    head = half(n / rec if rec > TINY else n)
    if bits == 3:
        return head + stream([k & 3 for k in index], 2) + stream([k >> 2 for k in index], 1)
    return head + (b"\0\0" if bits == 4 else b"") + stream(index, bits)


def turbo_codes(block, name) -> tuple[float, list[int]]:
    """(norm, indices) of one packed block."""
    bits = TURBO[name][0]
    norm = float(np.frombuffer(bytes(block[:2]), np.float16)[0])
    if bits == 3:
        end = 2 + (len(block) - 2) // 3 * 2
        low, high = unstream(block[2:end], 2), unstream(block[end:], 1)
        return norm, [a | b << 2 for a, b in zip(low, high, strict=True)]
    return norm, unstream(block[4 if bits == 4 else 2 :], bits)


def tq_block(x, name) -> bytes:
    bits, table, thresholds = TQ[name]
    r = rotate32(x)
    halves = [r[:16], r[16:]]

    def indices(values, d):
        inv = F(1) / d if d > TINY else F(0)
        return [bucket(v * inv, thresholds) for v in values]

    rms = [np.sqrt(total(v * v for v in part) / F(16)) for part in halves]
    best, least = list(rms), F(1e30)
    for factor in (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5):
        ds = [v * F(factor) for v in rms]
        errors = []
        for part, d in zip(halves, ds, strict=True):
            for v, k in zip(part, indices(part, d), strict=True):
                e = v - table[k] * d
                errors.append(e * e)
        if (error := total(errors)) < least:
            least, best = error, ds
    for _ in range(6):
        for h, part in enumerate(halves):
            c = [table[k] for k in indices(part, best[h])]
            num = total(v * w for v, w in zip(part, c, strict=True))
            den = total(w * w for w in c)
            if den > TINY:
                best[h] = num / den
    index = [k for h, part in enumerate(halves) for k in indices(part, best[h])]
    return half(best[0]) + half(best[1]) + stream(index, bits)


def tq_codes(block, name) -> tuple[list[float], list[int]]:
    """([d0, d1], indices) of one packed block."""
    scales = np.frombuffer(bytes(block[:4]), np.float16).astype(float).tolist()
    return scales, unstream(block[4:], TQ[name][0])


def q8_0_block(x) -> bytes:
    d = max(abs(v) for v in x) / F(127)
    inv = F(1) / d if d else F(0)

    def away(v):  # C's roundf, exact: the fraction is taken before comparing with one half
        whole = np.trunc(v)
        return int(whole) + int(np.copysign(1, v)) * bool(abs(v - whole) >= F(0.5))

    return half(d) + bytes(away(v * inv) & 255 for v in x)


def q4_0_block(x) -> bytes:
    m = F(0)
    for v in x:
        if abs(v) > abs(m):
            m = v
    d = m / F(-8)
    inv = F(1) / d if d else F(0)
    q = [min(15, int(v * inv + F(8.5))) for v in x]
    return half(d) + bytes(q[j] | q[j + 16] << 4 for j in range(16))


def block(x, name) -> bytes:
    """The packed bytes of one block of float32 values in format `name`."""
    with np.errstate(all="ignore"):
        if name in TURBO:
            return turbo_block(x, name)
        if name in TQ:
            return tq_block(x, name)
        return {"q8_0": q8_0_block, "q4_0": q4_0_block}[name](x)
