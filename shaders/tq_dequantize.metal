// y = formats.get("tq3_1s" or "tq4_1s").dequantize(w[ids], rotated=not unrotate).to(T): an embedding
// look-up that unpacks only the rows asked for; NaN in rows whose id is outside w.
// Shapes: w uchar[rows][row_blocks * BYTES]; ids int[n]; y T[n][row_blocks * 32], T float, half or
//         bfloat; sizes = rows, row_blocks, unrotate.
// Grid:   32 threads (one simdgroup) a block of y; any n and row length.
//         All lanes of a simdgroup share a row, so the id is tested before any collective.
#include "blocks.h"

template <typename W, typename T>
kernel void tq_rows(device const uchar* w [[buffer(0)]], device const int* ids [[buffer(1)]],
                    device T* y [[buffer(2)]], constant int* sizes [[buffer(3)]],
                    uint i [[thread_position_in_grid]], ushort lane [[thread_index_in_simdgroup]]) {
  const uint rows = sizes[0], row_blocks = sizes[1], block = i / LANES;
  const uint row = ids[block / row_blocks];  // a negative id is a large one
  float v = NAN;
  if (row < rows) {  // the same for the whole simdgroup
    device const uchar* from = w + (ulong(row) * row_blocks + block % row_blocks) * W::BYTES;
    const uint codes = W::codes(from, lane >> 3);
    v = W::values(codes >> W::BITS * (lane & 7)).x * W::scale(from, lane >> 3);
    if (sizes[2]) v = unrotate_32(v, lane);
  }
  y[i] = T(v);
}

#define ROWS(W, T)                                                     \
  template [[host_name("rows_" #W "_" #T)]] kernel void tq_rows<W, T>( \
      device const uchar*, device const int*, device T*, constant int*, uint, ushort);
ROWS(tq3_1s, float)
ROWS(tq3_1s, half)
ROWS(tq3_1s, bfloat)
ROWS(tq4_1s, float)
ROWS(tq4_1s, half)
ROWS(tq4_1s, bfloat)
