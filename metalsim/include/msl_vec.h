// Vectors, packed vectors and small matrices.
#pragma once
#include "msl_half.h"

namespace metal {
template <class T, int N>
struct vec;

// The target vector is a template argument so that argument-dependent look-up finds its operators.
template <class V, class T, int W, int... I>
struct swizzle {
  T d[W];
  MSL_FN operator V() const { return V(d[I]...); }
  MSL_FN swizzle& operator=(V v) {
    int from = 0;
    ((d[I] = v[from++]), ...);
    return *this;
  }
  MSL_FN swizzle& operator=(const swizzle& o) { return *this = V(o); }
};

template <class T, int N>
struct vec_data;
template <class T>
struct alignas(2 * sizeof(T)) vec_data<T, 2> {
  using v2 = vec<T, 2>;
  union {
    T d[2];
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    swizzle<v2, T, 2, 0, 1> xy;
    swizzle<v2, T, 2, 1, 0> yx;
  };
};
template <class T>
struct alignas(4 * sizeof(T)) vec_data<T, 3> {
  using v2 = vec<T, 2>;
  union {
    T d[4];
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    swizzle<v2, T, 4, 0, 1> xy;
    swizzle<v2, T, 4, 1, 2> yz;
    swizzle<v2, T, 4, 0, 2> xz;
  };
};
template <class T>
struct alignas(4 * sizeof(T)) vec_data<T, 4> {
  using v2 = vec<T, 2>;
  using v3 = vec<T, 3>;
  union {
    T d[4];
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    swizzle<v2, T, 4, 0, 1> xy;
    swizzle<v2, T, 4, 2, 3> zw;
    swizzle<v2, T, 4, 1, 2> yz;
    swizzle<v2, T, 4, 0, 2> xz;
    swizzle<v2, T, 4, 1, 3> yw;
    swizzle<v3, T, 4, 0, 1, 2> xyz;
    swizzle<v3, T, 4, 1, 2, 3> yzw;
  };
};

template <class A>
struct msl_width {
  static constexpr int value = 1;
};
template <class T, int N>
struct msl_width<vec<T, N>> {
  static constexpr int value = N;
};
template <class V, class T, int W, int... I>
struct msl_width<swizzle<V, T, W, I...>> {
  static constexpr int value = sizeof...(I);
};

#define MSL_VEC_OPERATOR(op)                                  \
  friend MSL_FN vec operator op(vec a, vec b) {               \
    vec r;                                                    \
    for (int i = 0; i < N; i++) r.d[i] = T(a.d[i] op b.d[i]); \
    return r;                                                 \
  }                                                           \
  friend MSL_FN vec& operator op## = (vec & a, vec b) { return a = a op b; }
#define MSL_VEC_COMPARISON(op)                             \
  friend MSL_FN vec<bool, N> operator op(vec a, vec b) {   \
    vec<bool, N> r;                                        \
    for (int i = 0; i < N; i++) r.d[i] = a.d[i] op b.d[i]; \
    return r;                                              \
  }

template <class T, int N>
struct vec : vec_data<T, N> {
  using vec_data<T, N>::d;
  vec() = default;
  vec(const vec&) = default;
  template <class U, class = enable_if_t<msl_is_scalar<U>>>
  MSL_FN vec(U u) {
    for (int i = 0; i < N; i++) d[i] = T(u);
  }
  template <class U, class = enable_if_t<!is_same_v<U, T>>>
  MSL_FN explicit vec(const vec<U, N>& o) {
    for (int i = 0; i < N; i++) d[i] = T(o.d[i]);
  }
  template <
      class A, class B, class... More,
      class = enable_if_t<
          msl_width<A>::value + msl_width<B>::value + (msl_width<More>::value + ... + 0) == N>>
  MSL_FN vec(A first, B second, More... more) {
    int at = 0;
    put(at, first);
    put(at, second);
    (put(at, more), ...);
  }
  // A loop, not `= default`: the swizzle members make the implicit one ill-formed.
  MSL_FN vec& operator=(const vec& o) {
    for (int i = 0; i < N; i++) d[i] = o.d[i];
    return *this;
  }
  MSL_FN T& operator[](int i) { return d[i]; }
  MSL_FN const T& operator[](int i) const { return d[i]; }
  MSL_FN vec operator-() const {
    vec r;
    for (int i = 0; i < N; i++) r.d[i] = T(-d[i]);
    return r;
  }
  MSL_FN vec operator~() const {
    vec r;
    for (int i = 0; i < N; i++) r.d[i] = T(~d[i]);
    return r;
  }
  MSL_FN vec operator!() const {
    vec r;
    for (int i = 0; i < N; i++) r.d[i] = !d[i];
    return r;
  }
  MSL_VEC_OPERATOR(+)
  MSL_VEC_OPERATOR(-)
  MSL_VEC_OPERATOR(*)
  MSL_VEC_OPERATOR(/)
  MSL_VEC_OPERATOR(%)
  MSL_VEC_OPERATOR(&)
  MSL_VEC_OPERATOR(|)
  MSL_VEC_OPERATOR(^)
  MSL_VEC_OPERATOR(<<)
  MSL_VEC_OPERATOR(>>)
  MSL_VEC_COMPARISON(<)
  MSL_VEC_COMPARISON(>)
  MSL_VEC_COMPARISON(<=)
  MSL_VEC_COMPARISON(>=)
  MSL_VEC_COMPARISON(==)
  MSL_VEC_COMPARISON(!=)

