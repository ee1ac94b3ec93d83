// Collectives that are combinations of the back end's two primitives:
//   msl_shuffle(value, source lane, site, name)   and   msl_gather(value, slots, site, name).
// Both headers that include this one (CPU, CUDA) define them, MSL_SITE and msl_lane() first.
// MSL_COLLECTIVE is out of line and unchecked on the CPU: its slots are not the kernel's memory.
#pragma once
#include "msl_math.h"

namespace metal {
#define MSL_SHUFFLE(name, source)                      \
  template <class T>                                   \
  MSL_COLLECTIVE T name(T value, ushort k, MSL_SITE) { \
    const unsigned lane = msl_lane();                  \
    return msl_shuffle(value, (source), site, #name);  \
  }
MSL_SHUFFLE(simd_shuffle, k + 0 * lane)
MSL_SHUFFLE(simd_broadcast, k + 0 * lane)
MSL_SHUFFLE(simd_shuffle_xor, lane ^ k)
// Past the end Metal leaves the result undefined; like the hardware we return the lane's own value.
MSL_SHUFFLE(simd_shuffle_down, lane + k > 31 ? lane : lane + k)
MSL_SHUFFLE(simd_shuffle_up, lane < k ? lane : lane - k)
MSL_SHUFFLE(simd_shuffle_rotate_down, (lane + k) & 31)
MSL_SHUFFLE(simd_shuffle_rotate_up, (lane - k) & 31)
#undef MSL_SHUFFLE

template <class T>
MSL_COLLECTIVE T simd_shuffle_and_fill_down(T value, T fill, ushort k, MSL_SITE) {
  const unsigned lane = msl_lane();
  T moved = msl_shuffle(value, lane + k > 31 ? lane : lane + k, site, "simd_shuffle_and_fill_down");
  return lane + k > 31 ? fill : moved;
}
template <class T>
MSL_COLLECTIVE T simd_shuffle_and_fill_up(T value, T fill, ushort k, MSL_SITE) {
  const unsigned lane = msl_lane();
  T moved = msl_shuffle(value, lane < k ? lane : lane - k, site, "simd_shuffle_and_fill_up");
  return lane < k ? fill : moved;
}

// Reductions over the active lanes, combined as a tree; the order on a real GPU is not published.
#define MSL_REDUCE(name, combine)                                        \
  template <class T>                                                     \
  MSL_COLLECTIVE T name(T value, MSL_SITE) {                             \
    T slot[32];                                                          \
    const unsigned active = msl_gather(value, slot, site, #name);        \
    unsigned have = active;                                              \
    for (int step = 16; step; step >>= 1)                                \
      for (int i = 0; i < step; i++) {                                   \
        const bool left = have >> i & 1, right = have >> (i + step) & 1; \
        if (left && right) {                                             \
          const T x = slot[i], y = slot[i + step];                       \
          slot[i] = combine;                                             \
        } else if (right) {                                              \
          slot[i] = slot[i + step];                                      \
          have |= 1u << i;                                               \
        }                                                                \
      }                                                                  \
    return slot[0];                                                      \
  }
MSL_REDUCE(simd_sum, T(x + y))
MSL_REDUCE(simd_product, T(x* y))
MSL_REDUCE(simd_max, max(x, y))
MSL_REDUCE(simd_min, min(x, y))
MSL_REDUCE(simd_and, T(x& y))
MSL_REDUCE(simd_or, T(x | y))
MSL_REDUCE(simd_xor, T(x ^ y))
#undef MSL_REDUCE

#define MSL_SCAN(name, first, identity, combine)                  \
  template <class T>                                              \
  MSL_COLLECTIVE T name(T value, MSL_SITE) {                      \
    T slot[32];                                                   \
    const unsigned active = msl_gather(value, slot, site, #name); \
    T x = T(identity);                                            \
    for (unsigned i = 0; i < msl_lane() + first; i++)             \
      if (active >> i & 1) {                                      \
        const T y = slot[i];                                      \
        x = combine;                                              \
      }                                                           \
    return x;                                                     \
  }
MSL_SCAN(simd_prefix_inclusive_sum, 1, 0, T(x + y))
MSL_SCAN(simd_prefix_exclusive_sum, 0, 0, T(x + y))
MSL_SCAN(simd_prefix_inclusive_product, 1, 1, T(x* y))
MSL_SCAN(simd_prefix_exclusive_product, 0, 1, T(x* y))
#undef MSL_SCAN

struct simd_vote {
  using vote_t = ulong;
  vote_t bits;
  MSL_FN explicit operator vote_t() const { return bits; }
  MSL_FN explicit operator uint() const { return (uint)bits; }
};
MSL_COLLECTIVE unsigned msl_vote(bool b, unsigned& active, msl_site site, const char* name) {
  uchar slot[32];
  active = msl_gather((uchar)b, slot, site, name);
  unsigned votes = 0;
  for (int i = 0; i < 32; i++)
    if ((active >> i & 1) && slot[i]) votes |= 1u << i;
  return votes;
}
MSL_COLLECTIVE simd_vote simd_ballot(bool b, MSL_SITE) {
  unsigned active;
  return simd_vote{msl_vote(b, active, site, "simd_ballot")};
}
MSL_COLLECTIVE bool simd_any(bool b, MSL_SITE) {
  unsigned active;
  return msl_vote(b, active, site, "simd_any") != 0;
}
MSL_COLLECTIVE bool simd_all(bool b, MSL_SITE) {
  unsigned active;
  return msl_vote(b, active, site, "simd_all") == active;
}
template <class T>
MSL_COLLECTIVE T simd_broadcast_first(T value, MSL_SITE) {
  T slot[32];
  const unsigned active = msl_gather(value, slot, site, "simd_broadcast_first");
  return slot[ctz(active)];
}
MSL_COLLECTIVE bool simd_is_first(MSL_SITE) {
  uchar slot[32];
  return ctz(msl_gather((uchar)1, slot, site, "simd_is_first")) == msl_lane();
}
}  // namespace metal
