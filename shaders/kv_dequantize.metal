// y = formats.get(name).dequantize(b, rotated=not unrotate).to(T): turbo2, turbo3, turbo4, turbo4_lm
// (blocks of 128 values), and q8_0, q4_0 (blocks of 32, no rotation).
// Shapes: b uchar[blocks * BYTES]; y T[blocks * 128] or T[blocks * 32], T float, half or bfloat.
// Grid:   one thread for four values, so 32 or 8 a block; any number of blocks.
#include "blocks.h"

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
kernel void dequantize_turbo(device const uchar* b [[buffer(0)]], device T* y [[buffer(1)]],
                             constant int& unrotate [[buffer(2)]],
                             uint i [[thread_position_in_grid]],
                             ushort lane [[thread_index_in_simdgroup]]) {
  device const uchar* block = b + i / LANES * F::BYTES;
  const float4 v = F::quad(block, lane) * F::scale(block);
  store4(y + 4 * i, unrotate ? unrotate_128(v, lane) : v);
}

template <typename F, typename T>
kernel void dequantize_block32(device const uchar* b [[buffer(0)]], device T* y [[buffer(1)]],
                               uint i [[thread_position_in_grid]]) {
  device const uchar* block = b + (i >> 3) * F::BYTES;
  store4(y + 4 * i, F::quad(block, i & 7) * F::scale(block));
}

#define TURBO(F, T)                                                                   \
  template [[host_name("dequantize_" #F "_" #T)]] kernel void dequantize_turbo<F, T>( \
      device const uchar*, device T*, constant int&, uint, ushort);
#define BLOCK32(F, T)                                                                   \
  template [[host_name("dequantize_" #F "_" #T)]] kernel void dequantize_block32<F, T>( \
      device const uchar*, device T*, uint);
#define ALL(T)        \
  TURBO(turbo2, T)    \
  TURBO(turbo3, T)    \
  TURBO(turbo4, T)    \
  TURBO(turbo4_lm, T) \
  BLOCK32(q8_0, T)    \
  BLOCK32(q4_0, T)
ALL(float)
ALL(half)
ALL(bfloat)
