// Compile-only pass: clang's own address spaces and vectors, declarations without bodies.
#pragma once
#include "msl_base.h"

#define MSL_AS_device __attribute__((address_space(1)))
#define MSL_AS_constant __attribute__((address_space(2))) const
#define MSL_AS_threadgroup __attribute__((address_space(3)))
#define MSL_AS_thread __attribute__((annotate_type("msl_thread")))
#define MSL_KERNEL static
#define MSL_CONSTANT static __attribute__((address_space(2))) const
#define MSL_CONSTANT_CONSTEXPR static constexpr __attribute__((address_space(2)))
#define MSL_HALF_LITERAL(x) ((half)(x##f))
#define MSL_BFLOAT_LITERAL(x) ((bfloat)(x##f))
#define HALF_MAX MSL_HALF_LITERAL(65504.0)

using half = _Float16;
using bfloat = __bf16;
namespace metal {
using ::bfloat;
using ::half;
template <>
constexpr bool is_floating_point_v<half> = true;
template <>
constexpr bool is_floating_point_v<bfloat> = true;
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));
template <class T, int N>
using packed_vec = vec<T, N>;  // a class could not be copied out of an address space
}  // namespace metal
#define MSL_NAME_VECTOR(T, N)             \
  typedef metal::vec<T, N> T##N;          \
  namespace metal {                       \
  using ::T##N;                           \
  using packed_##T##N = packed_vec<T, N>; \
  }                                       \
  using metal::packed_##T##N;
#define MSL_NAME_VECTORS(T) MSL_NAME_VECTOR(T, 2) MSL_NAME_VECTOR(T, 3) MSL_NAME_VECTOR(T, 4)
MSL_NAME_VECTORS(float)
MSL_NAME_VECTORS(half)
MSL_NAME_VECTORS(bfloat)
MSL_NAME_VECTORS(char)
MSL_NAME_VECTORS(uchar)
MSL_NAME_VECTORS(short)
MSL_NAME_VECTORS(ushort)
MSL_NAME_VECTORS(int)
MSL_NAME_VECTORS(uint)
MSL_NAME_VECTORS(long)
MSL_NAME_VECTORS(ulong)
MSL_NAME_VECTORS(bool)

// float4(a, b, c, d) becomes msl_make<float4>(a, b, c, d): clang's vectors have no constructors.
template <class V, class... A>
V msl_make(A...);
template <class T, int Id>
T& msl_threadgroup();

