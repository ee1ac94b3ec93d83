// Maths, integer and relational functions: scalar float and half, and component by component.
#pragma once
#include "msl_vec.h"

#ifdef MSL_ON_CUDA
#define MSL_LIBM(name) ::name
#define MSL_BITS(cuda, host) cuda
#else
#define MSL_LIBM(name) __builtin_##name
#define MSL_BITS(cuda, host) host
#endif

namespace metal {
#define MSL_MAP1(f)                             \
  template <class T, int N>                     \
  MSL_FN auto f(vec<T, N> v) {                  \
    vec<decltype(f(v[0])), N> r;                \
    for (int i = 0; i < N; i++) r[i] = f(v[i]); \
    return r;                                   \
  }
#define MSL_MAP2(f)                                   \
  template <class T, int N>                           \
  MSL_FN vec<T, N> f(vec<T, N> a, vec<T, N> b) {      \
    vec<T, N> r;                                      \
    for (int i = 0; i < N; i++) r[i] = f(a[i], b[i]); \
    return r;                                         \
  }
#define MSL_FLOAT1(f, expression)                \
  MSL_FN float f(float x) { return expression; } \
  MSL_FN half f(half h) {                        \
    float x = (float)h;                          \
    return half(expression);                     \
  }                                              \
  MSL_MAP1(f)
#define MSL_FLOAT2(f, expression)                         \
  MSL_FN float f(float x, float y) { return expression; } \
  MSL_FN half f(half a, half b) {                         \
    float x = (float)a, y = (float)b;                     \
    return half(expression);                              \
  }                                                       \
  MSL_MAP2(f)

MSL_FLOAT1(sqrt, MSL_LIBM(sqrtf)(x))
MSL_FLOAT1(rsqrt, 1.0f / MSL_LIBM(sqrtf)(x))
MSL_FLOAT1(exp, MSL_LIBM(expf)(x))
MSL_FLOAT1(exp2, MSL_LIBM(exp2f)(x))
MSL_FLOAT1(exp10, MSL_LIBM(powf)(10.0f, x))
MSL_FLOAT1(log, MSL_LIBM(logf)(x))
MSL_FLOAT1(log2, MSL_LIBM(log2f)(x))
MSL_FLOAT1(log10, MSL_LIBM(log10f)(x))
MSL_FLOAT1(sin, MSL_LIBM(sinf)(x))
MSL_FLOAT1(cos, MSL_LIBM(cosf)(x))
MSL_FLOAT1(tan, MSL_LIBM(tanf)(x))
MSL_FLOAT1(asin, MSL_LIBM(asinf)(x))
MSL_FLOAT1(acos, MSL_LIBM(acosf)(x))
MSL_FLOAT1(atan, MSL_LIBM(atanf)(x))
MSL_FLOAT1(sinh, MSL_LIBM(sinhf)(x))
MSL_FLOAT1(cosh, MSL_LIBM(coshf)(x))
MSL_FLOAT1(tanh, MSL_LIBM(tanhf)(x))
MSL_FLOAT1(floor, MSL_LIBM(floorf)(x))
MSL_FLOAT1(ceil, MSL_LIBM(ceilf)(x))
MSL_FLOAT1(trunc, MSL_LIBM(truncf)(x))
MSL_FLOAT1(rint, MSL_LIBM(rintf)(x))
MSL_FLOAT1(round, MSL_LIBM(roundf)(x))
MSL_FLOAT1(fabs, MSL_LIBM(fabsf)(x))
MSL_FLOAT1(fract, MSL_LIBM(fminf)(x - MSL_LIBM(floorf)(x), 0x1.fffffep-1f))
MSL_FLOAT1(saturate, MSL_LIBM(fminf)(MSL_LIBM(fmaxf)(x, 0.0f), 1.0f))
MSL_FLOAT1(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? x : 0.0f)
MSL_FLOAT2(pow, MSL_LIBM(powf)(x, y))
MSL_FLOAT2(powr, MSL_LIBM(powf)(x, y))
MSL_FLOAT2(atan2, MSL_LIBM(atan2f)(x, y))
MSL_FLOAT2(fmod, MSL_LIBM(fmodf)(x, y))
MSL_FLOAT2(copysign, MSL_LIBM(copysignf)(x, y))
MSL_FLOAT2(fmin, MSL_LIBM(fminf)(x, y))
MSL_FLOAT2(fmax, MSL_LIBM(fmaxf)(x, y))
MSL_FLOAT2(step, y < x ? 0.0f : 1.0f)
#undef MSL_FLOAT1
#undef MSL_FLOAT2

MSL_FN float ldexp(float x, int e) { return MSL_LIBM(ldexpf)(x, e); }
MSL_FN float fma(float a, float b, float c) { return MSL_LIBM(fmaf)(a, b, c); }
MSL_FN half fma(half a, half b, half c) {
#ifdef MSL_ON_CUDA
  half r;
  asm("fma.rn.f16 %0,%1,%2,%3;" : "=h"(r.bits) : "h"(a.bits), "h"(b.bits), "h"(c.bits));
  return r;
#else
  // The product is exact in double; one double addition then one rounding differs from a true
  // fused operation only when the addition lands exactly on a rounding tie.
  return half((double)a * (double)b + (double)c);
#endif
}
template <class T, int N>
MSL_FN vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r[i] = fma(a[i], b[i], c[i]);
  return r;
}

