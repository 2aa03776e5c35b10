// What the per-ISA kernels of softmax offer to cpu/softmax.cpp: rows of consecutive elements (inner == 1), and strips of
// columns (inner > 1). No ISA, no template, no threads.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace fusedact::cpu {

// The work space of a run, in the compute type: [channels] for rows, [channels + strip_vectors, width] for a strip, its
// width rounded up to strip_step.
inline constexpr int64_t strip_vectors = 4, strip_step = 64;

// `rows` softmaxes over `channels` elements each, one after the other.
struct SoftmaxRows {
  int64_t rows, channels;
  const void* x;
  const void* bias;  // [channels] in the compute type, or null
  void* y;           // may be x
  void* work;
  bool stream;
};
struct SoftmaxBackwardRows {
  int64_t rows, channels;
  const void *grad, *y;
  void* grad_x;
  void* sums;  // [channels] in the compute type, added to; null if nobody asked
  bool stream;
};

// `width` softmaxes over `channels` elements each, side by side; the channels are `pitch` elements apart.
struct SoftmaxStrip {
  int64_t channels, width, pitch;
  const void* x;
  const void* bias;
  void* y;
  void* work;
  bool stream;
};
struct SoftmaxBackwardStrip {
  int64_t channels, width, pitch;
  const void *grad, *y;
  void* grad_x;
  void* work;
  void* sums;
  bool stream;
};

struct SoftmaxKernels {
  void (*rows)(const SoftmaxRows&);
  void (*strip)(const SoftmaxStrip&);
  void (*backward_rows)(const SoftmaxBackwardRows&);
  void (*backward_strip)(const SoftmaxBackwardStrip&);
};

#define FUSEDACT_DECLARE_CAPABILITY(isa)           \
  namespace isa {                                  \
  SoftmaxKernels softmax_kernels(DType, bool log); \
  }
FUSEDACT_DECLARE_CAPABILITY(default_)
FUSEDACT_DECLARE_CAPABILITY(avx2)
FUSEDACT_DECLARE_CAPABILITY(avx512)
#undef FUSEDACT_DECLARE_CAPABILITY

}  // namespace fusedact::cpu
