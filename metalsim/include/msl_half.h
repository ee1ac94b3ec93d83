// half and bfloat. Every operation rounds to 16 bits, as the hardware types do.
#pragma once
#include "msl_base.h"

namespace metal {
// One float operation followed by one rounding is the correctly rounded 16-bit result for
// + - * / (24 >= 2 * 11 + 2), so a wrapper around float is exact, not an approximation.
#define MSL_16BIT_OPERATOR(T, op)                                           \
  friend MSL_FN T operator op(T a, T b) { return T((float)a op(float) b); } \
  friend MSL_FN float operator op(T a, float b) { return (float)a op b; }   \
  friend MSL_FN float operator op(float a, T b) { return a op(float) b; }   \
  template <class U, class = enable_if_t<is_integral_v<U>>>                 \
  friend MSL_FN T operator op(T a, U b) {                                   \
    return T((float)a op(float) b);                                         \
  }                                                                         \
  template <class U, class = enable_if_t<is_integral_v<U>>>                 \
  friend MSL_FN T operator op(U a, T b) {                                   \
    return T((float)a op(float) b);                                         \
  }                                                                         \
  MSL_FN T& operator op## = (T b) { return *this = *this op b; }

#define MSL_16BIT_TYPE(T, TO_FLOAT, FROM_FLOAT)                                       \
  struct T {                                                                          \
    unsigned short bits;                                                              \
    T() = default;                                                                    \
    MSL_FN T(float x) : bits(FROM_FLOAT(x)) {}                                        \
    template <class U, class = enable_if_t<is_integral_v<U> || is_same_v<U, double>>> \
    MSL_FN T(U x) : bits(FROM_FLOAT((float)x)) {}                                     \
    MSL_FN operator float() const { return TO_FLOAT(bits); }                          \
    MSL_FN T operator-() const {                                                      \
      T r;                                                                            \
      r.bits = bits ^ 0x8000;                                                         \
      return r;                                                                       \
    }                                                                                 \
    MSL_16BIT_OPERATOR(T, +)                                                          \
    MSL_16BIT_OPERATOR(T, -)                                                          \
    MSL_16BIT_OPERATOR(T, *)                                                          \
    MSL_16BIT_OPERATOR(T, /)                                                          \
  };

MSL_FN float msl_bfloat_to_float(unsigned short bits) {
  return as_type<float>((unsigned)bits << 16);
}
MSL_FN unsigned short msl_float_to_bfloat(float x) {  // nearest, ties to even; NaN stays NaN
  unsigned u = as_type<unsigned>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((u >> 16) | 0x40);
  return (unsigned short)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
MSL_16BIT_TYPE(bfloat, msl_bfloat_to_float, msl_float_to_bfloat)

#ifdef MSL_ON_CUDA
MSL_FN float msl_half_to_float(unsigned short bits) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
  return f;
}
MSL_FN unsigned short msl_float_to_half(float x) {
  // Not cvt.rn.f16.f32 into a 16-bit register: ptxas 13.0 then stores a wrong low byte when the two
  // bytes are stored one by one.
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
  return (unsigned short)pair;
}
MSL_16BIT_TYPE(half, msl_half_to_float, msl_float_to_half)
#else
using half = _Float16;  // compiled with -ffloat16-excess-precision=none
#endif
#undef MSL_16BIT_TYPE
#undef MSL_16BIT_OPERATOR

template <>
constexpr bool is_floating_point_v<half> = true;
template <>
constexpr bool is_floating_point_v<bfloat> = true;
template <class T>
constexpr bool msl_is_scalar = is_integral_v<T> || is_floating_point_v<T> || is_same_v<T, double>;

template <class T>
struct numeric_limits;
#define MSL_FLOAT_LIMITS(T, MAX, LOWEST, MIN, EPSILON, INF, QNAN) \
  template <>                                                     \
  struct numeric_limits<T> {                                      \
    static MSL_FN T max() { return as_type<T>(MAX); }             \
    static MSL_FN T lowest() { return as_type<T>(LOWEST); }       \
    static MSL_FN T min() { return as_type<T>(MIN); }             \
    static MSL_FN T epsilon() { return as_type<T>(EPSILON); }     \
    static MSL_FN T infinity() { return as_type<T>(INF); }        \
    static MSL_FN T quiet_NaN() { return as_type<T>(QNAN); }      \
  };
MSL_FLOAT_LIMITS(float, 0x7f7fffffu, 0xff7fffffu, 0x00800000u, 0x34000000u, 0x7f800000u,
                 0x7fc00000u)
MSL_FLOAT_LIMITS(half, (ushort)0x7bff, (ushort)0xfbff, (ushort)0x0400, (ushort)0x1400,
                 (ushort)0x7c00, (ushort)0x7e00)
MSL_FLOAT_LIMITS(bfloat, (ushort)0x7f7f, (ushort)0xff7f, (ushort)0x0080, (ushort)0x3c00,
                 (ushort)0x7f80, (ushort)0x7fc0)
#undef MSL_FLOAT_LIMITS
#define MSL_INT_LIMITS(T, MIN, MAX)                    \
  template <>                                          \
  struct numeric_limits<T> {                           \
    static MSL_FN constexpr T max() { return MAX; }    \
    static MSL_FN constexpr T min() { return MIN; }    \
    static MSL_FN constexpr T lowest() { return MIN; } \
  };
MSL_INT_LIMITS(signed char, -128, 127)
MSL_INT_LIMITS(unsigned char, 0, 255)
MSL_INT_LIMITS(short, -32768, 32767)
MSL_INT_LIMITS(unsigned short, 0, 65535)
MSL_INT_LIMITS(int, -2147483647 - 1, 2147483647)
MSL_INT_LIMITS(unsigned, 0, 4294967295u)
MSL_INT_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L)
MSL_INT_LIMITS(unsigned long, 0, 18446744073709551615UL)
#undef MSL_INT_LIMITS
}  // namespace metal

using metal::bfloat;
using metal::half;
#define MSL_HALF_LITERAL(x) ::metal::half(x##f)
#define MSL_BFLOAT_LITERAL(x) ::metal::bfloat(x##f)
#define HALF_MAX MSL_HALF_LITERAL(65504.0)