// ---- abs, min, max, clamp, select, mix: any scalar, mixed scalars promote as in an expression
// ----
template <class T, class = enable_if_t<is_integral_v<T>>>
MSL_FN T abs(T x) {
  return x < T(0) ? T(-x) : x;
}
MSL_FN float abs(float x) { return fabs(x); }
MSL_FN half abs(half x) { return fabs(x); }
MSL_MAP1(abs)
// fmin/fmax semantics for floats: the operand that is not NaN.
template <class T>
MSL_FN T msl_min(T a, T b) {
  return b < a || a != a ? b : a;
}
template <class T>
MSL_FN T msl_max(T a, T b) {
  return a < b || a != a ? b : a;
}
template <class A, class B, class = enable_if_t<msl_is_scalar<A> && msl_is_scalar<B>>>
using msl_common = conditional_t<is_same_v<A, B>, A, decltype(declval<A>() + declval<B>())>;
template <class A, class B, class T = msl_common<A, B>>
MSL_FN T min(A a, B b) {
  return msl_min<T>(T(a), T(b));
}
template <class A, class B, class T = msl_common<A, B>>
MSL_FN T max(A a, B b) {
  return msl_max<T>(T(a), T(b));
}
template <class A, class B, class C, class T = msl_common<A, msl_common<B, C>>>
MSL_FN T clamp(A x, B lo, C hi) {
  return msl_min<T>(msl_max<T>(T(x), T(lo)), T(hi));
}
template <class A, class B, class T = msl_common<A, B>>
MSL_FN T select(A a, B b, bool c) {
  return c ? T(b) : T(a);
}
MSL_MAP2(min)
MSL_MAP2(max)
template <class T, int N>
MSL_FN vec<T, N> min(vec<T, N> a, T b) {
  return min(a, vec<T, N>(b));
}
template <class T, int N>
MSL_FN vec<T, N> max(vec<T, N> a, T b) {
  return max(a, vec<T, N>(b));
}
template <class T, int N>
MSL_FN vec<T, N> clamp(vec<T, N> x, vec<T, N> lo, vec<T, N> hi) {
  return min(max(x, lo), hi);
}
template <class T, int N>
MSL_FN vec<T, N> clamp(vec<T, N> x, T lo, T hi) {
  return min(max(x, lo), hi);
}
template <class T, int N>
MSL_FN vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r[i] = c[i] ? b[i] : a[i];
  return r;
}
MSL_FN float mix(float a, float b, float t) { return a + (b - a) * t; }
template <class T, int N>
MSL_FN vec<T, N> mix(vec<T, N> a, vec<T, N> b, vec<T, N> t) {
  return a + (b - a) * t;
}

