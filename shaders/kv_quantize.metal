// y = formats.get(name).quantize(x): turbo2, turbo3, turbo4, turbo4_lm, q8_0, q4_0; serial sums.
// Shapes: x T[blocks * 128] (turbo), T[blocks * 64] (turbo*_h64) or T[blocks * 32], T float, half,
//         bfloat; y uchar[blocks * BYTES].
// Grid:   32 threads (one simdgroup) a block, or for two blocks of 64; any number of blocks.
// Sums run in index order, as on the CPU: without FMA contraction every byte is the same.
#include "blocks.h"

constant constexpr float TINY = 1e-10f;  // shorter vectors are stored as zero
// The tables are made for vectors of 128 with length 1: 64 values of the same spread have this one.
constant constexpr float LENGTH_64 = 0.70710678118654752f;

// ---- decision thresholds: a code is the number of thresholds <= value
constant float STEPS_TURBO2[3] = {-0.086728f, 0.0f, 0.086728f};
constant float STEPS_TURBO3[7] = {-0.154259f, -0.091775f, -0.043589f, 0.0f,
                                  0.043589f,  0.091775f,  0.154259f};
constant float STEPS_TURBO4[15] = {-0.145560f, -0.103361f, -0.079142f, -0.060009f, -0.043430f,
                                   -0.028293f, -0.013963f, 0.0f,       0.013963f,  0.028293f,
                                   0.043430f,  0.060009f,  0.079142f,  0.103361f,  0.145560f};
constant float STEPS_TURBO4_LM[15] = {
    -0.2122030454f, -0.1629467302f, -0.1270263231f, -0.0971640578f, -0.0706708846f,
    -0.0461744006f, -0.0228237863f, 0.0f,           0.0228237863f,  0.0461744006f,
    0.0706708846f,  0.0971640578f,  0.1270263231f,  0.1629467302f,  0.2122030454f};

template <typename F>
struct codes_of;
template <int N>
struct codes_of<turbo2_of<N>> {
  enum { BITS = 2, HEADER = 2 };
  static constant const float* table() { return TABLE_TURBO2; }
  static constant const float* steps() { return STEPS_TURBO2; }
};
template <int N>
struct codes_of<turbo3_of<N>> {
  enum { BITS = 3, HEADER = 2 };
  static constant const float* table() { return TABLE_TURBO3; }
  static constant const float* steps() { return STEPS_TURBO3; }
};
template <>
struct codes_of<turbo4> {
  enum { BITS = 4, HEADER = 4 };
  static constant const float* table() { return TABLE_TURBO4; }
  static constant const float* steps() { return STEPS_TURBO4; }
};
template <int N>
struct codes_of<turbo4_lm_of<N>> {
  enum { BITS = 4, HEADER = 2 };
  static constant const float* table() { return TABLE_TURBO4_LM; }
  static constant const float* steps() { return STEPS_TURBO4_LM; }
};

// The code of one value, by binary search.
template <int BITS>
inline uint nearest(constant const float* steps, float value) {
  uint code = 0;
  for (uint step = 1u << (BITS - 1); step > 0; step >>= 1) {
    if (value >= steps[code + step - 1]) code += step;
  }
  return code;
}

// The sum of a block's N values, first to last, in each of its lanes; the block starts in `first`.
template <int N>
inline float serial_sum(float4 v, ushort first) {
  float total = 0.0f;
  for (ushort k = 0; k < N / 4; ++k) {
    const float4 w = simd_shuffle(v, ushort(first + k));
    total = total + w.x;
    total = total + w.y;
    total = total + w.z;
    total = total + w.w;
  }
  return total;
}

// Bit 2 of four codes.
inline uint top_bits(uint4 code) {
  const uint4 high = code >> uint4(2);
  return high.x | high.y << 1 | high.z << 2 | high.w << 3;
}

// Write quad q's four codes. turbo3 splits them: two low bits here; the top bits of two quads, this
// one's and the `next`, make one byte behind the N / 4 of the low bits.
template <int BITS, int N>
inline void put_codes(device uchar* to, uint4 code, uint next, ushort q) {
  if (BITS == 4) {
    to[2 * q] = uchar(code.x | code.y << 4);
    to[2 * q + 1] = uchar(code.z | code.w << 4);
    return;
  }
  const uint4 low = code & uint4(3);
  to[q] = uchar(low.x | low.y << 2 | low.z << 4 | low.w << 6);
  if (BITS == 3 && (q & 1) == 0) to[N / 4 + q / 2] = uchar(top_bits(code) | next << 4);
}

