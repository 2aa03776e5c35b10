// What the per-ISA code offers to gated.cpp beside the runs of the activations: what happens around an activation in a gated
// unit, over a run of consecutive elements in the compute type. No ISA, no template.
#pragma once

#include "segments.h"

namespace fusedact::cpu {

// t = alpha * min(x + bias, limit)
struct GateRun {
  int64_t count;
  const void* x;
  Lane bias;
  double alpha, limit;
  void* t;
};

// y = scale * a * (value' + offset), value' = value + bias, within [-limit, limit] if limited
struct GatedRun {
  int64_t count;
  const void *a, *value;
  Lane bias;
  double scale, offset, limit;
  bool limited;
  void* y;
  bool stream;
};

// grad_a = grad * (value' + offset) and grad_value = grad * scale * a. If limited: 0 where the clamps hold, and there t
// becomes 1, where every derivative is finite, so that grad_a stays 0.
struct GatedBackwardRun {
  int64_t count;
  const void *grad, *a, *gate, *value;
  Lane gate_bias, value_bias;
  double scale, offset, limit;
  bool limited;
  void* t;  // read and written if limited
  void *grad_a, *grad_value;
  void* value_sum;  // grad_value is added to it, one per element; null if nobody asked
  bool stream;      // of grad_value
};

// Between pairs (first, second, first, second, ...) and two runs.
using Split = void (*)(const void* pairs, void* first, void* second, int64_t count);
using Merge = void (*)(const void* first, const void* second, void* pairs, int64_t count, bool stream);

struct GatedKernels {
  void (*gate)(const GateRun&);
  void (*forward)(const GatedRun&);
  void (*backward)(const GatedBackwardRun&);
  Split split;
  Merge merge;
};

#define FUSEDACT_DECLARE_CAPABILITY(isa)      \
  namespace isa {                             \
  GatedKernels gated_kernels(bool in_double); \
  }
FUSEDACT_DECLARE_CAPABILITY(default_)
FUSEDACT_DECLARE_CAPABILITY(avx2)
FUSEDACT_DECLARE_CAPABILITY(avx512)
#undef FUSEDACT_DECLARE_CAPABILITY

}  // namespace fusedact::cpu
