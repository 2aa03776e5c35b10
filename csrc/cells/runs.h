// What the per-ISA kernels of the cells offer to cpu/cells.cpp: functions over a few rows. No ISA, no template, no threads.
// Biases and sums are in the compute type; null where there are none.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace fusedact::cpu {

struct LstmRun {
  int64_t rows, hidden;
  const void *gates, *bias, *c;
  void *h, *c_new;
};
struct LstmBackwardRun {
  int64_t rows, hidden;
  const void *grad_h, *grad_c_new, *gates, *bias, *c;
  void *grad_gates, *grad_c;
  void* sums;  // [4, hidden], added to
};
struct GruRun {
  int64_t rows, hidden;
  const void *input_gates, *hidden_gates, *input_bias, *hidden_bias, *h;
  void* h_new;
};
struct GruBackwardRun {
  int64_t rows, hidden;
  const void *grad, *input_gates, *hidden_gates, *input_bias, *hidden_bias, *h;
  void *grad_input_gates, *grad_hidden_gates, *grad_h;
  void* sums;  // [4, hidden]: of r, z, input_n and hidden_n, added to
};

struct CellKernels {
  void (*lstm)(const LstmRun&);
  void (*lstm_backward)(const LstmBackwardRun&);
  void (*gru)(const GruRun&);
  void (*gru_backward)(const GruBackwardRun&);
};

#define FUSEDACT_DECLARE_CAPABILITY(isa) \
  namespace isa {                        \
  CellKernels cell_kernels(DType);       \
  }
FUSEDACT_DECLARE_CAPABILITY(default_)
FUSEDACT_DECLARE_CAPABILITY(avx2)
FUSEDACT_DECLARE_CAPABILITY(avx512)
#undef FUSEDACT_DECLARE_CAPABILITY

}  // namespace fusedact::cpu
