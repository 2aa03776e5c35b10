// What the per-ISA kernels of maxout offer to cpu/maxout.cpp. No ISA, no template, no threads.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace fusedact::cpu {

struct MaxoutRun {
  int64_t count;     // results
  int64_t pieces;    // compared for each of them
  int64_t step;      // from one piece to the next: 1, and results lie `pieces` apart; or more, and they are neighbours
  const void* x;     // [count, pieces], or [pieces, step]
  const void* bias;  // in the compute type, or null: [count, pieces], or [pieces]
  void* y;           // [count]
  uint8_t* indices;  // [count]
};

#define FUSEDACT_DECLARE_CAPABILITY(isa)          \
  namespace isa {                                 \
  void (*maxout_kernel(DType))(const MaxoutRun&); \
  }
FUSEDACT_DECLARE_CAPABILITY(default_)
FUSEDACT_DECLARE_CAPABILITY(avx2)
FUSEDACT_DECLARE_CAPABILITY(avx512)
#undef FUSEDACT_DECLARE_CAPABILITY

}  // namespace fusedact::cpu
