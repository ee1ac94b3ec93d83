// y = rotation.rotate(x, "wht32", "wht64" or "wht128").to(x.dtype), or rotation.unrotate: out of place.
// Shapes: x, y T[groups * N], N = 32, 64 or 128, T float, half or bfloat; arithmetic in float.
// Grid:   32 threads (one simdgroup) a group, or for two groups of 64; any number of groups.
#include "common.h"

template <typename T, bool INVERSE>
kernel void wht_32(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
                   uint i [[thread_position_in_grid]], ushort lane [[thread_index_in_simdgroup]]) {
  const float v = float(x[i]);
  y[i] = T(INVERSE ? unrotate_32(v, lane) : rotate_32(v, lane));
}

template <typename T, bool INVERSE, int N>
kernel void wht_kv(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
                   constant int& groups [[buffer(2)]], uint i [[thread_position_in_grid]],
                   ushort lane [[thread_index_in_simdgroup]]) {
  const uint quads = uint(groups) * (N / 4);  // an odd group of 64 leaves half a simdgroup over
  const float4 v = i < quads ? load4(x + 4 * i) : float4(0.0f);
  const float4 turned = INVERSE ? unrotate_kv<N>(v, lane) : rotate_kv<N>(v, lane);
  if (i < quads) store4(y + 4 * i, turned);
}

#define WHT_32(T, NAME, INVERSE)                                            \
  template [[host_name(NAME "_" #T "_32")]] kernel void wht_32<T, INVERSE>( \
      device const T*, device T*, uint, ushort);
#define WHT_KV(T, N, NAME, INVERSE)                                             \
  template [[host_name(NAME "_" #T "_" #N)]] kernel void wht_kv<T, INVERSE, N>( \
      device const T*, device T*, constant int&, uint, ushort);
#define ALL(T)                       \
  WHT_32(T, "wht", false)            \
  WHT_32(T, "wht_inverse", true)     \
  WHT_KV(T, 64, "wht", false)        \
  WHT_KV(T, 64, "wht_inverse", true) \
  WHT_KV(T, 128, "wht", false)       \
  WHT_KV(T, 128, "wht_inverse", true)
ALL(float)
ALL(half)
ALL(bfloat)
