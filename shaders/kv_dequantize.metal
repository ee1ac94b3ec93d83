// y = formats.get(name).dequantize(b, rotated=not unrotate).to(T): turbo2, turbo3, turbo4, turbo4_lm,
// trellis2, trellis3, trellis4 (blocks of 128, or of 64: _h64), q8_0, q4_0 (of 32, no rotation).
// Shapes: b uchar[blocks * BYTES]; y T[blocks * BLOCK], T float, half or bfloat;
//         rotated formats: sizes = blocks, unrotate.
// Grid:   one thread for four values, rotated formats in whole simdgroups; any number of blocks.
#include "blocks.h"
#include "trellis.h"

struct q4_0 {  // low nibbles: values 0 .. 15, high nibbles: 16 .. 31
  enum { BLOCK = 32, BYTES = 18 };
  static float scale(device const uchar* block) { return half_at(block); }
  static float4 quad(device const uchar* block, uint q) {
    device const uchar* pair = block + 2 + 4 * (q & 3);
    const uint4 bytes = uint4(pair[0], pair[1], pair[2], pair[3]);
    return float4((bytes >> uint4(q & 4)) & uint4(15)) - 8.0f;
  }
};

template <typename F, typename T>
kernel void dequantize_rotated(device const uchar* b [[buffer(0)]], device T* y [[buffer(1)]],
                               constant int* sizes [[buffer(2)]],
                               uint i [[thread_position_in_grid]],
                               ushort lane [[thread_index_in_simdgroup]]) {
  enum { QUADS = F::BLOCK / 4 };
  const bool inside = i < uint(sizes[0]) * QUADS;  // an odd block of 64 leaves lanes over
  device const uchar* block = b + i / QUADS * F::BYTES;
  const float4 v = inside ? F::quad(block, i % QUADS) * F::scale(block) : float4(0.0f);
  const float4 u = sizes[1] ? unrotate_kv<F::BLOCK>(v, lane) : v;
  if (inside) store4(y + 4 * i, u);
}

template <typename F, typename T>
kernel void dequantize_block32(device const uchar* b [[buffer(0)]], device T* y [[buffer(1)]],
                               uint i [[thread_position_in_grid]]) {
  device const uchar* block = b + (i >> 3) * F::BYTES;
  store4(y + 4 * i, F::quad(block, i & 7) * F::scale(block));
}

#define ROTATED(F, T)                                                                   \
  template [[host_name("dequantize_" #F "_" #T)]] kernel void dequantize_rotated<F, T>( \
      device const uchar*, device T*, constant int*, uint, ushort);
#define BLOCK32(F, T)                                                                   \
  template [[host_name("dequantize_" #F "_" #T)]] kernel void dequantize_block32<F, T>( \
      device const uchar*, device T*, uint);
#define ALL(T)              \
  ROTATED(turbo2, T)        \
  ROTATED(turbo3, T)        \
  ROTATED(turbo4, T)        \
  ROTATED(turbo4_lm, T)     \
  ROTATED(turbo2_h64, T)    \
  ROTATED(turbo3_h64, T)    \
  ROTATED(turbo4_lm_h64, T) \
  ROTATED(trellis2, T)      \
  ROTATED(trellis3, T)      \
  ROTATED(trellis4, T)      \
  ROTATED(trellis2_h64, T)  \
  ROTATED(trellis3_h64, T)  \
  ROTATED(trellis4_h64, T)  \
  BLOCK32(q8_0, T)          \
  BLOCK32(q4_0, T)
ALL(float)
ALL(half)
ALL(bfloat)