template <typename F, typename T>
kernel void quantize_turbo(device const T* x [[buffer(0)]], device uchar* y [[buffer(1)]],
                           constant int& blocks [[buffer(2)]], uint i [[thread_position_in_grid]],
                           ushort lane [[thread_index_in_simdgroup]]) {
  typedef codes_of<F> C;
  enum { N = F::BLOCK, QUADS = N / 4 };
  const bool inside = i < uint(blocks) * QUADS;  // an odd block of 64 leaves half a simdgroup over
  const ushort q = lane & (QUADS - 1), first = lane - q;
  const float4 v = inside ? load4(x + 4 * i) : float4(0.0f);
  const float norm = precise::sqrt(serial_sum<N>(v * v, first));
  const float inverse = (norm > TINY ? 1.0f / norm : 0.0f) * (N == 64 ? LENGTH_64 : 1.0f);
  const float4 r = rotate_kv<N>(v * inverse, lane);
  const uint4 code = uint4(nearest<C::BITS>(C::steps(), r.x), nearest<C::BITS>(C::steps(), r.y),
                           nearest<C::BITS>(C::steps(), r.z), nearest<C::BITS>(C::steps(), r.w));
  constant const float* table = C::table();
  const float4 c = float4(table[code.x], table[code.y], table[code.z], table[code.w]);
  const float length = precise::sqrt(serial_sum<N>(c * c, first));
  const uint next = simd_shuffle_xor(top_bits(code), 1);
  if (!inside) return;
  device uchar* block = y + i / QUADS * F::BYTES;
  if (q == 0) {  // norm correction: decoded vectors keep their length
    put_half(block, length > TINY ? norm / length : norm);
    if (C::HEADER == 4) put_half(block + 2, 0.0f);
  }
  put_codes<C::BITS, N>(block + C::HEADER, code, next, q);
}

// d = max|x| / 127, q = round half away from zero of x / d. Both terms of q are exact.
template <typename T>
kernel void quantize_q8_0(device const T* x [[buffer(0)]], device uchar* y [[buffer(1)]],
                          uint i [[thread_position_in_grid]],
                          ushort lane [[thread_index_in_simdgroup]]) {
  const float v = float(x[i]);
  const float d = simd_max(abs(v)) / 127.0f;
  const float scaled = v * (d > 0.0f ? 1.0f / d : 0.0f);
  const float whole = trunc(scaled);
  const float q = whole + trunc((scaled - whole) * 2.0f);
  device uchar* block = y + i / LANES * q8_0::BYTES;
  if (lane == 0) put_half(block, d);
  block[2 + lane] = as_type<uchar>(char(q));
}

// d = m / -8 with m the first value of largest magnitude; lanes 0-15 write low and high nibbles.
template <typename T>
kernel void quantize_q4_0(device const T* x [[buffer(0)]], device uchar* y [[buffer(1)]],
                          uint i [[thread_position_in_grid]],
                          ushort lane [[thread_index_in_simdgroup]]) {
  const float v = float(x[i]);
  const float largest = simd_max(abs(v));
  const ushort first = simd_min(abs(v) == largest ? lane : ushort(31));
  const float m = simd_shuffle(v, first);
  const float d = (m == 0.0f ? 0.0f : m) / -8.0f;
  const float scaled = v * (d != 0.0f ? 1.0f / d : 0.0f);
  const uint q = min(uint(scaled + 8.5f), 15u);
  const uint high = simd_shuffle_xor(q, 16);
  device uchar* block = y + i / LANES * 18;
  if (lane == 0) put_half(block, d);
  if (lane < 16) block[2 + lane] = uchar(q | high << 4);
}

#define TURBO(F, T)                                                               \
  template [[host_name("quantize_" #F "_" #T)]] kernel void quantize_turbo<F, T>( \
      device const T*, device uchar*, constant int&, uint, ushort);
#define BLOCK32(F, T)                                                        \
  template [[host_name("quantize_" #F "_" #T)]] kernel void quantize_##F<T>( \
      device const T*, device uchar*, uint, ushort);
#define ALL(T)            \
  TURBO(turbo2, T)        \
  TURBO(turbo3, T)        \
  TURBO(turbo4, T)        \
  TURBO(turbo4_lm, T)     \
  TURBO(turbo2_h64, T)    \
  TURBO(turbo3_h64, T)    \
  TURBO(turbo4_lm_h64, T) \
  BLOCK32(q8_0, T)        \
  BLOCK32(q4_0, T)
ALL(float)
ALL(half)
ALL(bfloat)
