// What the per-ISA kernels offer to drive.cpp: functions over a run of consecutive elements, one per activation and
// dtype, in tables. No ISA, no template; the loops are in loops.h, the threads and sums in drive.cpp.
#pragma once

#include "../kernels.h"

namespace fusedact::cpu {

// What meets the elements of a segment, in the compute type. A step of 1 walks along with the elements, a step of 0
// stays at lane_count equal values. The sums are added to, one per element; null if nobody asked.
struct Lane {
  const void* bias = nullptr;
  int bias_step = 0;
  const void* weight = nullptr;
  int weight_step = 0;
  void* bias_sum = nullptr;
  void* weight_sum = nullptr;
  bool stream = false;  // the results are larger than the caches: store past them
};
inline constexpr int lane_count = 64;  // the largest pack: AVX-512, float32

using ForwardSegment = void (*)(const ForwardArgs&, const Lane&, int64_t begin, int64_t count);
using BackwardSegment = void (*)(const BackwardArgs&, const Lane&, int64_t begin, int64_t count);
using DoubleBackwardSegment = void (*)(const DoubleBackwardArgs&, const Lane&, int64_t begin, int64_t count);

// [activation][dtype], in the orders of the type list and of DType; null where an activation has no such form.
using ForwardTable = const ForwardSegment (*)[dtype_count];
using BackwardTable = const BackwardSegment (*)[dtype_count];
using DoubleBackwardTable = const DoubleBackwardSegment (*)[dtype_count];

struct Kernels {
  const char* capability;
  ForwardTable forward;
  BackwardTable backward[3];              // by Saved
  DoubleBackwardTable double_backward[2];  // by Saved, without mask
};

// Chosen once, by cpuid and FUSEDACT_CPU_CAPABILITY.
const Kernels& kernels();

#define FUSEDACT_DECLARE_CAPABILITY(isa)                         \
  namespace isa {                                                \
  ForwardTable forward_table();                                  \
  BackwardTable backward_table(Saved);                           \
  DoubleBackwardTable double_backward_table(Saved);              \
  }
FUSEDACT_DECLARE_CAPABILITY(default_)
FUSEDACT_DECLARE_CAPABILITY(avx2)
FUSEDACT_DECLARE_CAPABILITY(avx512)
#undef FUSEDACT_DECLARE_CAPABILITY

}  // namespace fusedact::cpu
