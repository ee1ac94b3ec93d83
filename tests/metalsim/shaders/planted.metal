// Planted bugs, each beside its correct twin. A bug's line says what must be reported there; where
// a line is named twice, either access of the pair may be the one that comes second.
#include <metal_stdlib>
using namespace metal;

// Sum of 64 neighbours in threadgroup memory.
kernel void ok_exchange(device const float* x, device float* y,
                        uint gid [[thread_position_in_grid]],
                        uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[64];
  a[t] = x[gid];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[gid] = a[t ^ 33];
}
kernel void bug_missing_barrier(device const float* x, device float* y,
                                uint gid [[thread_position_in_grid]],
                                uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[64];
  a[t] = x[gid];       // caught: race
  y[gid] = a[t ^ 33];  // caught: race, uninitialised
}
kernel void bug_wrong_flag(device const float* x, device float* y,
                           uint gid [[thread_position_in_grid]],
                           uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[64];
  a[t] = x[gid];
  threadgroup_barrier(mem_flags::mem_device);
  y[gid] = a[t ^ 33];  // caught: wrong memory flag
}

// The same array used twice: the second write must wait for the first reads.
kernel void ok_reuse(device const float* x, device float* y, uint gid [[thread_position_in_grid]],
                     uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[64];
  float v = x[gid];
  for (uint m = 32; m <= 33; m++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    a[t] = v;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    v += a[t ^ m];
  }
  y[gid] = v;
}
kernel void bug_write_after_read(device const float* x, device float* y,
                                 uint gid [[thread_position_in_grid]],
                                 uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[64];
  float v = x[gid];
  for (uint m = 32; m <= 33; m++) {
    a[t] = v;  // caught: race
    threadgroup_barrier(mem_flags::mem_threadgroup);
    v += a[t ^ m];  // caught: race
  }
  y[gid] = v;
}

// A simdgroup barrier is enough inside a simdgroup, and only there.
kernel void ok_simdgroup_barrier(device const float* x, device float* y,
                                 uint gid [[thread_position_in_grid]],
                                 uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[64];
  a[t] = x[gid];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[gid] = a[t ^ 31];
}
kernel void bug_simdgroup_barrier(device const float* x, device float* y,
                                  uint gid [[thread_position_in_grid]],
                                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[64];
  a[t] = x[gid];  // caught: race
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[gid] = a[t ^ 33];  // caught: race, uninitialised
}

