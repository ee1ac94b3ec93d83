// rotate(x) for a TQ projection, and beside it y = x @ w.T of a sibling that reads the same x.
// Shapes: x float[blocks * 32], rotated float[blocks * 32], w float[rows][blocks * 32], y float[rows];
//         sizes = rows, blocks.
// Grid:   blocks + rows threadgroups of 32 threads: one a block to rotate, one a row of the sibling.
// Two dispatches of the fork that overlap, as one grid: nothing orders its threadgroups either. The
// bug: the rotation replaces x, which it had registered as a source only. #define FIXED: it has a
// buffer of its own.
#include "common.h"

#ifdef FIXED
#define SOURCE device const float*
#else
#define SOURCE device float*
#endif

kernel void rotate_beside_sibling(SOURCE x [[buffer(0)]], device float* rotated [[buffer(1)]],
                                  device const float* w [[buffer(2)]],
                                  device float* y [[buffer(3)]], constant int* sizes [[buffer(4)]],
                                  uint group [[threadgroup_position_in_grid]],
                                  ushort lane [[thread_index_in_simdgroup]]) {
  const int rows = sizes[0], blocks = sizes[1], row = int(group) - blocks;
  if (row < 0) {
    const int at = int(group) * 32 + lane;
#ifdef FIXED
    rotated[at] = rotate_32(x[at], lane);
#else
    x[at] = rotate_32(x[at], lane);
#endif
    return;
  }
  float sum = 0.0f;
  for (int i = lane; i < blocks * 32; i += 32) sum += w[row * blocks * 32 + i] * x[i];
  sum = simd_sum(sum);
  if (lane == 0 && row < rows) y[row] = sum;
}
