// Attention over packed K and V: what few queries (kv_decode) and many (kv_prefill) share.
//
// out = softmax(scale * q @ K.T + mask) @ V, K and V never unpacked as a whole. Rotated formats
// stay in the rotated domain: q comes rotated when K is, out is left rotated when V is.
// Shapes: q float[B][H][T][K_DIM], out float[B][H][T][V_DIM], k and v uchar[B][H_kv][slots][bytes
//         of a head]; any B and T <= n <= slots, H = H_kv * heads; K_DIM, V_DIM multiples of 32
//         (turbo: of 128) up to 512.
// Mask:   query t sits in slot n - T + t; it sees no later slot, `window` slots with its own, none
//         before pads[b]. One that sees nothing gets zeros.
// Rows:   a KV head has heads * T queries; row r is token r / heads of head r % heads, so that the
//         heads of a group share what is unpacked.
//
// The pair of formats and the head sizes are #defines in front of the source: 36 pairs times four
// sizes are not compiled, the one in use is.
#ifndef K_FORMAT
#define K_FORMAT turbo3
#define V_FORMAT turbo4
#define K_DIM 128
#define V_DIM 128
#endif
#include "blocks.h"

constant constexpr int THREADS = 128, SIMDGROUPS = 4;
constant constexpr int KEYS = 32;          // keys at once: one a lane
constant constexpr float HIDDEN = -1e30f;  // finite, so that exp(HIDDEN - HIDDEN) is not NaN

struct sizes {
  int kv_heads, heads;   // heads: query heads a KV head
  int steps, n;          // T, and the slots in use
  int k_slots, v_slots;  // slots there are
  int window, splits;
};

// ---- which rows and slots -----------------------------------------------------------------------
template <typename F, int DIM>
inline device const uchar* head_of(device const uchar* data, uint head, int slots) {
  return data + ulong(head) * slots * (DIM / F::BLOCK * F::BYTES);
}
// Row r of KV head `kv` of all: where its values start in q and out, divided by the head size.
inline ulong row_offset(constant sizes& s, uint kv, int r) {
  const uint b = kv / s.kv_heads, head = kv % s.kv_heads * s.heads + r % s.heads;
  return (ulong(b) * s.kv_heads * s.heads + head) * s.steps + r / s.heads;
}
// The slots row r sees: first .. last.
inline int last_slot(constant sizes& s, int r) { return s.n - s.steps + r / s.heads; }
inline int first_slot(constant sizes& s, int r, int pad) {
  return max(pad, last_slot(s, r) - s.window + 1);
}