// Device memory: in place is right only where a thread reads what it alone writes.
kernel void ok_in_place(device float* x, uint gid [[thread_position_in_grid]]) {
  x[gid] = x[gid] * 2.0f;
}
kernel void bug_in_place(device float* x, uint gid [[thread_position_in_grid]],
                         uint n [[threads_per_grid]]) {
  x[gid] = x[gid] + x[(gid + 32) % n];  // caught: race
}
kernel void ok_device_exchange(device float* x, device float* y,
                               uint gid [[thread_position_in_grid]]) {
  x[gid] = float(gid);
  threadgroup_barrier(mem_flags::mem_device);
  y[gid] = x[gid ^ 33];
}
kernel void bug_device_flag(device float* x, device float* y,
                            uint gid [[thread_position_in_grid]]) {
  x[gid] = float(gid);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[gid] = x[gid ^ 33];  // caught: wrong memory flag
}
kernel void ok_one_writer(device float* y, uint gid [[thread_position_in_grid]],
                          ushort lane [[thread_index_in_simdgroup]]) {
  float v = simd_sum(float(gid));
  if (lane == 0) y[gid / 32] = v;
}
kernel void bug_every_lane_writes(device float* y, uint gid [[thread_position_in_grid]]) {
  float v = simd_sum(float(gid));
  y[gid / 32] = v;  // caught: race
}
kernel void ok_atomic(device atomic_uint* count, uint gid [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(count, gid, memory_order_relaxed);
}
kernel void bug_half_atomic(device atomic_uint* count, device uint* y,
                            uint gid [[thread_position_in_grid]]) {
  if (gid & 1)
    atomic_fetch_add_explicit(count, 1, memory_order_relaxed);  // caught: race
  else
    y[gid] = *(device uint*)count;  // caught: race
}

// Divergence.
kernel void ok_shuffle(device const float* x, device float* y, device const int& n,
                       uint gid [[thread_position_in_grid]]) {
  float v = int(gid) < n ? x[gid] : 0.0f;
  v += simd_shuffle_xor(v, 16);
  if (int(gid) < n) y[gid] = v;
}
kernel void bug_exited_lanes(device const float* x, device float* y, device const int& n,
                             uint gid [[thread_position_in_grid]]) {
  if (int(gid) >= n) return;
  y[gid] = x[gid] + simd_shuffle_xor(x[gid], 16);  // caught: inactive lane, divergent collective
}
kernel void bug_partial_sum(device const float* x, device float* y,
                            uint gid [[thread_position_in_grid]],
                            ushort lane [[thread_index_in_simdgroup]]) {
  float v = x[gid];
  if (lane < 8) v = simd_sum(v);  // caught: divergent collective
  y[gid] = v;
}
kernel void bug_barrier_in_branch(device float* y, uint gid [[thread_position_in_grid]],
                                  uint t [[thread_index_in_threadgroup]]) {
  if (t < 32) threadgroup_barrier(mem_flags::mem_none);  // caught: divergent barrier
  y[gid] = 1.0f;
}
kernel void bug_two_barriers(device float* y, uint gid [[thread_position_in_grid]],
                             uint t [[thread_index_in_threadgroup]]) {
  if (t < 32)
    threadgroup_barrier(mem_flags::mem_none);  // caught: divergent barrier
  else
    threadgroup_barrier(mem_flags::mem_none);  // caught: divergent barrier
  y[gid] = 1.0f;
}

// Bounds, constness, initialisation, alignment.
kernel void bug_read_past_end(device const half* x, device half* y,
                              uint gid [[thread_position_in_grid]]) {
  y[gid] = x[gid + 1];  // caught: out of bounds
}
kernel void bug_write_before_start(device float* y, uint gid [[thread_position_in_grid]]) {
  y[int(gid) - 1] = 1.0f;  // caught: out of bounds
}
kernel void bug_threadgroup_overrun(device float* y, uint gid [[thread_position_in_grid]],
                                    uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[63];
  a[t] = 1.0f;  // caught: out of bounds
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[gid] = a[t / 2];
}
kernel void bug_threadgroup_pointer_overrun(device float* y, uint gid [[thread_position_in_grid]],
                                            uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[63];
  threadgroup float* p = a;
  p[t] = 1.0f;  // caught: out of bounds
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[gid] = a[t / 2];
}
kernel void bug_private_overrun(device const float* x, device float* y,
                                uint gid [[thread_position_in_grid]]) {
  float a[2][4];
  for (uint i = 0; i < 8; i++) a[i / 4][i % 4] = x[i];
  y[gid] = a[0][gid % 8];  // caught: out of bounds
}
kernel void bug_wild_read(device const float* x, device float* y, device const long& far,
                          uint gid [[thread_position_in_grid]]) {
  y[gid] = x[far];  // caught: out of bounds
}
kernel void bug_uninitialised(device float* y, uint gid [[thread_position_in_grid]],
                              uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[65];
  a[t] = 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[gid] = a[t + 1];  // caught: uninitialised
}
kernel void bug_accumulate_uninitialised(device float* y, uint gid [[thread_position_in_grid]],
                                         uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[64];
  a[t] += 1.0f;  // caught: uninitialised
  y[gid] = a[t];
}
kernel void bug_write_through_const(device const float* x, device float* y,
                                    uint gid [[thread_position_in_grid]]) {
  device float* p = (device float*)x;
  p[gid] = 0.0f;  // caught: write through const
  y[gid] = 0.0f;
}
kernel void bug_misaligned(device const uchar* x, device ushort* y,
                           uint gid [[thread_position_in_grid]]) {
  y[gid] = *(device const ushort*)(x + 3 * gid);  // caught: misaligned
}
