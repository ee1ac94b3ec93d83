// out = softmax(scale * q @ K.T + mask) @ V for many queries: kv_attention.h.
// Shapes: y float4[B][H][T][V_DIM / 4]
// Grid:   threadgroups (rows / QUERIES, B * H_kv) of 128 threads; a tile is QUERIES rows x 32 keys.
#include "kv_attention.h"
#include <metal_simdgroup_matrix>

constant constexpr int DIM = K_DIM > V_DIM ? K_DIM : V_DIM;
constant constexpr int QUERIES = DIM <= 128 ? 32 : DIM <= 256 ? 16 : 8;
constant constexpr int BANDS = QUERIES / 8;  // bands of eight queries
constant constexpr int K_PART = K_DIM % 64 ? 32 : 64, V_PART = V_DIM % 64 ? 32 : 64;
constant constexpr int COLUMNS = V_PART / 32;  // 8x8 matrices a simdgroup owns of a part of V

// 17 to 29 KiB: one array each, so that an overrun is seen.
constant constexpr int PART = K_PART > V_PART ? K_PART : V_PART;
struct tile_memory {
  threadgroup float4* queries;  // [QUERIES * DIM / 4]; at the end the output
  threadgroup float4* part;     // [KEYS * PART / 4]: a part of 32 keys, or of their values
  threadgroup float* scores;    // [QUERIES * KEYS]
  threadgroup float* decay;     // [BANDS * 64]: one diagonal matrix a band
};

// Values WIDTH * part .. of 32 keys from slot `at` on, float[KEYS][WIDTH]; at the end the last again.
template <typename F, int SIZE, int WIDTH>
inline void load_part(device const uchar* rows, threadgroup float4* to, int at, int stop, int part,
                      int t) {
  for (int i = t; i < KEYS * WIDTH / 4; i += THREADS) {
    const int quad = part * (WIDTH / 4) + i % (WIDTH / 4);
    device const uchar* row =
        rows + ulong(min(at + i / (WIDTH / 4), stop - 1)) * (SIZE / F::BLOCK * F::BYTES);
    device const uchar* block = row + quad / (F::BLOCK / 4) * F::BYTES;
    to[i] = F::quad(block, quad % (F::BLOCK / 4)) * F::scale(block);
  }
}

