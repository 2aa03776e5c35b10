// What the per-ISA kernels of the epilogue offer to epilogue.cpp: functions over a run of consecutive elements in the
// compute type, between which the runs of an activation (segments.h) stand. No ISA, no template.
#pragma once

#include "../epilogue/kernels.h"
#include "segments.h"

namespace fusedact::cpu {

// out = a * b
struct MultiplyRun {
  int64_t count;
  const void* a;
  Lane b;
  void* out;
};

// y = a * mask + residual; a lane of ones, or of -0, for what is absent
struct FinishRun {
  int64_t count;
  const void* a;
  Lane mask, residual;
  void* y;
  bool stream;
};

// grad_x = r * scale + ((x - center) * slope + offset), without the bracket if slope.values is null;
// scale_sum += r * (x - center), one per element
struct GatherRun {
  int64_t count;
  const void *r, *x;  // x is null where neither bracket nor sum is asked for
  Lane scale, center, slope, offset;
  void* grad_x;     // null if not asked for
  void* scale_sum;  // null if not asked for
  bool stream;
};

// sum += x - shift, square += (x - shift)^2 in float64, over `rows` runs of `count` elements, `pitch` apart: one sum for
// each column, or, where the shift stands still (rows is 1 then), one for all. Not more elements than float32 can sum up.
struct MomentsRun {
  int64_t count, rows, pitch;
  const void* x;  // of the storage type
  Lane shift;
  double *sum, *square;
};

// The factors of elements [first, first + count).
struct MaskRun {
  const Dropout* dropout;
  int64_t first, count;
  void* mask;
};

// By compute type: float, double. `moments` by storage type.
struct EpilogueKernels {
  void (*multiply[2])(const MultiplyRun&);
  void (*finish[2])(const FinishRun&);
  void (*gather[2])(const GatherRun&);
  void (*mask[2])(const MaskRun&);
  void (*moments[dtype_count])(const MomentsRun&);
};

namespace default_ {
EpilogueKernels epilogue_kernels();
}
namespace avx2 {
EpilogueKernels epilogue_kernels();
}
namespace avx512 {
EpilogueKernels epilogue_kernels();
}

}  // namespace fusedact::cpu
