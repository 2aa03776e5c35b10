// What the per-ISA kernels of the statistics offer to cpu/statistics.h: columns of a block that lies in the first-level cache,
// each with sums of its own. No ISA, no template, no threads.
//
// A column is added up from its first row to its last, in float64: the bits depend neither on the width of a vector nor on
// the processor. (Squares of float32 are exact in float64 and cannot overflow there; shifting or compensating has nothing
// left to win.)
#pragma once

#include "../cpu/segments.h"

namespace fusedact::cpu {

// T is float or double, I the signed integer of its size.

inline constexpr int histogram_copies = 8, histogram_stride = 68;  // the last bins: NaN, and nothing

struct InputRun {
  int64_t columns, rows, pitch;
  const void* x;  // T [rows, pitch]
  Lane bias;      // T
  const double* zones;
  int64_t zone_count;
  void* saturated;      // I [columns]
  uint32_t* histogram;  // [histogram_copies, histogram_stride], or null
};

struct OutputRun {
  int64_t columns, rows, pitch;
  const void* y;          // T [rows, pitch]
  double *sum, *squares;  // [columns]
  double *nan, *inf;      // [columns]
  void* zeros;            // I [columns]
  void *least, *largest;  // T [columns]
};

struct GradientRun {
  int64_t columns, rows, pitch;
  const void* grad;           // T [rows, pitch]
  double* squares = nullptr;  // [columns]
  void* zeros = nullptr;      // I [columns]
};

struct StatisticsRuns {
  void (*input)(const InputRun&);
  void (*output)(const OutputRun&);
  void (*gradient)(const GradientRun&);
};

#define FUSEDACT_DECLARE_CAPABILITY(isa)          \
  namespace isa {                                 \
  StatisticsRuns statistics_runs(bool in_double); \
  }
FUSEDACT_DECLARE_CAPABILITY(default_)
FUSEDACT_DECLARE_CAPABILITY(avx2)
FUSEDACT_DECLARE_CAPABILITY(avx512)
#undef FUSEDACT_DECLARE_CAPABILITY

}  // namespace fusedact::cpu
