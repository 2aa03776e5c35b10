// What the drivers of every operator share: which table has a dtype's launchers, what may be loaded 16 bytes at a time, and
// how sums of units lie.
//
// Knows no activation, no CUDA syntax and no torch.
#pragma once

#include <initializer_list>
#include <stdexcept>

#include "tables.h"

namespace fusedact::cuda {

inline int size_of(DType t) { return t == DType::float64 ? 8 : t == DType::float32 ? 4 : 2; }
inline bool wide(const Activation& a, DType t) { return t == DType::float64 || a.wide; }
inline bool per_channel(const Vector& v) { return v.extent == Extent::channel; }

inline bool aligned(int bytes, std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) return false;
  return true;
}
inline const void* own(const Vector& v) { return v.extent == Extent::full ? v.data : nullptr; }

inline void check(const Shape& s) {
  if (s.channels > INT32_MAX) throw std::invalid_argument("fusedact: more than 2^31 - 1 channels on CUDA");
}

#define FUSEDACT_OF_STORAGE(dtype, name)               \
  (dtype == DType::float32    ? float32_kernels::name  \
   : dtype == DType::float64  ? float64_kernels::name  \
   : dtype == DType::bfloat16 ? bfloat16_kernels::name \
                              : float16_kernels::name)

// Sums of units as [outer, channels, inner].
inline Shape partial_shape(const Shape& s, const Tiles& t, bool one) {
  if (one) return {1, 1, t.partials()};
  if (t.along) return {t.partials() / (s.channels * s.inner), s.channels, s.inner};
  return {s.outer, s.channels, t.across};
}
inline int64_t bytes_of(const Tiles& t, bool wide) { return (t.partials() * (wide ? 8 : 4) + 15) / 16 * 16; }

// sum[c] = sum of x over all but the channels: a pass of its own, for gradients of biases that no kernel adds up on the way.
int64_t sum_bytes(const Shape&, DType, const void* x);
void sum_channels(const Shape&, DType, const void* x, const Sum&, void* workspace, Stream);

}  // namespace fusedact::cuda
