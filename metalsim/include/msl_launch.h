// What both back ends that run kernels share: no address spaces, and the arguments of launchers.
#pragma once
#include "msl_math.h"

#define MSL_AS_device
#define MSL_AS_constant
#define MSL_AS_thread
#define MSL_AS_threadgroup

struct msl_pointer_argument {
  void* p;
  template <class T>
  MSL_FN operator T*() const {
    return (T*)p;
  }
};
struct msl_reference_argument {
  void* p;
  template <class T>
  MSL_FN operator T&() const {
    return *(T*)p;
  }
};
template <class Three>
struct msl_builtin_of {
  Three v;
  MSL_FN operator uint() const { return v[0]; }
  MSL_FN operator ushort() const { return (ushort)v[0]; }
  MSL_FN operator uint2() const { return uint2(v[0], v[1]); }
  MSL_FN operator uint3() const { return uint3(v[0], v[1], v[2]); }
  MSL_FN operator ushort2() const { return ushort2(v[0], v[1]); }
  MSL_FN operator ushort3() const { return ushort3(v[0], v[1], v[2]); }
};
