// The contract between the softmax operators and their back ends. Knows nothing of torch or of SIMD.
#pragma once

#include "../kernels.h"

namespace fusedact {

// y = softmax or log_softmax of x + bias over the channels, for each outer and inner index.
// A row with NaN, with +inf, or of -inf only is NaN throughout, as torch's.
struct SoftmaxArgs {
  Shape shape;
  DType dtype = DType::float32;  // of x and y
  bool log = false;
  const void* x = nullptr;  // [outer, channels, inner]
  Vector bias;              // [channels], or absent
  void* y = nullptr;        // [outer, channels, inner]; may be x
  Parallel parallel;
};

// grad_x = y (grad - sum(grad y)), or grad - e^y sum(grad) for the logarithm; sums over the channels.
struct SoftmaxBackwardArgs {
  Shape shape;
  DType dtype = DType::float32;  // of grad, y and grad_x
  bool log = false;
  const void* grad = nullptr;  // [outer, channels, inner]
  const void* y = nullptr;     // [outer, channels, inner]
  void* grad_x = nullptr;      // [outer, channels, inner]; may be grad
  Sum grad_bias;               // [channels]
  Parallel parallel;
};

namespace cpu {
void softmax(const SoftmaxArgs&);
void softmax_backward(const SoftmaxBackwardArgs&);
}  // namespace cpu

namespace cuda {
void softmax(const SoftmaxArgs&, Stream);
int64_t workspace_bytes(const SoftmaxBackwardArgs&);
void softmax_backward(const SoftmaxBackwardArgs&, void* workspace, Stream);
}  // namespace cuda

}  // namespace fusedact