 private:
  template <class U>
  MSL_FN void put(int& at, U u) {
    d[at++] = T(u);
  }
  template <class U, int M>
  MSL_FN void put(int& at, const vec<U, M>& u) {
    for (int i = 0; i < M; i++) d[at++] = T(u.d[i]);
  }
  template <class V, class U, int W, int... I>
  MSL_FN void put(int& at, const swizzle<V, U, W, I...>& s) {
    put(at, V(s));
  }
};
#undef MSL_VEC_OPERATOR
#undef MSL_VEC_COMPARISON

// ---- packed vectors: the same components with the alignment of one ----------------------------
template <class T, int N>
struct packed_data;
template <class T>
struct packed_data<T, 2> {
  union {
    T d[2];
    struct {
      T x, y;
    };
  };
};
template <class T>
struct packed_data<T, 3> {
  union {
    T d[3];
    struct {
      T x, y, z;
    };
  };
};
template <class T>
struct packed_data<T, 4> {
  union {
    T d[4];
    struct {
      T x, y, z, w;
    };
  };
};
template <class T, int N>
struct packed_vec : packed_data<T, N> {
  using packed_data<T, N>::d;
  packed_vec() = default;
  MSL_FN packed_vec(vec<T, N> v) {
    for (int i = 0; i < N; i++) d[i] = v.d[i];
  }
  MSL_FN operator vec<T, N>() const {
    vec<T, N> r;
    for (int i = 0; i < N; i++) r.d[i] = d[i];
    return r;
  }
  MSL_FN T& operator[](int i) { return d[i]; }
  MSL_FN const T& operator[](int i) const { return d[i]; }
};

// ---- column-major matrices --------------------------------------------------------------------
template <class T, int C, int R>
struct matrix {
  vec<T, R> columns[C];
  matrix() = default;
  template <class... A, class = enable_if_t<sizeof...(A) == C && (C > 1)>>
  MSL_FN explicit matrix(A... a) : columns{a...} {}
  MSL_FN explicit matrix(T diagonal) {
    for (int c = 0; c < C; c++)
      for (int r = 0; r < R; r++) columns[c][r] = c == r ? diagonal : T(0);
  }
  MSL_FN vec<T, R>& operator[](int c) { return columns[c]; }
  MSL_FN const vec<T, R>& operator[](int c) const { return columns[c]; }
};
template <class T, int C, int R>
MSL_FN vec<T, R> operator*(const matrix<T, C, R>& m, vec<T, C> v) {
  vec<T, R> sum = m[0] * vec<T, R>(v[0]);
  for (int c = 1; c < C; c++) sum += m[c] * vec<T, R>(v[c]);
  return sum;
}
template <class T, int C, int R>
MSL_FN vec<T, C> operator*(vec<T, R> v, const matrix<T, C, R>& m) {
  vec<T, C> result;
  for (int c = 0; c < C; c++) {
    T sum = v[0] * m[c][0];
    for (int r = 1; r < R; r++) sum = sum + v[r] * m[c][r];
    result[c] = sum;
  }
  return result;
}
}  // namespace metal

// ---- the keyword-like type names --------------------------------------------------------------
#define MSL_NAME_VECTOR(T, N)             \
  namespace metal {                       \
  using T##N = vec<T, N>;                 \
  using packed_##T##N = packed_vec<T, N>; \
  }                                       \
  using metal::T##N;                      \
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
#define MSL_NAME_MATRIX(T, C, R)      \
  namespace metal {                   \
  using T##C##x##R = matrix<T, C, R>; \
  }                                   \
  using metal::T##C##x##R;
#define MSL_NAME_MATRICES(T)                                                 \
  MSL_NAME_MATRIX(T, 2, 2)                                                   \
  MSL_NAME_MATRIX(T, 2, 3)                                                   \
  MSL_NAME_MATRIX(T, 2, 4)                                                   \
  MSL_NAME_MATRIX(T, 3, 2) MSL_NAME_MATRIX(T, 3, 3) MSL_NAME_MATRIX(T, 3, 4) \
      MSL_NAME_MATRIX(T, 4, 2) MSL_NAME_MATRIX(T, 4, 3) MSL_NAME_MATRIX(T, 4, 4)
MSL_NAME_MATRICES(float)
MSL_NAME_MATRICES(half)
