// y = x @ W.dequantize(w).T for one row x and tq4_1s rows, rotation fused in: and 32 times it.
// Shapes: w uchar[rows][blocks * 20], x float[blocks * 32], y float[rows]; sizes = rows, blocks.
// Grid:   a threadgroup of 64 threads (two simdgroups) for every four rows; lane = place in a block.
// The bug of the fork's kernel_mul_mv_tq4_1s_f32: the lanes' sums are reduced before they are handed
// to a helper that reduces them. #define FIXED: they are handed over as they are. #define SERIAL:
// lane 0 does all the work alone, and the total meets 31 zeros in the helper: right.
#include "blocks.h"

constant constexpr int ROWS = 4, SIMDGROUPS = 2;

// Takes one partial sum a lane, as for every other format; adds over lanes and simdgroups.
inline void reduce_and_write(thread float* partial, threadgroup float* shared, device float* y,
                             int first_row, int rows, ushort lane, ushort sg) {
  for (int r = 0; r < ROWS; ++r) {
    const float sum = simd_sum(partial[r]);
    if (lane == 0) shared[r * SIMDGROUPS + sg] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (sg != 0 || lane >= ROWS || first_row + lane >= rows) return;
  y[first_row + lane] = shared[lane * SIMDGROUPS] + shared[lane * SIMDGROUPS + 1];
}

inline float weight(device const uchar* block, uint i) {
  return tq4_1s::values(tq4_1s::codes(block, i >> 3) >> 4 * (i & 7)).x *
         tq4_1s::scale(block, i >> 3);
}

kernel void fused_matvec(device const uchar* w [[buffer(0)]], device const float* x [[buffer(1)]],
                         device float* y [[buffer(2)]], constant int* sizes [[buffer(3)]],
                         uint group [[threadgroup_position_in_grid]],
                         ushort lane [[thread_index_in_simdgroup]],
                         ushort sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup float shared[ROWS * SIMDGROUPS];
  const int rows = sizes[0], blocks = sizes[1], first_row = int(group) * ROWS;
  float sums[ROWS] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int b = sg; b < blocks; b += SIMDGROUPS) {
    const float rotated = rotate_32(x[b * 32 + lane], lane);
    for (int r = 0; r < ROWS; ++r) {
      const int row = min(first_row + r, rows - 1);
      device const uchar* block = w + (row * blocks + b) * int(tq4_1s::BYTES);
#ifdef SERIAL
      for (ushort i = 0; i < 32; ++i) {
        const float value = simd_shuffle(rotated, i);
        if (lane == 0) sums[r] += weight(block, i) * value;
      }
#else
      sums[r] += weight(block, lane) * rotated;
#endif
    }
  }
#if !defined(FIXED) && !defined(SERIAL)
  for (int r = 0; r < ROWS; ++r) sums[r] = simd_sum(sums[r]);  // now in all 32 lanes
#endif
  reduce_and_write(sums, shared, y, first_row, rows, lane, sg);
}
