// The elements that a thread holds: loads and stores of 16 bytes at a time, and the conversions between storage and
// compute type, each with one rounding.
//
// Knows no activation and no shape.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../kernels.h"

namespace fusedact::cuda {

#define FUSEDACT_DEVICE __device__ __forceinline__

using float32 = float;
using float64 = double;
using bfloat16 = __nv_bfloat16;
using float16 = __half;

// ---- one element ----------------------------------------------------------------------------------------------------

// To odd: the last bit says whether anything was cut off, so that a second rounding, to a shorter type, is the only one.
FUSEDACT_DEVICE float to_odd(double x) {
  const float f = __double2float_rz(x);
  return static_cast<double>(f) == x || x != x ? f : __uint_as_float(__float_as_uint(f) | 1u);
}

template <class C, class T>
FUSEDACT_DEVICE C widen(T x) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return static_cast<C>(__bfloat162float(x));
  } else if constexpr (std::is_same_v<T, float16>) {
    return static_cast<C>(__half2float(x));
  } else {
    return static_cast<C>(x);
  }
}
template <class T, class C>
FUSEDACT_DEVICE T narrow(C x) {
  if constexpr (sizeof(T) == 2 && sizeof(C) == 8) {
    return narrow<T>(to_odd(x));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, float16>) {
    return __float2half_rn(x);
  } else {
    return static_cast<T>(x);
  }
}

// One element of a vector in x's dtype T, or in float32 beside a 16-bit T.
template <class C, class T>
FUSEDACT_DEVICE C value_at(const Vector& v, uint32_t i) {
  if (sizeof(T) == 2 && v.dtype == DType::float32) return widen<C>(static_cast<const float*>(v.data)[i]);
  return widen<C>(static_cast<const T*>(v.data)[i]);
}
FUSEDACT_DEVICE void put(const Sum& sum, uint32_t i, double x) {
  switch (sum.dtype) {
    case DType::float32: static_cast<float*>(sum.data)[i] = narrow<float>(x); break;
    case DType::float64: static_cast<double*>(sum.data)[i] = x; break;
    case DType::bfloat16: static_cast<bfloat16*>(sum.data)[i] = narrow<bfloat16>(x); break;
    default: static_cast<float16*>(sum.data)[i] = narrow<float16>(x); break;
  }
}

// ---- several, in registers ------------------------------------------------------------------------------------------

template <class T, int count>
struct alignas(count * sizeof(T) < 16 ? count * sizeof(T) : 16) Pack {
  T v[count];
};

template <class T>
constexpr int per_thread = 16 / sizeof(T);

// No hint to stream: y is what the next operator reads, and x what backward will; where they are larger than the caches
// there is nothing to keep anyway. In place, x is y: so no read-only path either.
// `left` of them are there, the rest become 0; where that is at least `whole`, in one access. An array that is read through one aligned type stays one access.
template <class T, int n>
FUSEDACT_DEVICE Pack<T, n> load(const T* p, int32_t left, int32_t whole) {
  constexpr int pieces = n * sizeof(T) > 16 ? n * sizeof(T) / 16 : 1;
  Pack<T, n> x;
  if (left >= whole) {
    if constexpr (n * sizeof(T) >= 16) {
#pragma unroll
      for (int i = 0; i < pieces; ++i) reinterpret_cast<uint4*>(&x)[i] = reinterpret_cast<const uint4*>(p)[i];
    } else {
      x = *reinterpret_cast<const Pack<T, n>*>(p);
    }
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) x.v[i] = i < left ? p[i] : T(0.0f);
  }
  return x;
}
// An instruction by name: an assignment the compiler takes apart, and shares its parts with the other branch.
template <class T, int n>
FUSEDACT_DEVICE void store(T* p, const Pack<T, n>& x, int32_t left, int32_t whole) {
  constexpr int pieces = n * sizeof(T) > 16 ? n * sizeof(T) / 16 : 1;
  if (left >= whole) {
    if constexpr (n * sizeof(T) >= 16) {
#pragma unroll
      for (int i = 0; i < pieces; ++i) __stwb(reinterpret_cast<uint4*>(p) + i, reinterpret_cast<const uint4*>(&x)[i]);
    } else {
      *reinterpret_cast<Pack<T, n>*>(p) = x;
    }
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (i < left) p[i] = x.v[i];
  }
}

}  // namespace fusedact::cuda
