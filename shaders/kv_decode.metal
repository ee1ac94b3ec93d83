// out = softmax(scale * q @ K.T + mask) @ V for few queries, in two kernels: kv_attention.h.
// Shapes: part float4[B * H_kv][rows][splits][V_DIM / 4], stats float2[B * H_kv][rows][splits]
// Grid:   kv_decode: threadgroups (rows / QUERIES, splits / 4, B * H_kv) of 128 threads, a split by
//         each simdgroup; kv_reduce: 32 threads for each of B * H_kv * rows.
#include "kv_attention.h"

// sums[r] = key . queries[r]: one key a lane, its values unpacked once for all queries.
template <int QUERIES>
inline void score(device const uchar* key, threadgroup const float4* queries,
                  thread float (&sums)[QUERIES]) {
  for (int r = 0; r < QUERIES; ++r) sums[r] = 0.0f;
  for (int block = 0; block < K_DIM / K_FORMAT::BLOCK; ++block) {
    device const uchar* from = key + block * K_FORMAT::BYTES;
    const float scale = K_FORMAT::scale(from);
    for (int q = 0; q < K_FORMAT::BLOCK / 4; ++q) {
      const float4 values = K_FORMAT::quad(from, q) * scale;
      const int at = block * (K_FORMAT::BLOCK / 4) + q;
      for (int r = 0; r < QUERIES; ++r) sums[r] += dot(values, queries[r * (K_DIM / 4) + at]);
    }
  }
}

// out[r][i] += weight of key j for r * values of key j, over a step's keys; four values a lane.
template <int QUERIES, int QUADS>
inline void add_values(device const uchar* values, threadgroup const float* weights, int n_keys,
                       thread float4* out, ushort lane) {
  for (int j = 0; j < n_keys; ++j) {
    device const uchar* row = values + ulong(j) * (V_DIM / V_FORMAT::BLOCK * V_FORMAT::BYTES);
    for (int i = 0; i < QUADS; ++i) {
      const int quad = i * LANES + lane;
      if (quad >= V_DIM / 4) continue;
      device const uchar* block = row + quad / (V_FORMAT::BLOCK / 4) * V_FORMAT::BYTES;
      const float4 value =
          V_FORMAT::quad(block, quad % (V_FORMAT::BLOCK / 4)) * V_FORMAT::scale(block);
      for (int r = 0; r < QUERIES; ++r) out[r * QUADS + i] += weights[r * KEYS + j] * value;
    }
  }
}

