// CUDA back end, experimental (NVRTC with -default-device): simdgroups are warps.
#pragma once
#define MSL_CUDA 1
#include "msl_launch.h"

#define MSL_COLLECTIVE __device__ __forceinline__
#define MSL_KERNEL static __device__ __forceinline__
#define MSL_CONSTANT_CONSTEXPR static __device__ constexpr
#define MSL_CONSTANT static __device__ const

struct msl_site {};
#define MSL_SITE msl_site site = msl_site()

namespace metal {
MSL_FN unsigned msl_index() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
MSL_FN unsigned msl_lane() { return msl_index() & 31; }
MSL_FN void threadgroup_barrier(mem_flags) { __syncthreads(); }
MSL_FN void simdgroup_barrier(mem_flags) { __syncwarp(); }
MSL_FN void msl_converge(msl_site, const char*) { __syncwarp(); }

// Collectives run over __activemask(): Metal's rule is the active lanes, and a full mask would hang
// where some lanes do not arrive. CUDA does not promise that lanes which parted run together again
// after a branch, as they do in practice; simdgroup_barrier makes them.
template <class T>
MSL_FN T msl_move(unsigned mask, T value, unsigned source) {
  constexpr int words = (sizeof(T) + 3) / 4;
  unsigned bits[words] = {};
  T result;
  __builtin_memcpy(bits, &value, sizeof(T));
  for (int i = 0; i < words; i++) bits[i] = __shfl_sync(mask, bits[i], source);
  __builtin_memcpy(&result, bits, sizeof(T));
  return result;
}
template <class T>
MSL_FN T msl_shuffle(T value, unsigned source, msl_site, const char*) {
  return msl_move(__activemask(), value, source);
}
// Slots of inactive lanes are left as they are; the callers look at the mask.
template <class T>
MSL_FN unsigned msl_gather(T value, T* slots, msl_site, const char*) {
  const unsigned active = __activemask();
  for (int i = 0; i < 32; i++)
    if (active >> i & 1) slots[i] = msl_move(active, value, i);
  return active;
}
}  // namespace metal
#include "msl_simdgroup_matrix.h"

namespace metal {
template <class T>
MSL_FN T atomic_load_explicit(const volatile _atomic<T>* p, memory_order) {
  return p->msl_value;
}
template <class T, class U>
MSL_FN void atomic_store_explicit(volatile _atomic<T>* p, U x, memory_order) {
  p->msl_value = T(x);
}
#define MSL_ATOMIC(name, cuda)                               \
  template <class T, class U>                                \
  MSL_FN T name(volatile _atomic<T>* p, U x, memory_order) { \
    return cuda((T*)&p->msl_value, T(x));                    \
  }
MSL_ATOMIC(atomic_exchange_explicit, atomicExch)
MSL_ATOMIC(atomic_fetch_add_explicit, atomicAdd)
MSL_ATOMIC(atomic_fetch_sub_explicit, atomicSub)
MSL_ATOMIC(atomic_fetch_max_explicit, atomicMax)
MSL_ATOMIC(atomic_fetch_min_explicit, atomicMin)
MSL_ATOMIC(atomic_fetch_and_explicit, atomicAnd)
MSL_ATOMIC(atomic_fetch_or_explicit, atomicOr)
MSL_ATOMIC(atomic_fetch_xor_explicit, atomicXor)
#undef MSL_ATOMIC
}  // namespace metal

// ---- what the generated launchers use: device pointers, or offsets into a blob passed by value
// ----
struct msl_arguments {  // mirrored in _cuda.py; no padding but `unused`
  unsigned long pointer[31];
  unsigned in_blob, grid[3], unused[2];
  alignas(16) unsigned char blob[2048];
};
static_assert(sizeof(msl_arguments) == 31 * 8 + 6 * 4 + 2048, "there is padding");
#define MSL_ARGUMENT(i) \
  ((a.in_blob >> i & 1) ? (void*)(a.blob + a.pointer[i]) : (void*)a.pointer[i])
using msl_builtin = msl_builtin_of<unsigned[3]>;
#define MSL_POSITION(d) (blockIdx.d * blockDim.d + threadIdx.d)
#define MSL_REST(d, i) (a.grid[i] - blockIdx.d * blockDim.d)
#define MSL_TAIL(d, i) (blockDim.d < MSL_REST(d, i) ? blockDim.d : MSL_REST(d, i))
// On Metal the threads beyond the grid do not exist; here they leave first. A kernel that uses
// barriers in a partial group therefore needs a grid that is a multiple of the group.
#define MSL_TAIL_RETURNS                                              \
  if (MSL_POSITION(x) >= a.grid[0] || MSL_POSITION(y) >= a.grid[1] || \
      MSL_POSITION(z) >= a.grid[2])                                   \
    return;
#define MSL_BUILTIN_thread_position_in_grid             \
  msl_builtin {                                         \
    {                                                   \
      MSL_POSITION(x), MSL_POSITION(y), MSL_POSITION(z) \
    }                                                   \
  }
#define MSL_BUILTIN_threadgroup_position_in_grid \
  msl_builtin {                                  \
    {                                            \
      blockIdx.x, blockIdx.y, blockIdx.z         \
    }                                            \
  }
#define MSL_BUILTIN_thread_position_in_threadgroup \
  msl_builtin {                                    \
    {                                              \
      threadIdx.x, threadIdx.y, threadIdx.z        \
    }                                              \
  }
#define MSL_BUILTIN_threads_per_grid  \
  msl_builtin {                       \
    {                                 \
      a.grid[0], a.grid[1], a.grid[2] \
    }                                 \
  }
#define MSL_BUILTIN_threads_per_threadgroup          \
  msl_builtin {                                      \
    {                                                \
      MSL_TAIL(x, 0), MSL_TAIL(y, 1), MSL_TAIL(z, 2) \
    }                                                \
  }
#define MSL_BUILTIN_dispatch_threads_per_threadgroup \
  msl_builtin {                                      \
    {                                                \
      blockDim.x, blockDim.y, blockDim.z             \
    }                                                \
  }
#define MSL_BUILTIN_threadgroups_per_grid \
  msl_builtin {                           \
    {                                     \
      gridDim.x, gridDim.y, gridDim.z     \
    }                                     \
  }
#define MSL_BUILTIN_thread_index_in_threadgroup metal::msl_index()
#define MSL_BUILTIN_thread_index_in_simdgroup metal::msl_lane()
#define MSL_BUILTIN_simdgroup_index_in_threadgroup (metal::msl_index() >> 5)
#define MSL_BUILTIN_simdgroups_per_threadgroup ((blockDim.x * blockDim.y * blockDim.z + 31) >> 5)
#define MSL_BUILTIN_thread_index_in_quadgroup (metal::msl_index() & 3)
#define MSL_BUILTIN_quadgroup_index_in_threadgroup (metal::msl_index() >> 2)
#define MSL_BUILTIN_threads_per_simdgroup 32u
