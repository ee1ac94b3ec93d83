// y = x @ W.dequantize(w, rotated=True).T for many rows of x that are rotated already (wht32).
// Shapes: w uint8[n_out][n_in / 32 * W::BYTES], x T[n_tokens][n_in], y T[n_tokens][n_out]; any
//         n_out and n_tokens, n_in % 32 == 0; sizes = n_in, n_out, n_tokens.
// Error:  products in T, sums in float.
// Grid:   threadgroups (outputs / 64, tokens / 32), rounded up, of 128 threads.
#include "linear.h"

template <typename W, typename T>
[[kernel, max_total_threads_per_threadgroup(TILE_THREADS)]] void tq_matmul(
    device const uchar* w [[buffer(0)]], device const T* x [[buffer(1)]], device T* y [[buffer(2)]],
    constant int* sizes [[buffer(3)]], uint2 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup T weights[OUTPUTS * BLOCK], tokens[TOKENS * BLOCK];
  threadgroup float out[TOKENS * OUTPUTS];
  const tile_memory<T> memory = {weights, tokens, out};
  dense_rows rows;
  rows.first = int(group.y) * TOKENS;
  rows.count = sizes[2] - rows.first;
  tile<W, T>(w, x, y, rows, memory, int(group.x) * OUTPUTS, sizes[0], sizes[1], int(t), int(sg));
}

#define MATMUL(W, T)                                                          \
  template [[host_name("tq_matmul_" #W "_" #T)]] kernel void tq_matmul<W, T>( \
      device const uchar*, device const T*, device T*, constant int*, uint2, uint, ushort);
#define MATMUL_TYPES(W) MATMUL(W, float) MATMUL(W, half) MATMUL(W, bfloat)
MATMUL_TYPES(tq3_1s)
MATMUL_TYPES(tq4_1s)
