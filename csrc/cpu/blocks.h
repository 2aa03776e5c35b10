// Storage and compute types: elements of one dtype, seen a block at a time in the type that they are computed in.
//
// Knows no activation, no SIMD and no torch.
#pragma once

#include "segments.h"

namespace fusedact::cpu {

inline int64_t size_of(DType t) { return t == DType::float64 ? 8 : t == DType::float32 ? 4 : 2; }

inline const char* offset(const void* p, int64_t elements, DType t) {
  return static_cast<const char*>(p) + elements * size_of(t);
}
inline char* offset(void* p, int64_t elements, DType t) { return static_cast<char*>(p) + elements * size_of(t); }

inline Lane advanced(Lane lane, int64_t elements, int64_t size) {
  if (lane.step) lane.values = static_cast<const char*>(lane.values) + elements * size;
  return lane;
}

// Elements of one dtype as runs see them: in place if that is how they are stored, else in the compute type C, a block at a time
// through buffers that stay in the first-level cache.
template <class C, int inputs, int outputs>
class Blocks {
 public:
  Blocks(DType dtype, DType seen)
      : dtype_(dtype),
        widen_(dtype == seen ? nullptr : kernels().widen[static_cast<int>(dtype)][sizeof(C) == 8]),
        narrow_(dtype == seen ? nullptr : kernels().narrow[static_cast<int>(dtype)][sizeof(C) == 8]) {}

  // Calls body(inputs, outputs, done, count, stream), of C, until `count` elements from `at` on are done.
  template <class Body>
  void over(const void* const (&in)[inputs], void* const (&out)[outputs], int64_t at, int64_t count, bool stream,
            Body body) const {
    const void* from[inputs];
    void* to[outputs];
    if (!widen_) {
      for (int k = 0; k < inputs; ++k) from[k] = in[k] ? offset(in[k], at, dtype_) : nullptr;
      for (int k = 0; k < outputs; ++k) to[k] = offset(out[k], at, dtype_);
      return body(from, to, int64_t{0}, count, stream);
    }
    constexpr int64_t block = 512;
    alignas(64) C wide[inputs + outputs][block];
    for (int64_t done = 0; done < count; done += block) {
      const int64_t n = std::min(block, count - done);
      for (int k = 0; k < inputs; ++k) {
        from[k] = wide[k];
        if (in[k]) widen_(offset(in[k], at + done, dtype_), wide[k], n, false);
      }
      for (int k = 0; k < outputs; ++k) to[k] = wide[inputs + k];
      body(from, to, done, n, false);
      for (int k = 0; k < outputs; ++k) narrow_(to[k], offset(out[k], at + done, dtype_), n, stream);
    }
  }

  bool converts() const { return widen_ != nullptr; }

 private:
  DType dtype_;
  Convert widen_, narrow_;
};

}  // namespace fusedact::cpu
