// Correct kernels whose results the tests compute a second time with numpy.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// ---- 16-bit arithmetic -------------------------------------------------------------------------
template <typename T>
kernel void arithmetic(device const T* a [[buffer(0)]], device const T* b [[buffer(1)]],
                       device T* y [[buffer(2)]], uint i [[thread_position_in_grid]],
                       uint n [[threads_per_grid]]) {
  const T product = a[i] * b[i];
  y[i] = a[i] + b[i];
  y[n + i] = a[i] - b[i];
  y[2 * n + i] = product;
  y[3 * n + i] = a[i] / b[i];
  y[4 * n + i] = product + b[i] * b[i] - a[i];  // three roundings, none of them fused away
  y[5 * n + i] = -a[i] * 2.0h;
}
template [[host_name("arithmetic_half")]] kernel void arithmetic<half>(device const half*,
                                                                       device const half*,
                                                                       device half*, uint, uint);
kernel void arithmetic_bfloat(device const bfloat* a, device const bfloat* b, device bfloat* y,
                              uint i [[thread_position_in_grid]], uint n [[threads_per_grid]]) {
  y[i] = a[i] + b[i];
  y[n + i] = a[i] * b[i];
  y[2 * n + i] = bfloat(float(a[i]) / float(b[i]));
}
kernel void convert(device const float* x, device half* h, device bfloat* b, device float* back,
                    uint i [[thread_position_in_grid]]) {
  h[i] = half(x[i]);
  b[i] = bfloat(x[i]);
  back[i] = float(h[i]) + float(b[i]);
}

// ---- vectors ----------------------------------------------------------------------------------
constant constexpr float TABLE[4] = {0.5, -1.5, 2.0, 3.25};
constant uint SHIFTS[2] = {0, 4};
kernel void vectors(device const float4* x [[buffer(0)]], device float* y [[buffer(1)]],
                    device const uchar4* bytes [[buffer(2)]],
                    device const packed_float3* packed [[buffer(3)]],
                    uint i [[thread_position_in_grid]]) {
  float4 v = x[i];
  v.xy = v.zw;
  v *= 2.0f;
  float2 sum = v.xy + v.zw;
  uchar4 b = bytes[i];
  float3 p = float3(packed[i]);
  float4 joined = float4(p, sum.x);
  device float* out = y + i * 8;
  out[0] = v.x;
  out[1] = sum.y;
  out[2] = float((b.x >> SHIFTS[1]) | (b[3] & 15)) * TABLE[i & 3];
  out[3] = joined.z + joined.w;
  out[4] = dot(v, float4(1.0f, 2.0f, 3.0f, 4.0f));
  out[5] = float(as_type<uint>(v.y) & 0xffff);
  out[6] = max(v, joined).w + float(any(v > joined));
  out[7] = float(half4(joined).y);
}
kernel void functions(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                      uint n [[threads_per_grid]]) {
  const float v = x[i];
  y[i] = precise::exp(v);
  y[n + i] = fma(v, v, 1.0f);
  y[2 * n + i] = clamp(v, -0.5f, 0.5f);
  y[3 * n + i] = select(1.0f, 2.0f, v > 0.0f);
  y[4 * n + i] = float(popcount(as_type<uint>(v)));
  y[5 * n + i] = rint(v * 4.0f);
  y[6 * n + i] = fast::tanh(v);
  y[7 * n + i] = v == 0.0f ? 0.0f : rsqrt(abs(v));
}

// ---- where a thread is ------------------------------------------------------------------------
kernel void positions(device uint* y, uint3 p [[thread_position_in_grid]],
                      uint3 n [[threads_per_grid]], uint3 group [[threadgroup_position_in_grid]],
                      uint3 size [[threads_per_threadgroup]],
                      uint3 local [[thread_position_in_threadgroup]],
                      uint3 groups [[threadgroups_per_grid]],
                      uint index [[thread_index_in_threadgroup]],
                      ushort lane [[thread_index_in_simdgroup]],
                      ushort sg [[simdgroup_index_in_threadgroup]]) {
  device uint* out = y + 8 * (p.x + n.x * (p.y + n.y * p.z));
  out[0] = group.x + 100 * group.y + 10000 * group.z;
  out[1] = local.x + 100 * local.y + 10000 * local.z;
  out[2] = size.x + 100 * size.y + 10000 * size.z;
  out[3] = groups.x + 100 * groups.y + 10000 * groups.z;
  out[4] = index;
  out[5] = lane;
  out[6] = sg;
  out[7] = 1;
}

