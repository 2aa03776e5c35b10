// What the per-ISA kernels offer to gated.cpp: functions over a run of consecutive elements in the compute type, one per
// activation, in tables; and what takes pairs apart. No ISA, no template.
#pragma once

#include "../gated/kernels.h"
#include "segments.h"

namespace fusedact::cpu {

struct GatedRun {
  int64_t count;
  const void *gate, *value;
  Lane gate_bias, value_bias;
  const GatedScalars* scalars;
  void* y;
  bool stream;
  bool ahead = false;  // what is read is asked for before its turn
};

struct GatedBackwardRun {
  int64_t count;
  const void *grad, *gate, *value;
  Lane gate_bias, value_bias;
  const GatedScalars* scalars;
  void *grad_gate, *grad_value;
  void *gate_sum, *value_sum;  // added to, one per element; null if nobody asked
  bool stream;
  bool ahead = false;
};

// Between pairs (first, second, first, second, ...) and two runs.
using Split = void (*)(const void* pairs, void* first, void* second, int64_t count);
using Merge = void (*)(const void* first, const void* second, void* pairs, int64_t count, bool stream);

struct GatedKernels {
  Table<GatedRun> forward;
  Table<GatedBackwardRun> backward;
  Split split[2];  // by compute type: float, double
  Merge merge[2];
};

#define FUSEDACT_DECLARE_CAPABILITY(isa) \
  namespace isa {                        \
  GatedKernels gated_kernels();          \
  }
FUSEDACT_DECLARE_CAPABILITY(default_)
FUSEDACT_DECLARE_CAPABILITY(avx2)
FUSEDACT_DECLARE_CAPABILITY(avx512)
#undef FUSEDACT_DECLARE_CAPABILITY

}  // namespace fusedact::cpu
