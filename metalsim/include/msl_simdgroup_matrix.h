// 8x8 simdgroup matrices. Each lane holds two neighbouring elements of a row, in the layout that
// MLX's kernels rely on; Apple does not document it, so a kernel should not either.
#pragma once
#include "msl_simdgroup.h"

namespace metal {
MSL_FN unsigned msl_fragment_row(unsigned lane) { return (lane / 4 & 4) + (lane / 2 & 3); }
MSL_FN unsigned msl_fragment_column(unsigned lane) { return (lane / 4 & 2) * 2 + (lane & 1) * 2; }
MSL_FN unsigned msl_fragment_lane(unsigned row, unsigned column) {
  const unsigned quad = (row & 4) | (column & 4) >> 1 | (row & 2) >> 1;
  return quad * 4 + (row & 1) * 2 + (column >> 1 & 1);
}

template <class T, int Columns = 8, int Rows = 8>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "only 8x8 simdgroup matrices exist");
  using storage_type = vec<T, 2>;
  storage_type msl_pair;
  simdgroup_matrix() = default;
  MSL_FN explicit simdgroup_matrix(T diagonal) {
    const unsigned lane = msl_lane(), row = msl_fragment_row(lane),
                   column = msl_fragment_column(lane);
    msl_pair = storage_type(row == column ? diagonal : T(0), row == column + 1 ? diagonal : T(0));
  }
  MSL_FN storage_type& thread_elements() { return msl_pair; }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class T, int Columns, int Rows = Columns>
MSL_FN simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> m;
  m.msl_pair = vec<T, 2>(value);
  return m;
}
template <class T>
MSL_FN ulong msl_fragment_offset(int i, ulong stride, ulong2 origin, bool transpose) {
  const unsigned lane = msl_lane();
  const ulong row = msl_fragment_row(lane), column = msl_fragment_column(lane) + i;
  return transpose ? (origin.y + column) * stride + origin.x + row
                   : (origin.y + row) * stride + origin.x + column;
}
template <class T, class Pointer>
MSL_FN void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, Pointer from, ulong stride = 8,
                           ulong2 origin = ulong2(0), bool transpose = false, MSL_SITE) {
  msl_converge(site, "simdgroup_load");
  for (int i = 0; i < 2; i++)
    m.msl_pair[i] = T(from[msl_fragment_offset<T>(i, stride, origin, transpose)]);
}
template <class T, class Pointer>
MSL_FN void simdgroup_store(simdgroup_matrix<T, 8, 8> m, Pointer to, ulong stride = 8,
                            ulong2 origin = ulong2(0), bool transpose = false, MSL_SITE) {
  msl_converge(site, "simdgroup_store");
  for (int i = 0; i < 2; i++)
    to[msl_fragment_offset<T>(i, stride, origin, transpose)] = m.msl_pair[i];
}

// d = a * b + c in float, accumulated over k in order; the order on a real GPU is not published.
template <class D, class A, class B, class C>
MSL_COLLECTIVE void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d,
                                                  simdgroup_matrix<A, 8, 8> a,
                                                  simdgroup_matrix<B, 8, 8> b,
                                                  simdgroup_matrix<C, 8, 8> c, MSL_SITE) {
  struct Operands {
    vec<A, 2> a;
    vec<B, 2> b;
  };
  Operands slot[32], mine;
  mine.a = a.msl_pair;
  mine.b = b.msl_pair;
  msl_gather(mine, slot, site, "simdgroup_multiply_accumulate");
  const unsigned lane = msl_lane(), row = msl_fragment_row(lane),
                 column = msl_fragment_column(lane);
  for (int i = 0; i < 2; i++) {
    float sum = (float)c.msl_pair[i];
    for (unsigned k = 0; k < 8; k++) {
      const float left = (float)slot[msl_fragment_lane(row, k)].a[k & 1];
      const float right = (float)slot[msl_fragment_lane(k, column)].b[i];
      sum = fma(left, right, sum);
    }
    d.msl_pair[i] = D(sum);
  }
}
template <class D, class A, class B>
MSL_FN void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                               simdgroup_matrix<B, 8, 8> b, MSL_SITE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), site);
}
}  // namespace metal
