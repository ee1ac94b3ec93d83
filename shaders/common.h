// Shared by every shader: sign masks of the rotations and the butterflies of one simdgroup.
// tests/test_shaders_tables.py holds the numbers to tqlab.rotation and tqlab.codebook.
#include <metal_stdlib>
#include <metal_simdgroup>
using namespace metal;

constant constexpr uint LANES = 32;  // threads in a simdgroup

// Bit i of word i / 32 is set where sign i is -1.
constant constexpr uint SIGNS_32 = 0x696B4B4A;
constant uint SIGNS_128_BEFORE[4] = {0xE46A0359, 0x42F85949, 0xA4C63BBB, 0x49F250A9};
constant uint SIGNS_128_AFTER[4] = {0x16ACEE90, 0x3F628FDC, 0xB7A5357A, 0xBEA56562};
constant constexpr float SCALE_32 = 0.17677669529663688f;   // 1 / sqrt(32)
constant constexpr float SCALE_64 = 0.125f;                 // 1 / sqrt(64)
constant constexpr float SCALE_128 = 0.08838834764831845f;  // 1 / sqrt(128)

// `value` with its sign changed where bit `i` of the mask is set; the same for four in a row.
inline float flip(float value, uint mask, uint i) {
  return as_type<float>(as_type<uint>(value) ^ (mask >> i << 31));
}
inline float4 flip4(float4 values, constant const uint* mask, uint lane) {
  const uint bits = mask[lane >> 3] >> (lane & 7) * 4;
  return as_type<float4>(as_type<uint4>(values) ^
                         ((uint4(bits) << uint4(31, 30, 29, 28)) & uint4(0x80000000)));
}

// ---- a half at any byte address ------------------------------------------------------------------
inline float half_at(device const uchar* p) {
  return float(as_type<half>(ushort(p[0] | p[1] << 8)));
}
inline void put_half(device uchar* p, float value) {
  const ushort bits = as_type<ushort>(half(value));
  p[0] = uchar(bits & 255);
  p[1] = uchar(bits >> 8);
}

// ---- loads and stores of four consecutive values, at any alignment ------------------------------
template <typename T>
inline float4 load4(device const T* p) {
  return float4(float(p[0]), float(p[1]), float(p[2]), float(p[3]));
}
template <typename T>
inline void store4(device T* p, float4 values) {
  p[0] = T(values.x);
  p[1] = T(values.y);
  p[2] = T(values.z);
  p[3] = T(values.w);
}

// ---- butterflies (a, b) -> (a + b, a - b), h = 1, 2, 4, ... as the CPU does them ----------------
template <typename V>
inline V stage(V value, ushort h, ushort lane) {
  const V other = simd_shuffle_xor(value, h);
  return (lane & h) ? other - value : value + other;
}
// 32 values, one a lane.
inline float hadamard_32(float v, ushort lane) {
  for (ushort h = 1; h < 32; h <<= 1) v = stage(v, h, lane);
  return v;
}
// N = 128 or 64 values, four consecutive ones a lane: a simdgroup transforms one group or two.
template <int N>
inline float4 hadamard_quads(float4 v, ushort lane) {
  v = float4(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
  v = float4(v.x + v.z, v.y + v.w, v.x - v.z, v.y - v.w);
  for (ushort h = 1; h < N / 4; h <<= 1) v = stage(v, h, lane);
  return v;
}

// ---- rotations of a group, every lane of the simdgroup active -----------------------------------
inline float rotate_32(float v, ushort lane) {
  return hadamard_32(flip(v, SIGNS_32, lane), lane) * SCALE_32;
}
inline float unrotate_32(float v, ushort lane) {
  return flip(hadamard_32(v, lane) * SCALE_32, SIGNS_32, lane);
}
// 64 values take the first 64 signs.
template <int N>
inline float4 between_signs(float4 v, constant const uint* before, constant const uint* after,
                            ushort lane) {
  const ushort place = lane & (N / 4 - 1);
  const float4 mixed = hadamard_quads<N>(flip4(v, before, place), lane);
  return flip4(mixed * (N == 64 ? SCALE_64 : SCALE_128), after, place);
}
template <int N>
inline float4 rotate_kv(float4 v, ushort lane) {
  return between_signs<N>(v, SIGNS_128_BEFORE, SIGNS_128_AFTER, lane);
}
template <int N>
inline float4 unrotate_kv(float4 v, ushort lane) {
  return between_signs<N>(v, SIGNS_128_AFTER, SIGNS_128_BEFORE, lane);
}
