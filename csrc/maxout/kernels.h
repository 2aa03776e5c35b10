// The contract between the maxout operators and their back ends. Knows nothing of torch or of SIMD.
#pragma once

#include "../kernels.h"

namespace fusedact {

inline constexpr int64_t most_pieces = 256;  // an index is a byte

// y[o] = max over j of (x + bias)[o pieces + j], and which j that was: the first of equals, the first NaN if there is one.
struct MaxoutArgs {
  Shape shape;  // of x; channels is a multiple of pieces
  int64_t pieces = 1;
  DType dtype = DType::float32;  // of x and y
  const void* x = nullptr;       // [outer, channels, inner]
  Vector bias;                   // [channels], or absent
  void* y = nullptr;             // [outer, channels / pieces, inner]
  uint8_t* indices = nullptr;    // [outer, channels / pieces, inner]
  Parallel parallel;
};

struct MaxoutBackwardArgs {
  Shape shape;  // of grad_x
  int64_t pieces = 1;
  DType dtype = DType::float32;      // of grad and grad_x
  const void* grad = nullptr;        // [outer, channels / pieces, inner]
  const uint8_t* indices = nullptr;  // [outer, channels / pieces, inner]
  void* grad_x = nullptr;            // [outer, channels, inner]
  Sum grad_bias;                     // [channels]
  Parallel parallel;
};

namespace cpu {
void maxout(const MaxoutArgs&);
void maxout_backward(const MaxoutBackwardArgs&);
}  // namespace cpu

namespace cuda {
void maxout(const MaxoutArgs&, Stream);
int64_t workspace_bytes(const MaxoutBackwardArgs&);
void maxout_backward(const MaxoutBackwardArgs&, void* workspace, Stream);
}  // namespace cuda

}  // namespace fusedact
