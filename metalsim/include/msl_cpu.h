// CPU back end: every thread of the grid is a fiber, collectives are rendezvous in the runtime.
#pragma once
#include "msl_launch.h"

#define MSL_UNCHECKED __attribute__((no_sanitize("thread")))
#define MSL_COLLECTIVE inline __attribute__((noinline, no_sanitize("thread"), nodebug))
#define MSL_KERNEL static __attribute__((noinline))
#define MSL_CONSTANT_CONSTEXPR static constexpr
#define MSL_CONSTANT static const

struct msl_site {
  const char* file;
  int line, column;
};
#define MSL_SITE \
  msl_site site = msl_site { __builtin_FILE(), __builtin_LINE(), __builtin_COLUMN() }

extern "C" {
struct msl_thread_ids {  // mirrored in runtime/runtime.h
  unsigned position[3], group[3], local[3], grid[3], group_size[3], dispatch_size[3], groups[3];
  unsigned index, lane, simdgroup, simdgroups;
};
extern const msl_thread_ids* msl_current;
enum { MSL_SCOPE_SIMDGROUP = 0, MSL_SCOPE_THREADGROUP = 1 };
void msl_rt_barrier(int scope, unsigned flags, msl_site site);
unsigned msl_rt_gather(const void* value, void* slots, unsigned size, msl_site site,
                       const char* name);
void msl_rt_shuffle(void* value, unsigned size, unsigned source, msl_site site, const char* name);
void* msl_rt_threadgroup(const void* key, size_t size, size_t align);
void msl_rt_atomic(const void* p, unsigned size, int writes);
typedef void (*msl_launcher)(void** buffers);
struct msl_kernel {
  const char* name;
  msl_launcher run;
};
}

namespace metal {
MSL_COLLECTIVE unsigned msl_lane() { return msl_current->lane; }
MSL_COLLECTIVE void threadgroup_barrier(mem_flags f, MSL_SITE) {
  msl_rt_barrier(MSL_SCOPE_THREADGROUP, (unsigned)f, site);
}
MSL_COLLECTIVE void simdgroup_barrier(mem_flags f, MSL_SITE) {
  msl_rt_barrier(MSL_SCOPE_SIMDGROUP, (unsigned)f, site);
}
MSL_COLLECTIVE void msl_converge(msl_site site, const char* name) {
  msl_rt_gather(nullptr, nullptr, 0, site, name);
}
template <class T>
MSL_FN unsigned msl_gather(T value, T* slots, msl_site site, const char* name) {
  static_assert(sizeof(T) <= 64, "a collective moves at most 64 bytes a lane");
  return msl_rt_gather(&value, slots, sizeof(T), site, name);
}
template <class T>
MSL_FN T msl_shuffle(T value, unsigned source, msl_site site, const char* name) {
  static_assert(sizeof(T) <= 64, "a collective moves at most 64 bytes a lane");
  msl_rt_shuffle(&value, sizeof(T), source, site, name);
  return value;
}
}  // namespace metal
#include "msl_simdgroup_matrix.h"

// ---- atomics: fibers only switch inside collectives, so plain code is atomic ------------------
namespace metal {
// The check is inlined, so that it is reported at the caller's line; the access itself is not
// checked.
template <class T>
MSL_COLLECTIVE T msl_atomic_read(const volatile T* p) {
  return *p;
}
template <class T>
MSL_COLLECTIVE void msl_atomic_write(volatile T* p, T x) {
  *p = x;
}
template <class T>
MSL_FN T atomic_load_explicit(const volatile _atomic<T>* p, memory_order) {
  msl_rt_atomic((const void*)p, sizeof(T), 0);
  return msl_atomic_read(&p->msl_value);
}
#define MSL_ATOMIC(name, combine)                                  \
  template <class T, class U>                                      \
  MSL_FN T name(volatile _atomic<T>* p, U operand, memory_order) { \
    msl_rt_atomic((const void*)p, sizeof(T), 1);                   \
    const T old = msl_atomic_read(&p->msl_value), x = T(operand);  \
    msl_atomic_write(&p->msl_value, T(combine));                   \
    return old;                                                    \
  }
MSL_ATOMIC(atomic_exchange_explicit, x)
MSL_ATOMIC(atomic_fetch_add_explicit, old + x)
MSL_ATOMIC(atomic_fetch_sub_explicit, old - x)
MSL_ATOMIC(atomic_fetch_max_explicit, max(old, x))
MSL_ATOMIC(atomic_fetch_min_explicit, min(old, x))
MSL_ATOMIC(atomic_fetch_and_explicit, old& x)
MSL_ATOMIC(atomic_fetch_or_explicit, old | x)
MSL_ATOMIC(atomic_fetch_xor_explicit, old ^ x)
#undef MSL_ATOMIC
template <class T, class U>
MSL_FN void atomic_store_explicit(volatile _atomic<T>* p, U x, memory_order order) {
  atomic_exchange_explicit(p, x, order);
}
template <class T, class U>
MSL_FN bool atomic_compare_exchange_weak_explicit(volatile _atomic<T>* p, T* expected, U desired,
                                                  memory_order, memory_order) {
  msl_rt_atomic((const void*)p, sizeof(T), 1);
  const T old = msl_atomic_read(&p->msl_value);
  const bool same = old == *expected;
  if (same)
    msl_atomic_write(&p->msl_value, T(desired));
  else
    *expected = old;
  return same;
}
}  // namespace metal

// ---- what the generated launchers use ---------------------------------------------------------
template <class T, int Id>
struct msl_threadgroup_key {
  static inline char here;
};
template <class T, int Id>
MSL_COLLECTIVE T& msl_threadgroup() {
  const size_t align = alignof(T) < 16 ? 16 : alignof(T);
  return *(T*)msl_rt_threadgroup(&msl_threadgroup_key<T, Id>::here, sizeof(T), align);
}
using msl_builtin = msl_builtin_of<const unsigned*>;
#define MSL_BUILTIN_thread_position_in_grid \
  msl_builtin { msl_current->position }
#define MSL_BUILTIN_threadgroup_position_in_grid \
  msl_builtin { msl_current->group }
#define MSL_BUILTIN_thread_position_in_threadgroup \
  msl_builtin { msl_current->local }
#define MSL_BUILTIN_threads_per_grid \
  msl_builtin { msl_current->grid }
#define MSL_BUILTIN_threads_per_threadgroup \
  msl_builtin { msl_current->group_size }
#define MSL_BUILTIN_dispatch_threads_per_threadgroup \
  msl_builtin { msl_current->dispatch_size }
#define MSL_BUILTIN_threadgroups_per_grid \
  msl_builtin { msl_current->groups }
#define MSL_BUILTIN_thread_index_in_threadgroup msl_current->index
#define MSL_BUILTIN_thread_index_in_simdgroup msl_current->lane
#define MSL_BUILTIN_simdgroup_index_in_threadgroup msl_current->simdgroup
#define MSL_BUILTIN_simdgroups_per_threadgroup msl_current->simdgroups
#define MSL_BUILTIN_thread_index_in_quadgroup (msl_current->lane % 4)
#define MSL_BUILTIN_quadgroup_index_in_threadgroup (msl_current->index / 4)
#define MSL_BUILTIN_threads_per_simdgroup 32u
