// Names that Metal C++ has without an include, for a CPU compiler and for NVRTC alike.
// No standard header is used: the same text must compile in both, and it keeps compiles short.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define MSL_ON_CUDA 1
#include "msl_cuda_names.h"
#define MSL_FN __device__ __forceinline__
#define __builtin_memcpy memcpy
#else
// nodebug: a load inside an inlined operator is then reported at the caller's line.
#define MSL_FN inline __attribute__((always_inline, nodebug))
#endif

namespace metal {
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;  // LP64: 64 bits, as in Metal
using uint64_t = unsigned long;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using size_t = decltype(sizeof(0));
using ptrdiff_t = long;

// ---- the types of <metal_atomic> ----------------------------------------------------------------
enum memory_order { memory_order_relaxed };
template <class T>
struct _atomic {
  T msl_value;
};
template <class T>
using atomic = _atomic<T>;
using atomic_int = _atomic<int>;
using atomic_uint = _atomic<uint>;
using atomic_float = _atomic<float>;

// ---- the part of <metal_type_traits> that kernels use -----------------------------------------
template <class T, T V>
struct integral_constant {
  static constexpr T value = V;
};
using true_type = integral_constant<bool, true>;
using false_type = integral_constant<bool, false>;
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F>
struct conditional {
  using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
  using type = F;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;
template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;
template <class T>
struct remove_cv {
  using type = T;
};
template <class T>
struct remove_cv<const T> {
  using type = T;
};
template <class T>
struct remove_cv<volatile T> {
  using type = T;
};
template <class T>
struct remove_cv<const volatile T> {
  using type = T;
};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
struct remove_reference {
  using type = T;
};
template <class T>
struct remove_reference<T&> {
  using type = T;
};
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
T&& declval();

template <class T, class... Options>
constexpr bool msl_one_of = (is_same_v<T, Options> || ...);
template <class T>
constexpr bool is_integral_v =
    msl_one_of<remove_cv_t<T>, bool, char, signed char, unsigned char, short, unsigned short, int,
               unsigned, long, unsigned long, long long, unsigned long long>;
template <class T>
constexpr bool is_unsigned_v = msl_one_of<remove_cv_t<T>, bool, unsigned char, unsigned short,
                                          unsigned, unsigned long, unsigned long long>;
template <class T>
constexpr bool is_floating_point_v = msl_one_of<remove_cv_t<T>, float>;
template <class T>
struct is_integral : integral_constant<bool, is_integral_v<T>> {};
template <class T>
struct is_floating_point : integral_constant<bool, is_floating_point_v<T>> {};

// ---- small language-level helpers -------------------------------------------------------------
template <class To, class From>
MSL_FN To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs operands of equal size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, size_t N>
struct array {
  T msl_items[N];
  MSL_FN T& operator[](size_t i) { return msl_items[i]; }
  MSL_FN const T& operator[](size_t i) const { return msl_items[i]; }
  MSL_FN constexpr size_t size() const { return N; }
};

enum class mem_flags : unsigned {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4
};
MSL_FN constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((unsigned)a | (unsigned)b);
}
}  // namespace metal

using metal::as_type;
using metal::int16_t;
using metal::int32_t;
using metal::int64_t;
using metal::int8_t;
using metal::ptrdiff_t;
using metal::size_t;
using metal::uchar;
using metal::uint;
using metal::uint16_t;
using metal::uint32_t;
using metal::uint64_t;
using metal::uint8_t;
using metal::ulong;
using metal::ushort;

#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST const
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_1_PI_F 0.318309886183790671538f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define MAXFLOAT FLT_MAX
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#ifdef INFINITY
#undef INFINITY
#undef NAN
#endif
#define INFINITY (::metal::as_type<float>(0x7f800000))
#define NAN (::metal::as_type<float>(0x7fc00000))
