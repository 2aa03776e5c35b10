// What the .cu files offer to drive.cpp: launchers, one per activation, in a table per storage type; and the second stage
// of sums. Like cpu/segments.h: no template, and no CUDA syntax.
#pragma once

#include "tiles.h"

namespace fusedact {
struct GatedForwardArgs;
struct GatedBackwardArgs;
struct EpilogueArgs;
struct EpilogueBackwardArgs;
}  // namespace fusedact

namespace fusedact::cuda {

// Where the units of a pass leave their sums, in the compute type; null if nobody asked.
struct Partials {
  void* bias = nullptr;
  void* weight = nullptr;
};

using ForwardLaunch = void (*)(const ForwardArgs&, const Tiles&, Stream);
using BackwardLaunch = void (*)(const BackwardArgs&, const Tiles&, const Partials&, Stream);
// The halves of a gated unit beside the cut of its result.
struct Sides {
  int64_t length = 1;  // of a half's row
  bool two = false;    // gate and value are tensors of their own, and lie as the result
  bool pairs = false;  // they alternate
  bool whole = false;  // a thread's elements can be had 16 bytes at a time
};
using GatedLaunch = void (*)(const GatedForwardArgs&, const Tiles&, const Sides&, Stream);
using GatedBackwardLaunch = void (*)(const GatedBackwardArgs&, const Tiles&, const Sides&, const Partials&, Stream);
using EpilogueLaunch = void (*)(const EpilogueArgs&, const Tiles&, Stream);
using EpilogueBackwardLaunch = void (*)(const EpilogueBackwardArgs&, const Tiles&, const Partials&, Stream);
using DoubleBackwardLaunch = void (*)(const DoubleBackwardArgs&, const Tiles&, const Partials&, Stream);

// [activation], in the order of the type list; null where an activation has no such form.
#define FUSEDACT_DECLARE_STORAGE(storage)                    \
  namespace storage##_kernels {                              \
    const ForwardLaunch* forward_table();                    \
    const BackwardLaunch* backward_table(Saved);             \
    const GatedLaunch* gated_table();                        \
    const GatedBackwardLaunch* gated_backward_table();       \
    const EpilogueLaunch* epilogue_table();                  \
    const EpilogueBackwardLaunch* epilogue_backward_table(); \
  }
FUSEDACT_DECLARE_STORAGE(float32)
FUSEDACT_DECLARE_STORAGE(float64)
FUSEDACT_DECLARE_STORAGE(bfloat16)
FUSEDACT_DECLARE_STORAGE(float16)
#undef FUSEDACT_DECLARE_STORAGE

const DoubleBackwardLaunch* double_backward_table(Saved);  // input or output; any storage type

// sum[c] = sum over a and b of partial[a, c, b], in float64 and in a fixed order.
void fold(const Shape& partial_shape, const void* partial, bool wide, const Sum& sum, Stream);
void fill_zero(const Sum& sum, int64_t count, Stream);

}  // namespace fusedact::cuda
