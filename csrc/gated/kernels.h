// The contract of gated units between operators and back ends: y = a(gate) * (value + offset).
// Knows nothing of torch, of SIMD or of any activation's formula.
#pragma once

#include "../kernels.h"

namespace fusedact {

// Where gate and value of output element e lie: row * pitch + column * step from each one's first element, where
// row = e / length and column = e % length. Of two dense tensors: one row. Of two halves of a dim: rows of half that dim.
// With step 2 the elements alternate, gate and value are one element apart, and there is one row.
struct Halves {
  int64_t length = 0, pitch = 0;
  int step = 1;
};

// gate' = min(gate + bias, limit), value' = clamp(value + bias, -limit, limit), both as torch.clamp;
// y = act(alpha gate') / alpha * (value' + offset).
struct GatedScalars {
  const double* params = nullptr;  // [Activation::params]
  double alpha = 1.0, offset = 0.0, limit = 0.0;
  bool limited = false;
};

struct GatedForwardArgs {
  Shape shape;  // of y; the biases run along `channels`
  DType dtype = DType::float32;
  Halves halves;
  const void *gate = nullptr, *value = nullptr;  // [outer, channels, inner], as `halves` says
  Vector gate_bias, value_bias;                  // [channels], or absent
  GatedScalars scalars;
  void* y = nullptr;  // [outer, channels, inner]
  Parallel parallel;
};

// With v = value' + offset: grad_gate = grad * v * act'(alpha gate') where gate + bias <= limit, else 0;
// grad_value = grad * act(alpha gate') / alpha where |value + bias| <= limit, else 0.
struct GatedBackwardArgs {
  Shape shape;
  DType dtype = DType::float32;
  Halves halves;
  const void* grad = nullptr;  // [outer, channels, inner]
  const void *gate = nullptr, *value = nullptr;
  Vector gate_bias, value_bias;
  GatedScalars scalars;
  void *grad_gate = nullptr, *grad_value = nullptr;  // [outer, channels, inner], as `halves` says; no input's memory
  Sum grad_gate_bias, grad_value_bias;               // [channels]
  Parallel parallel;
};

namespace cpu {
void gated_forward(const Activation&, const GatedForwardArgs&);
void gated_backward(const Activation&, const GatedBackwardArgs&);
}  // namespace cpu

namespace cuda {
void gated_forward(const Activation&, const GatedForwardArgs&, Stream);
int64_t workspace_bytes(const Activation&, const GatedBackwardArgs&);
void gated_backward(const Activation&, const GatedBackwardArgs&, void* workspace, Stream);
}  // namespace cuda

}  // namespace fusedact