// ---- integers ---------------------------------------------------------------------------------
template <class T, class = enable_if_t<is_integral_v<T>>>
MSL_FN T popcount(T x) {
  constexpr ulong mask = sizeof(T) == 8 ? ~0ul : (1ul << (8 * (sizeof(T) & 7))) - 1;
  return T(MSL_BITS(__popcll, __builtin_popcountl)((ulong)x & mask));
}
template <class T, class = enable_if_t<is_integral_v<T>>>
MSL_FN T ctz(T x) {
  return x ? T(MSL_BITS(__ffsll((ulong)x) - 1, __builtin_ctzl((ulong)x))) : T(8 * sizeof(T));
}
template <class T, class = enable_if_t<is_integral_v<T>>>
MSL_FN T clz(T x) {
  constexpr ulong mask = sizeof(T) == 8 ? ~0ul : (1ul << (8 * (sizeof(T) & 7))) - 1;
  if (!x) return T(8 * sizeof(T));
  return T(MSL_BITS(__clzll((ulong)x & mask), __builtin_clzl((ulong)x & mask)) -
           (64 - 8 * (int)sizeof(T)));
}
MSL_MAP1(popcount)
MSL_MAP1(ctz)
MSL_MAP1(clz)
template <class T, class = enable_if_t<is_integral_v<T>>>
MSL_FN T extract_bits(T x, uint offset, uint bits) {
  constexpr uint width = 8 * sizeof(T);
  if (!bits) return T(0);
  T high = T(x << (width - offset - bits));
  return T(high >> (width - bits));
}
MSL_FN int mulhi(int a, int b) { return (int)(((int64_t)a * b) >> 32); }
MSL_FN uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
MSL_FN uint rotate(uint x, uint by) { return x << (by & 31) | x >> (-by & 31); }
MSL_FN uint reverse_bits(uint x) {
  uint r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
  return r;
}

// ---- relational and geometric -----------------------------------------------------------------
MSL_FN bool isnan(float x) { return x != x; }
MSL_FN bool isinf(float x) { return (as_type<uint>(x) & 0x7fffffffu) == 0x7f800000u; }
MSL_FN bool isfinite(float x) { return (as_type<uint>(x) & 0x7f800000u) != 0x7f800000u; }
MSL_FN bool isnormal(float x) { return isfinite(x) && (as_type<uint>(x) & 0x7f800000u) != 0; }
MSL_FN bool signbit(float x) { return as_type<uint>(x) >> 31; }
MSL_MAP1(isnan)
MSL_MAP1(isinf)
MSL_MAP1(isfinite)
template <int N>
MSL_FN bool any(vec<bool, N> v) {
  bool r = false;
  for (int i = 0; i < N; i++) r = r || v[i];
  return r;
}
template <int N>
MSL_FN bool all(vec<bool, N> v) {
  return !any(!v);
}
template <class T, int N>
MSL_FN T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; i++) sum = sum + a[i] * b[i];
  return sum;
}
template <class T, int N>
MSL_FN T length_squared(vec<T, N> v) {
  return dot(v, v);
}
template <class T, int N>
MSL_FN T length(vec<T, N> v) {
  return sqrt(dot(v, v));
}
template <class T, int N>
MSL_FN vec<T, N> normalize(vec<T, N> v) {
  return v * vec<T, N>(rsqrt(dot(v, v)));
}
template <class T>
MSL_FN vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
  return vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}
#undef MSL_MAP1
#undef MSL_MAP2

// Both variants are the accurate one here: Apple's fast versions differ by an unpublished amount.
#define MSL_VARIANTS                                                                             \
  using metal::abs, metal::acos, metal::asin, metal::atan, metal::atan2, metal::ceil,            \
      metal::clamp, metal::cos, metal::cosh, metal::exp, metal::exp10, metal::exp2, metal::fabs, \
      metal::floor, metal::fma, metal::fmax, metal::fmin, metal::fmod, metal::fract, metal::log, \
      metal::log10, metal::log2, metal::max, metal::min, metal::pow, metal::powr, metal::rint,   \
      metal::round, metal::rsqrt, metal::sin, metal::sinh, metal::sqrt, metal::tan, metal::tanh, \
      metal::trunc;
namespace precise {
MSL_VARIANTS
}
namespace fast {
MSL_VARIANTS
}
#undef MSL_VARIANTS
}  // namespace metal
