// y[p] = x[p / share] @ W.dequantize(w[expert of p], rotated=True).T, p = token * top_k + slot.
// Shapes: w uint8[n_experts][n_out][n_in / 32 * W::BYTES]; x T[n_pairs / share][n_in], rotated
//         already (wht32); y T[n_pairs][n_out]; any experts, slots and rows; n_in % 32 == 0.
// Grid:   tq_moe_matvec (few tokens): 32 threads for every four rows of w, times n_pairs.
//         tq_moe_matmul (many): threadgroups (outputs / 64 rounded up, n_tiles) of 128 threads.
#include "linear.h"

// experts int[n_pairs]; sizes = n_in, n_out, n_experts, share. A pair whose expert does not exist
// gets NaN: seen at once, and no memory of others is read.
template <typename W, typename T>
kernel void tq_moe_matvec(device const uchar* w [[buffer(0)]], device const T* x [[buffer(1)]],
                          device T* y [[buffer(2)]], device const int* experts [[buffer(3)]],
                          constant int* sizes [[buffer(4)]], uint2 i [[thread_position_in_grid]],
                          ushort lane [[thread_index_in_simdgroup]]) {
  const int n_in = sizes[0], n_out = sizes[1];
  const int first = int(i.x / LANES) * ROWS, expert = experts[i.y];
  device T* to = y + ulong(i.y) * n_out;
  if (expert < 0 || expert >= sizes[2]) {
    if (lane < ROWS && first + lane < n_out) to[first + lane] = T(NAN);
    return;
  }
  device const uchar* from = w + ulong(expert) * n_out * (n_in / BLOCK * W::BYTES);
  few_columns<W, T, 1>(from, x + ulong(i.y / sizes[3]) * n_in, to, first, n_in, n_out, 1, lane);
}

// pairs int[n_pairs], sorted by expert; tiles int[n_tiles][3]: expert, first place in pairs, count
// (1 to 32); sizes = n_in, n_out, n_experts, share. Expert n_experts: NaN, for 0 to 32 pairs.
template <typename W, typename T>
[[kernel, max_total_threads_per_threadgroup(TILE_THREADS)]] void tq_moe_matmul(
    device const uchar* w [[buffer(0)]], device const T* x [[buffer(1)]], device T* y [[buffer(2)]],
    device const int* pairs [[buffer(3)]], device const int* tiles [[buffer(4)]],
    constant int* sizes [[buffer(5)]], uint2 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup T weights[OUTPUTS * BLOCK], tokens[TOKENS * BLOCK];
  threadgroup float out[TOKENS * OUTPUTS];
  const tile_memory<T> memory = {weights, tokens, out};
  const int n_in = sizes[0], n_out = sizes[1], expert = tiles[3 * group.y];
  routed_rows rows;
  rows.pairs = pairs;
  rows.first = tiles[3 * group.y + 1];
  rows.count = tiles[3 * group.y + 2];
  rows.share = sizes[3];
  if (expert == sizes[2]) {
    for (int i = t; i < rows.count * OUTPUTS; i += TILE_THREADS) {
      const int column = int(group.x) * OUTPUTS + i % OUTPUTS;
      if (column < n_out) y[ulong(rows.y_row(i / OUTPUTS)) * n_out + column] = T(NAN);
    }
    return;
  }
  device const uchar* from = w + ulong(expert) * n_out * (n_in / BLOCK * W::BYTES);
  tile<W, T>(from, x, y, rows, memory, int(group.x) * OUTPUTS, n_in, n_out, int(t), int(sg));
}

#define MOE(W, T)                                                                               \
  template [[host_name("tq_moe_matvec_" #W "_" #T)]] kernel void tq_moe_matvec<W, T>(           \
      device const uchar*, device const T*, device T*, device const int*, constant int*, uint2, \
      ushort);                                                                                  \
  template [[host_name("tq_moe_matmul_" #W "_" #T)]] kernel void tq_moe_matmul<W, T>(           \
      device const uchar*, device const T*, device T*, device const int*, device const int*,    \
      constant int*, uint2, uint, ushort);
#define MOE_TYPES(W) MOE(W, float) MOE(W, half) MOE(W, bfloat)
MOE_TYPES(tq3_1s)
MOE_TYPES(tq4_1s)