// part, stats = unnormalised sums over one stretch of keys, their maximum score and total weight.
template <int QUERIES>
[[kernel, max_total_threads_per_threadgroup(THREADS)]] void kv_decode(
    device const float4* q [[buffer(0)]], device const uchar* k [[buffer(1)]],
    device const uchar* v [[buffer(2)]], device float4* part [[buffer(3)]],
    device float2* stats [[buffer(4)]], constant int* pads [[buffer(5)]],
    constant sizes& s [[buffer(6)]], constant float& scale [[buffer(7)]],
    uint3 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
    ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup float4 queries[QUERIES * (K_DIM / 4)];
  threadgroup float weights[SIMDGROUPS][QUERIES * KEYS];
  const int rows = s.heads * s.steps, first_row = int(group.x) * QUERIES;
  const int pad = pads[group.z / s.kv_heads];
  for (int i = t; i < QUERIES * (K_DIM / 4); i += THREADS) {
    const int row = min(first_row + i / (K_DIM / 4), rows - 1);
    queries[i] = q[row_offset(s, group.z, row) * (K_DIM / 4) + i % (K_DIM / 4)] * scale;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // This simdgroup's stretch: start .. stop of all the slots that any of its rows sees.
  const int split = int(group.y) * SIMDGROUPS + sg;
  const int end = last_slot(s, min(first_row + QUERIES, rows) - 1) + 1;
  const int begin = min(first_slot(s, first_row, pad), end);
  const int length = ((end - begin - 1) / (s.splits * KEYS) + 1) * KEYS;
  const int start = begin + split * length, stop = min(start + length, end);
  device const uchar* keys = head_of<K_FORMAT, K_DIM>(k, group.z, s.k_slots);
  device const uchar* values = head_of<V_FORMAT, V_DIM>(v, group.z, s.v_slots);
  constexpr int QUADS = (V_DIM / 4 + 31) / 32, SUMS = QUERIES * QUADS;
  float high[QUERIES], total[QUERIES], scores[QUERIES];
  float4 out[SUMS];
  for (int r = 0; r < QUERIES; ++r) {
    high[r] = HIDDEN;
    total[r] = 0.0f;
    for (int i = 0; i < QUADS; ++i) out[r * QUADS + i] = float4(0.0f);
  }
  for (int at = start; at < stop; at += KEYS) {
    const int slot = at + lane;
    score(keys + ulong(min(slot, stop - 1)) * (K_DIM / K_FORMAT::BLOCK * K_FORMAT::BYTES), queries,
          scores);
    for (int r = 0; r < QUERIES; ++r) {
      const int row = first_row + r;  // the rows past the last are not written
      const bool seen = slot < stop && slot >= first_slot(s, row, pad) && slot <= last_slot(s, row);
      const float top = max(high[r], simd_max(seen ? scores[r] : HIDDEN));
      const float weight = seen ? exp(scores[r] - top) : 0.0f, decay = exp(high[r] - top);
      high[r] = top;
      total[r] = total[r] * decay + weight;  // of this lane's keys; summed over lanes at the end
      for (int i = 0; i < QUADS; ++i) out[r * QUADS + i] *= decay;
      weights[sg][r * KEYS + lane] = weight;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    device const uchar* first = values + ulong(at) * (V_DIM / V_FORMAT::BLOCK * V_FORMAT::BYTES);
    add_values<QUERIES, QUADS>(first, weights[sg], min(KEYS, stop - at), out, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (int r = 0; r < QUERIES; ++r) {
    const float sum = simd_sum(total[r]);
    if (first_row + r >= rows) continue;
    const ulong to = (ulong(group.z) * rows + first_row + r) * s.splits + split;
    if (lane == 0) stats[to] = float2(high[r], sum);
    for (int i = 0; i < QUADS; ++i) {
      if (i * LANES + lane < V_DIM / 4)
        part[to * (V_DIM / 4) + i * LANES + lane] = out[r * QUADS + i];
    }
  }
}

// out = the stretches' sums, brought to one maximum and divided by the total weight.
kernel void kv_reduce(device const float4* part [[buffer(0)]],
                      device const float2* stats [[buffer(1)]], device float4* out [[buffer(2)]],
                      constant sizes& s [[buffer(3)]], uint i [[thread_position_in_grid]],
                      ushort lane [[thread_index_in_simdgroup]]) {
  const int rows = s.heads * s.steps;
  const ulong row = i / LANES, from = row * s.splits;
  float high = HIDDEN, total = 0.0f;
  for (int split = lane; split < s.splits; split += LANES) high = max(high, stats[from + split].x);
  high = simd_max(high);
  for (int split = lane; split < s.splits; split += LANES)
    total += stats[from + split].y * exp(stats[from + split].x - high);
  total = simd_sum(total);
  device float4* to = out + row_offset(s, uint(row / rows), int(row % rows)) * (V_DIM / 4);
  for (int quad = lane; quad < V_DIM / 4; quad += LANES) {
    float4 sum = float4(0.0f);
    for (int split = 0; split < s.splits; ++split)
      sum += part[(from + split) * (V_DIM / 4) + quad] * exp(stats[from + split].x - high);
    to[quad] = total > 0.0f ? sum / total : float4(0.0f);
  }
}

#define DECODE(N)                                                                           \
  template [[host_name("kv_decode_" #N)]] kernel void kv_decode<N>(                         \
      device const float4*, device const uchar*, device const uchar*, device float4*,       \
      device float2*, constant int*, constant sizes&, constant float&, uint3, uint, ushort, \
      ushort);
DECODE(1)
DECODE(2)
DECODE(4)