// ---- collectives ------------------------------------------------------------------------------
kernel void collectives(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                        uint n [[threads_per_grid]], ushort lane [[thread_index_in_simdgroup]]) {
  const float v = x[i];
  y[i] = simd_sum(v);
  y[n + i] = simd_max(v);
  y[2 * n + i] = simd_min(v);
  y[3 * n + i] = simd_shuffle_xor(v, 5);
  y[4 * n + i] = simd_shuffle_down(v, 3);
  y[5 * n + i] = simd_shuffle_up(v, 3);
  y[6 * n + i] = simd_broadcast(v, 7);
  y[7 * n + i] = simd_shuffle(v, 31 - lane);
  y[8 * n + i] = float(uint(simd_vote::vote_t(simd_ballot(v > 0.0f)) & 0xffff));
  y[9 * n + i] = simd_prefix_exclusive_sum(v);
  y[10 * n + i] = simd_shuffle_rotate_down(v, 4);
  y[11 * n + i] = float(simd_any(v > 2.5f)) + 2.0f * float(simd_all(v > -9.0f));
  y[12 * n + i] = simd_shuffle_and_fill_down(v, 8.0f, 30);
  y[13 * n + i] = simd_broadcast_first(v);
}

// ---- 8x8 matrices: y = a b with b transposed on load, by way of threadgroup memory ------------
template <typename T>
kernel void product(device const T* a [[buffer(0)]], device const T* b [[buffer(1)]],
                    device float* y [[buffer(2)]], constant int& k [[buffer(3)]],
                    ushort lane [[thread_index_in_simdgroup]]) {
  threadgroup T tile[8 * 12];  // rows 12 apart
  simdgroup_matrix<T, 8, 8> left, right;
  simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (int at = 0; at < k; at += 8) {
    for (int e = lane; e < 64; e += 32) tile[e / 8 * 12 + e % 8] = a[e / 8 * k + at + e % 8];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_load(left, tile, 12);
    simdgroup_load(right, b + at, k, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sum, left, right, sum);
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  simdgroup_store(sum, y, 8);
}
#define PRODUCT(T)                                              \
  template [[host_name("product_" #T)]] kernel void product<T>( \
      device const T*, device const T*, device float*, constant int&, ushort);
PRODUCT(float)
PRODUCT(half)
PRODUCT(bfloat)

// ---- arguments and trouble --------------------------------------------------------------------
kernel void read_words(constant uint* values, device uint* y, uint i [[thread_position_in_grid]]) {
  y[i] = values[i];
}
kernel void read_float(constant float& value, device float* y, uint i [[thread_position_in_grid]]) {
  y[i] = value;
}
kernel void read_half(constant half* values, device half* y, uint i [[thread_position_in_grid]]) {
  y[i] = values[i];
}
kernel void copy(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  y[i] = x[i];
}
kernel void gather(device float* const* rows, device float* y, uint i [[thread_position_in_grid]]) {
  y[i] = rows[i][i];
}
kernel void hang(device float* y, uint i [[thread_position_in_grid]]) {
  while (y[i] < 1.0f) y[i] = y[i] * 0.5f;
}
kernel void divide(device const int* x, device int* y, uint i [[thread_position_in_grid]]) {
  y[i] = 100 / x[i];
}
kernel void far_write(device float* y, constant long& at, uint i [[thread_position_in_grid]]) {
  y[at] = 1.0f;
}
kernel void large(device float* y, uint i [[thread_position_in_grid]]) {
  threadgroup float a[8193];
  a[i] = 1.0f;
  y[i] = a[i];
}
kernel void full(device float* y, uint i [[thread_position_in_grid]]) {
  threadgroup float a[8192];
  a[i] = 1.0f;
  y[i] = a[i];
}
[[kernel]] [[max_total_threads_per_threadgroup(64)]] void small_groups(
    device float* y, uint i [[thread_position_in_grid]]) {
  y[i] = 1.0f;
}
