// y = unrotate(sum over splits of weight * part), the last pass of an attention over rotated values.
// Shapes: part float4[rows][splits][32], weights float[rows][splits], y float4[rows][32];
//         sizes = rows, splits.
// Grid:   32 threads a row.
// The bug of the fork's TurboFlash: this pass already un-rotates, and the graph un-rotates the
// output again for every rotated V. #define FIXED: it stays in the rotated domain for that.
#include "common.h"

kernel void combine(device const float4* part [[buffer(0)]],
                    device const float* weights [[buffer(1)]], device float4* y [[buffer(2)]],
                    constant int* sizes [[buffer(3)]], uint row [[threadgroup_position_in_grid]],
                    ushort lane [[thread_index_in_simdgroup]]) {
  const int splits = sizes[1];
  float4 sum = float4(0.0f);
  for (int s = 0; s < splits; ++s)
    sum += weights[int(row) * splits + s] * part[(int(row) * splits + s) * 32 + lane];
#ifndef FIXED
  sum = unrotate_kv<128>(sum, lane);
#endif
  y[row * 32 + lane] = sum;
}
