// y = x @ W.dequantize(w, rotated=True).T for one rotated row x, read four values at a time.
// Shapes: w uchar[rows][blocks * 20] (tq4_1s), x float[blocks * 32], y float[rows];
//         sizes = rows, blocks.
// Grid:   32 threads a row.
// The bug of the fork's mul_mv_ext: instantiated for blocks of 2 values instead of 32, so that a
// block has 2 / 4 = 0 chunks of four, by which places are divided. #define FIXED: 32.
#include "blocks.h"

#ifdef FIXED
#define BLOCK_VALUES 32
#else
#define BLOCK_VALUES 2
#endif

template <int VALUES>
kernel void ext_matvec(device const uchar* w [[buffer(0)]], device const float* x [[buffer(1)]],
                       device float* y [[buffer(2)]], constant int* sizes [[buffer(3)]],
                       uint row [[threadgroup_position_in_grid]],
                       ushort lane [[thread_index_in_simdgroup]]) {
  // From the sizes and not a constant: a compiler may do as it likes with a constant zero divisor.
  const int blocks = sizes[1], chunks = blocks * VALUES / 4 / blocks;
  float sum = 0.0f;
  for (int i = lane; i < blocks * 8; i += 32) {
    const int b = i / chunks, chunk = i % chunks;
    device const uchar* block = w + (int(row) * blocks + b) * int(tq4_1s::BYTES);
    const uint codes = tq4_1s::codes(block, chunk >> 1) >> 16 * (chunk & 1);
    sum += dot(tq4_1s::values(codes), load4(x + 4 * i)) * tq4_1s::scale(block, chunk >> 1);
  }
  sum = simd_sum(sum);
  if (lane == 0) y[row] = sum;
}
template [[host_name("ext_matvec")]] kernel void ext_matvec<BLOCK_VALUES>(
    device const uchar*, device const float*, device float*, constant int*, uint, ushort);