namespace metal {
template <class T>
struct numeric_limits {
  static constexpr T max();
  static constexpr T min();
  static constexpr T lowest();
  static constexpr T infinity();
  static constexpr T quiet_NaN();
  static constexpr T epsilon();
};
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define MSL_DECLARE1(f) \
  template <class T>    \
  T f(T);
#define MSL_DECLARE2(f) \
  template <class T>    \
  T f(T, T);
#define MSL_DECLARE_MIXED(f)  \
  template <class A, class B> \
  decltype(A() + B()) f(A, B);
#define MSL_DECLARE_SHUFFLE(f) \
  template <class T>           \
  T f(T, ushort);
#define MSL_MATHS                                                                                 \
  MSL_DECLARE1(sqrt)                                                                              \
  MSL_DECLARE1(rsqrt)                                                                             \
  MSL_DECLARE1(exp)                                                                               \
  MSL_DECLARE1(exp2) MSL_DECLARE1(exp10) MSL_DECLARE1(log) MSL_DECLARE1(log2) MSL_DECLARE1(log10) \
      MSL_DECLARE1(sin) MSL_DECLARE1(cos) MSL_DECLARE1(tan) MSL_DECLARE1(asin) MSL_DECLARE1(acos) \
          MSL_DECLARE1(atan) MSL_DECLARE1(sinh) MSL_DECLARE1(cosh) MSL_DECLARE1(tanh)             \
              MSL_DECLARE1(floor) MSL_DECLARE1(ceil) MSL_DECLARE1(trunc) MSL_DECLARE1(rint)       \
                  MSL_DECLARE1(round) MSL_DECLARE1(fabs) MSL_DECLARE1(abs) MSL_DECLARE1(fract)    \
                      MSL_DECLARE_MIXED(min) MSL_DECLARE_MIXED(max) MSL_DECLARE2(pow)             \
                          MSL_DECLARE2(powr) MSL_DECLARE2(atan2) MSL_DECLARE2(fmod)               \
                              MSL_DECLARE2(fmin) MSL_DECLARE2(fmax) template <class T>            \
                              T fma(T, T, T);                                                     \
  template <class A, class B, class C>                                                            \
  decltype(A() + B() + C()) clamp(A, B, C);
MSL_MATHS
namespace precise {
MSL_MATHS
}
namespace fast {
MSL_MATHS
}
MSL_DECLARE1(saturate)
MSL_DECLARE1(sign)
MSL_DECLARE1(popcount)
MSL_DECLARE1(ctz)
MSL_DECLARE1(clz)
MSL_DECLARE1(reverse_bits)
MSL_DECLARE1(normalize)
MSL_DECLARE2(mulhi)
MSL_DECLARE2(rotate)
MSL_DECLARE2(step)
MSL_DECLARE2(copysign)
template <class T>
T extract_bits(T, uint, uint);
template <class T>
T mix(T, T, T);
float ldexp(float, int);
template <class A, class B, class C>
decltype(A() + B()) select(A, B, C);
bool isnan(float);
bool isinf(float);
bool isfinite(float);
template <class V>
bool any(V);
template <class V>
bool all(V);
template <class T, int N>
T dot(vec<T, N>, vec<T, N>);
template <class T, int N>
T length(vec<T, N>);

MSL_DECLARE_SHUFFLE(simd_shuffle)
MSL_DECLARE_SHUFFLE(simd_broadcast)
MSL_DECLARE_SHUFFLE(simd_shuffle_xor)
MSL_DECLARE_SHUFFLE(simd_shuffle_down)
MSL_DECLARE_SHUFFLE(simd_shuffle_up)
MSL_DECLARE_SHUFFLE(simd_shuffle_rotate_down)
MSL_DECLARE_SHUFFLE(simd_shuffle_rotate_up)
MSL_DECLARE1(simd_sum)
MSL_DECLARE1(simd_product)
MSL_DECLARE1(simd_max)
MSL_DECLARE1(simd_min)
MSL_DECLARE1(simd_and)
MSL_DECLARE1(simd_or)
MSL_DECLARE1(simd_xor)
MSL_DECLARE1(simd_broadcast_first)
MSL_DECLARE1(simd_prefix_inclusive_sum)
MSL_DECLARE1(simd_prefix_exclusive_sum)
MSL_DECLARE1(simd_prefix_inclusive_product)
MSL_DECLARE1(simd_prefix_exclusive_product)
template <class T>
T simd_shuffle_and_fill_down(T, T, ushort);
template <class T>
T simd_shuffle_and_fill_up(T, T, ushort);
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();
struct simd_vote {
  using vote_t = ulong;
  explicit operator vote_t() const;
  explicit operator uint() const;
};
simd_vote simd_ballot(bool);

template <class T, int Columns, int Rows>
struct simdgroup_matrix {
  simdgroup_matrix();
  explicit simdgroup_matrix(T);
  vec<T, 2>& thread_elements();
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;
template <class T, int Columns, int Rows = Columns>
simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T);
// Source and destination must be device or threadgroup memory of the matrix's own type.
#define MSL_DECLARE_MATRIX_ACCESS(AS)                                                         \
  template <class T>                                                                          \
  void simdgroup_load(simdgroup_matrix<T, 8, 8>&, AS const T*, ulong = 8, ulong2 = ulong2(0), \
                      bool = false);                                                          \
  template <class T>                                                                          \
  void simdgroup_store(simdgroup_matrix<T, 8, 8>, AS T*, ulong = 8, ulong2 = ulong2(0),       \
                       bool = false);
MSL_DECLARE_MATRIX_ACCESS(MSL_AS_device)
MSL_DECLARE_MATRIX_ACCESS(MSL_AS_threadgroup)
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                                   simdgroup_matrix<B, 8, 8>, simdgroup_matrix<C, 8, 8>);
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                        simdgroup_matrix<B, 8, 8>);

#define MSL_DECLARE_ATOMIC(f, AS) \
  template <class T, class U>     \
  T f(volatile AS _atomic<T>*, U, memory_order);
#define MSL_DECLARE_ATOMICS(AS)                                                                 \
  template <class T>                                                                            \
  T atomic_load_explicit(const volatile AS _atomic<T>*, memory_order);                          \
  template <class T, class U>                                                                   \
  void atomic_store_explicit(volatile AS _atomic<T>*, U, memory_order);                         \
  MSL_DECLARE_ATOMIC(atomic_exchange_explicit, AS)                                              \
  MSL_DECLARE_ATOMIC(atomic_fetch_add_explicit, AS)                                             \
  MSL_DECLARE_ATOMIC(atomic_fetch_sub_explicit, AS)                                             \
  MSL_DECLARE_ATOMIC(atomic_fetch_max_explicit, AS)                                             \
      MSL_DECLARE_ATOMIC(atomic_fetch_min_explicit, AS)                                         \
          MSL_DECLARE_ATOMIC(atomic_fetch_and_explicit, AS)                                     \
              MSL_DECLARE_ATOMIC(atomic_fetch_or_explicit, AS)                                  \
                  MSL_DECLARE_ATOMIC(atomic_fetch_xor_explicit, AS) template <class T, class U> \
                  bool atomic_compare_exchange_weak_explicit(volatile AS _atomic<T>*, T*, U,    \
                                                             memory_order, memory_order);
MSL_DECLARE_ATOMICS(MSL_AS_device)
MSL_DECLARE_ATOMICS(MSL_AS_threadgroup)
}  // namespace metal
