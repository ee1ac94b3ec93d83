// Products with packed TQ rows, by one simdgroup or one threadgroup, with and without experts.
// The activations are in the rotated domain already: a weight is table value * scale, no more.
#include "blocks.h"
#include <metal_simdgroup_matrix>

constant constexpr int BLOCK = 32;  // weights a block
constant constexpr int CHUNK = 8;   // weights a lane reads at once

// ---- rows of a matrix times a few columns -------------------------------------------------------
constant constexpr int ROWS = 4;  // output rows a simdgroup

// y[c][first + r] = w[first + r] . x[c] by one simdgroup, every lane active: chunks over lanes, and
// exactly one reduction an output. Beyond the last row or column the last one is read, and dropped.
template <typename W, typename T, int COLS>
inline void few_columns(device const uchar* w, device const T* x, device T* y, int first, int n_in,
                        int n_out, int n_cols, ushort lane) {
  const ulong row_bytes = ulong(n_in / BLOCK) * W::BYTES;
  float sums[ROWS][COLS];
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < COLS; ++c) sums[r][c] = 0.0f;
  }
  for (int chunk = lane; chunk < n_in / CHUNK; chunk += LANES) {
    float4 low[COLS], high[COLS];
    for (int c = 0; c < COLS; ++c) {
      device const T* from = x + ulong(min(c, n_cols - 1)) * n_in + chunk * CHUNK;
      low[c] = load4(from);
      high[c] = load4(from + 4);
    }
    for (int r = 0; r < ROWS; ++r) {
      device const uchar* block = w + min(first + r, n_out - 1) * row_bytes + chunk / 4 * W::BYTES;
      const uint codes = W::codes(block, chunk & 3);
      const float scale = W::scale(block, chunk & 3);
      const float4 left = W::values(codes), right = W::values(codes >> 4 * W::BITS);
      for (int c = 0; c < COLS; ++c)
        sums[r][c] += scale * (dot(left, low[c]) + dot(right, high[c]));
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < COLS; ++c) {
      // The total reaches every lane: summing again would give 32 times it.
      const float total = simd_sum(sums[r][c]);
      if (lane == 0 && first + r < n_out && c < n_cols) y[ulong(c) * n_out + first + r] = T(total);
    }
  }
}

// ---- a tile of TOKENS x OUTPUTS by one threadgroup of four simdgroups ---------------------------
constant constexpr int TOKENS = 32, OUTPUTS = 64, TILE_THREADS = 128;

// Which row of x and of y the i-th token of a tile is.
struct dense_rows {
  int first, count;
  int x_row(int i) const { return first + i; }
  int y_row(int i) const { return first + i; }
};
struct routed_rows {
  device const int* pairs;  // token * top_k + slot, sorted by expert
  int first, count, share;  // share: slots that read the same row of x
  int x_row(int i) const { return pairs[first + i] / share; }
  int y_row(int i) const { return pairs[first + i]; }
};

// One block of each weight row and of each token, unpacked: [OUTPUTS][BLOCK] and [TOKENS][BLOCK].
template <typename W, typename T, typename Rows>
inline void load_tile(device const uchar* w, device const T* x, thread const Rows& rows,
                      threadgroup T* weights, threadgroup T* tokens, int first_out, int at,
                      int n_in, int n_out, int t) {
  const ulong row_bytes = ulong(n_in / BLOCK) * W::BYTES;
  for (int c = t; c < OUTPUTS * BLOCK / CHUNK; c += TILE_THREADS) {
    const int row = min(first_out + c / 4, n_out - 1);
    device const uchar* block = w + row * row_bytes + at / BLOCK * W::BYTES;
    const uint codes = W::codes(block, c & 3);
    const float scale = W::scale(block, c & 3);
    const float4 low = W::values(codes) * scale, high = W::values(codes >> 4 * W::BITS) * scale;
    for (int i = 0; i < 4; ++i) {
      weights[c * CHUNK + i] = T(low[i]);
      weights[c * CHUNK + 4 + i] = T(high[i]);
    }
  }
  device const T* from =
      x + ulong(rows.x_row(min(t / 4, rows.count - 1))) * n_in + at + t % 4 * CHUNK;
  for (int i = 0; i < CHUNK; ++i) tokens[t * CHUNK + i] = from[i];
}

// Sixteen tokens times 32 outputs a simdgroup: sums += tokens . weights^T over one block.
template <typename T>
inline void multiply_tile(threadgroup const T* weights, threadgroup const T* tokens,
                          thread simdgroup_float8x8 (&sums)[2][4]) {
  simdgroup_matrix<T, 8, 8> left[2], right;
  for (int k = 0; k < BLOCK; k += 8) {
    simdgroup_load(left[0], tokens + k, BLOCK);
    simdgroup_load(left[1], tokens + 8 * BLOCK + k, BLOCK);
    for (int j = 0; j < 4; ++j) {
      simdgroup_load(right, weights + 8 * j * BLOCK + k, BLOCK, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(sums[0][j], left[0], right, sums[0][j]);
      simdgroup_multiply_accumulate(sums[1][j], left[1], right, sums[1][j]);
    }
  }
}

// The threadgroup memory of a tile, 14 to 20 KiB: one array each, so that an overrun is seen.
template <typename T>
struct tile_memory {
  threadgroup T* weights;  // [OUTPUTS * BLOCK]
  threadgroup T* tokens;   // [TOKENS * BLOCK]
  threadgroup float* out;  // [TOKENS * OUTPUTS]
};

// y[rows][first_out ..] = x[rows] . w^T: float sums of products in T. Edges are read clamped.
template <typename W, typename T, typename Rows>
inline void tile(device const uchar* w, device const T* x, device T* y, thread const Rows& rows,
                 thread const tile_memory<T>& memory, int first_out, int n_in, int n_out, int t,
                 int sg) {
  const int token = sg / 2 * 16, output = sg % 2 * 32;
  simdgroup_float8x8 sums[2][4];
  for (int j = 0; j < 4; ++j) {
    sums[0][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    sums[1][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  for (int at = 0; at < n_in; at += BLOCK) {
    load_tile<W>(w, x, rows, memory.weights, memory.tokens, first_out, at, n_in, n_out, t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_tile(memory.weights + output * BLOCK, memory.tokens + token * BLOCK, sums);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (int j = 0; j < 4; ++j) {
    simdgroup_store(sums[0][j], memory.out + token * OUTPUTS + output + 8 * j, OUTPUTS);
    simdgroup_store(sums[1][j], memory.out + (token + 8) * OUTPUTS + output + 8 * j, OUTPUTS);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = t; i < TOKENS * OUTPUTS; i += TILE_THREADS) {
    const int row = i / OUTPUTS, column = first_out + i % OUTPUTS;
    if (row < rows.count && column < n_out)
      y[ulong(rows.y_row(row)) * n_out + column] = T(memory.out[i]);
  }
}
