// y = dequantise(w) x for blocks of 32 four-bit weights: the idioms of real kernels in one place.
#include <metal_stdlib>
using namespace metal;

#define ROWS 2
constant float CENTROIDS[16] = {-2.7, -2.1, -1.6, -1.3, -0.9, -0.7, -0.4, -0.1,
                                0.1,  0.4,  0.7,  0.9,  1.3,  1.6,  2.1,  2.7};
struct Block {  // 18 bytes, so every second one is at an odd multiple of two
  half scale;
  uchar nibbles[16];
};
struct Shape {
  int rows, columns;
};

template <typename T, int N>
METAL_FUNC void butterfly(thread T (&v)[N], ushort lane) {
#pragma unroll
  for (ushort m = 1; m < 32; m <<= 1) {
    for (int i = 0; i < N; ++i) {
      const T other = simd_shuffle_xor(v[i], m);
      v[i] = (lane & m) ? other - v[i] : v[i] + other;
    }
  }
}
static inline float dot_block(device const Block* block, threadgroup const float* x) {
  device const ushort* words = (device const ushort*)block->nibbles;
  float sum = 0;
  for (int i = 0; i < 8; ++i) {
    const ushort w = words[i];
    sum += CENTROIDS[w & 15] * x[4 * i] + CENTROIDS[(w >> 4) & 15] * x[4 * i + 1];
    sum += CENTROIDS[(w >> 8) & 15] * x[4 * i + 2] + CENTROIDS[w >> 12] * x[4 * i + 3];
  }
  return sum * float(block->scale);
}
template <typename T>
kernel void matvec(device const uchar* w [[buffer(0)]], device const T* x [[buffer(1)]],
                   device T* y [[buffer(2)]], constant Shape& shape [[buffer(3)]],
                   uint3 group [[threadgroup_position_in_grid]],
                   uint t [[thread_index_in_threadgroup]],
                   ushort lane [[thread_index_in_simdgroup]],
                   ushort sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup float rotated[64];
  threadgroup float partial[ROWS][2];
  const int blocks = shape.columns / 32;
  float sum[ROWS] = {0};
  for (int at = 0; at < blocks; at += 2) {
    thread float v[1] = {at + sg < blocks ? float(x[(at + sg) * 32 + lane]) : 0.0f};
    butterfly(v, lane);
    rotated[t] = v[0] * 0.17677669529663687f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const int block = at + int(lane & 1);
    if (lane < 2 * ROWS / 2 && block < blocks) {
      const int row = group.x * ROWS + sg;
      device const Block* b = (device const Block*)w + ulong(row) * blocks + block;
      sum[sg] += dot_block(b, rotated + 32 * (lane & 1));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  const float total = simd_sum(sum[sg]);
  if (lane == 0) partial[sg][0] = total;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < ROWS) y[group.x * ROWS + t] = T(partial[t][0]);
}
#define INSTANTIATE(T)                                                                       \
  template [[host_name("matvec_" #T)]] [[kernel]] void matvec<T>(                            \
      device const uchar*, device const T*, device T*, constant Shape&, uint3, uint, ushort, \
      ushort);
INSTANTIATE(float)
INSTANTIATE(half)
INSTANTIATE(bfloat)

// Bits of half pairs, ballots and a shared counter.
kernel void bits(device const uint* x [[buffer(0)]], device half2* y [[buffer(1)]],
                 device atomic_uint* count [[buffer(2)]], ushort2 p [[thread_position_in_grid]],
                 uint n [[threads_per_simdgroup]]) {
  threadgroup atomic_uint votes;
  if (p.x == 0) atomic_store_explicit(&votes, 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const half2 h = as_type<half2>(x[p.x]);
  y[p.x] = half2(h.y, metal::select(h.x, half(0), h.x < 0.0h));
  atomic_fetch_add_explicit(&votes, uint(h.x < 0.0h), memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (p.x == n - 1)
    atomic_fetch_add_explicit(count, atomic_load_explicit(&votes, memory_order_relaxed),
                              memory_order_relaxed);
}
