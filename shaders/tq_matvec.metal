// y = x @ W.dequantize(w, rotated=True).T for 1 to 8 rows of x that are rotated already (wht32).
// Shapes: w uint8[n_out][n_in / 32 * W::BYTES], x T[n_cols][n_in], y T[n_cols][n_out]; any n_out,
//         n_in % 32 == 0, n_cols <= COLS; sizes = n_in, n_out, n_cols. Sums in float.
// Grid:   32 threads (one simdgroup) for every four rows of w; threadgroups of any simdgroups.
#include "linear.h"

template <typename W, typename T, int COLS>
kernel void tq_matvec(device const uchar* w [[buffer(0)]], device const T* x [[buffer(1)]],
                      device T* y [[buffer(2)]], constant int* sizes [[buffer(3)]],
                      uint i [[thread_position_in_grid]],
                      ushort lane [[thread_index_in_simdgroup]]) {
  few_columns<W, T, COLS>(w, x, y, int(i / LANES) * ROWS, sizes[0], sizes[1], sizes[2], lane);
}

#define MATVEC(W, T, COLS)                                                                    \
  template [[host_name("tq_matvec_" #W "_" #T "_" #COLS)]] kernel void tq_matvec<W, T, COLS>( \
      device const uchar*, device const T*, device T*, constant int*, uint, ushort);
#define MATVEC_COLUMNS(W, T) MATVEC(W, T, 1) MATVEC(W, T, 2) MATVEC(W, T, 4) MATVEC(W, T, 8)
#define MATVEC_TYPES(W) MATVEC_COLUMNS(W, float) MATVEC_COLUMNS(W, half) MATVEC_COLUMNS(W, bfloat)
MATVEC_TYPES(tq3_1s)
MATVEC_TYPES(tq4_1s)
