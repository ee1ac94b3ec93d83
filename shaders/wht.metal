// y = rotation.rotate(x, "wht32" or "wht128").to(x.dtype), or rotation.unrotate: out of place.
// Shapes: x, y T[groups * 32] or T[groups * 128], T float, half or bfloat; arithmetic in float.
// Grid:   32 threads (one simdgroup) a group; any number of groups.
#include "common.h"

template <typename T, bool INVERSE>
kernel void wht_32(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
                   uint i [[thread_position_in_grid]], ushort lane [[thread_index_in_simdgroup]]) {
  const float v = float(x[i]);
  y[i] = T(INVERSE ? unrotate_32(v, lane) : rotate_32(v, lane));
}

template <typename T, bool INVERSE>
kernel void wht_128(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
                    uint i [[thread_position_in_grid]], ushort lane [[thread_index_in_simdgroup]]) {
  const float4 v = load4(x + 4 * i);
  store4(y + 4 * i, INVERSE ? unrotate_128(v, lane) : rotate_128(v, lane));
}

#define WHT(T, N)                                                                                  \
  template [[host_name("wht_" #T "_" #N)]] kernel void wht_##N<T, false>(device const T*,          \
                                                                         device T*, uint, ushort); \
  template [[host_name("wht_inverse_" #T "_" #N)]] kernel void wht_##N<T, true>(                   \
      device const T*, device T*, uint, ushort);
WHT(float, 32)
WHT(half, 32)
WHT(bfloat, 32)
WHT(float, 128)
WHT(half, 128)
WHT(bfloat, 128)