// scores = queries . keys^T; a simdgroup computes eight keys' columns.
inline void multiply_keys(device const uchar* keys, thread const tile_memory& m, int at, int stop,
                          int t, int sg) {
  simdgroup_float8x8 sums[BANDS], left, right;
  for (int i = 0; i < BANDS; ++i) sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (int part = 0; part < K_DIM / K_PART; ++part) {
    load_part<K_FORMAT, K_DIM, K_PART>(keys, m.part, at, stop, part, t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int d = 0; d < K_PART; d += 8) {
      simdgroup_load(right, (threadgroup const float*)m.part + 8 * sg * K_PART + d, K_PART,
                     ulong2(0, 0), true);
      for (int i = 0; i < BANDS; ++i) {
        simdgroup_load(
            left, (threadgroup const float*)m.queries + 8 * i * K_DIM + part * K_PART + d, K_DIM);
        simdgroup_multiply_accumulate(sums[i], left, right, sums[i]);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (int i = 0; i < BANDS; ++i) simdgroup_store(sums[i], m.scores + 8 * i * KEYS + 8 * sg, KEYS);
}

// Scores become weights, row by row; a simdgroup has QUERIES / 4 of them, a lane is a key.
constant constexpr int OWN = QUERIES / SIMDGROUPS;
inline void weigh(constant sizes& s, thread const tile_memory& m, thread float (&high)[OWN],
                  thread float (&total)[OWN], int first_row, int slot, int pad, int sg, int lane) {
  for (int i = 0; i < OWN; ++i) {
    const int r = sg * OWN + i, row = first_row + r;  // rows past the last are not written
    const float value = m.scores[r * KEYS + lane];
    const bool seen = slot >= first_slot(s, row, pad) && slot <= last_slot(s, row);
    const float top = max(high[i], simd_max(seen ? value : HIDDEN));
    const float weight = seen ? exp(value - top) : 0.0f, decay = exp(high[i] - top);
    high[i] = top;
    total[i] = total[i] * decay + weight;
    m.scores[r * KEYS + lane] = weight;
    if (lane == 0) m.decay[r / 8 * 64 + r % 8 * 9] = decay;
  }
}

// out = decay * out + weights . values; a simdgroup owns a quarter of every part's columns.
inline void multiply_values(device const uchar* values, thread const tile_memory& m,
                            thread simdgroup_float8x8 (&out)[V_DIM / V_PART][BANDS][COLUMNS],
                            int at, int stop, int t, int sg) {
  simdgroup_float8x8 left, right;
  for (int part = 0; part < V_DIM / V_PART; ++part) {
    load_part<V_FORMAT, V_DIM, V_PART>(values, m.part, at, stop, part, t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup const float* from = (threadgroup const float*)m.part + sg * (V_PART / SIMDGROUPS);
    for (int i = 0; i < BANDS; ++i) {
      simdgroup_load(left, m.decay + 64 * i, 8);
      for (int c = 0; c < COLUMNS; ++c) simdgroup_multiply(out[part][i][c], left, out[part][i][c]);
    }
    for (int key = 0; key < KEYS; key += 8) {
      for (int c = 0; c < COLUMNS; ++c) {
        simdgroup_load(right, from + key * V_PART + 8 * c, V_PART);
        for (int i = 0; i < BANDS; ++i) {
          simdgroup_load(left, m.scores + 8 * i * KEYS + key, KEYS);
          simdgroup_multiply_accumulate(out[part][i][c], left, right, out[part][i][c]);
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void kv_prefill(
    device const float4* q [[buffer(0)]], device const uchar* k [[buffer(1)]],
    device const uchar* v [[buffer(2)]], device float4* y [[buffer(3)]],
    constant int* pads [[buffer(4)]], constant sizes& s [[buffer(5)]],
    constant float& scale [[buffer(6)]], uint2 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]],
    ushort sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup float4 queries[QUERIES * DIM / 4], part[KEYS * PART / 4];
  threadgroup float scores[QUERIES * KEYS], decay[BANDS * 64], inverse[QUERIES];
  const tile_memory m = {queries, part, scores, decay};
  const int rows = s.heads * s.steps, first_row = int(group.x) * QUERIES;
  const int pad = pads[group.y / s.kv_heads];
  for (int i = t; i < QUERIES * (K_DIM / 4); i += THREADS) {
    const int row = min(first_row + i / (K_DIM / 4), rows - 1);
    queries[i] = q[row_offset(s, group.y, row) * (K_DIM / 4) + i % (K_DIM / 4)] * scale;
  }
  for (int i = t; i < BANDS * 64; i += THREADS) decay[i] = 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);

  device const uchar* keys = head_of<K_FORMAT, K_DIM>(k, group.y, s.k_slots);
  device const uchar* values = head_of<V_FORMAT, V_DIM>(v, group.y, s.v_slots);
  simdgroup_float8x8 out[V_DIM / V_PART][BANDS][COLUMNS];
  for (int p = 0; p < V_DIM / V_PART; ++p) {
    for (int i = 0; i < BANDS; ++i) {
      for (int c = 0; c < COLUMNS; ++c)
        out[p][i][c] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }
  float high[OWN], total[OWN];
  for (int i = 0; i < OWN; ++i) {
    high[i] = HIDDEN;
    total[i] = 0.0f;
  }
  const int stop = last_slot(s, min(first_row + QUERIES, rows) - 1) + 1;
  for (int at = first_slot(s, first_row, pad); at < stop; at += KEYS) {
    multiply_keys(keys, m, at, stop, t, sg);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    weigh(s, m, high, total, first_row, at + lane, pad, sg, lane);
    multiply_values(values, m, out, at, stop, t, sg);
  }

  threadgroup float* staged = (threadgroup float*)queries;
  for (int p = 0; p < V_DIM / V_PART; ++p) {
    for (int i = 0; i < BANDS; ++i) {
      for (int c = 0; c < COLUMNS; ++c) {
        const int column = p * V_PART + sg * (V_PART / SIMDGROUPS) + 8 * c;
        simdgroup_store(out[p][i][c], staged + 8 * i * V_DIM + column, V_DIM);
      }
    }
  }
  for (int i = 0; i < OWN; ++i) {
    const float sum = simd_sum(total[i]);
    if (lane == 0) inverse[sg * OWN + i] = sum > 0.0f ? 1.0f / sum : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = t; i < QUERIES * (V_DIM / 4); i += THREADS) {
    const int row = first_row + i / (V_DIM / 4);
    if (row >= rows) continue;
    y[row_offset(s, group.y, row) * (V_DIM / 4) + i % (V_DIM / 4)] =
        queries[i] * inverse[row - first_row];
  }
}
