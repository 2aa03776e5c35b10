// What the per-ISA kernels offer to drive.cpp: functions over a run of consecutive elements in the compute type, one per
// activation, in tables; and the conversions from and to the storage types. No ISA, no template: the loops are in
// loops.h, the threads, blocks and sums in drive.cpp.
#pragma once

#include "../kernels.h"

namespace fusedact::cpu {

// What meets the elements, in the compute type. A step of 1 walks along with the elements, a step of 0 stays at
// lane_count equal values.
struct Lane {
  const void* values = nullptr;
  int step = 0;
};
inline constexpr int lane_count = 64;  // the largest pack: AVX-512, float32

struct ForwardRun {
  int64_t count;
  const void* x;
  Lane bias, weight;
  const Scalars* scalars;
  void* y;
  uint8_t* mask;       // null if not asked for; cleared before
  int64_t mask_at;     // the first element's bit
  bool stream;         // the results are larger than the caches: store past them
  bool ahead = false;  // what is read is asked for before its turn
};

// `rows` runs of `count` elements, `pitch` apart, that meet the same bias and add to the same sums; one, unless it is cheap.
struct BackwardRun {
  int64_t count, rows, pitch;
  const void* grad;
  const void* saved;    // x or y
  const uint8_t* mask;  // or, with Saved::mask, this
  int64_t mask_at;
  Lane bias, weight;
  const Scalars* scalars;
  void* grad_x;
  void* bias_sum;  // added to, one per element; null if nobody asked
  void* weight_sum;
  bool stream;
  bool ahead = false;
};

struct DoubleBackwardRun {
  int64_t count;
  const void *u, *grad, *saved;
  Lane bias;
  const Scalars* scalars;
  void *grad_grad, *grad_x;
  void* bias_sum;
  bool stream, ahead;
};

template <class Run>
using Function = void (*)(const Run&);
// [activation][DType], in the order of the type list, by what the elements of a run are stored in: a run of 16 bits computes in
// float, by shorter formulas. Null where an activation has no such run.
template <class Run>
using Table = const Function<Run> (*)[dtype_count];

// Whole runs between storage and compute type.
using Convert = void (*)(const void* from, void* to, int64_t count, bool stream);

struct Kernels {
  Table<ForwardRun> forward;
  Table<BackwardRun> backward[3];               // by Saved
  Table<DoubleBackwardRun> double_backward[2];  // by Saved, without mask; not of 16 bits, and of float32 for few
  Convert widen[dtype_count][2];                // null where the two are the same
  Convert narrow[dtype_count][2];
};

// Those of the ISA in use, see isa.h.
const Kernels& kernels();

#define FUSEDACT_DECLARE_CAPABILITY(isa)                 \
  namespace isa {                                        \
  Table<ForwardRun> forward_table();                     \
  Table<BackwardRun> backward_table(Saved);              \
  Table<DoubleBackwardRun> double_backward_table(Saved); \
  Convert widen(DType, bool to_double);                  \
  Convert narrow(DType, bool from_double);               \
  }
FUSEDACT_DECLARE_CAPABILITY(default_)
FUSEDACT_DECLARE_CAPABILITY(avx2)
FUSEDACT_DECLARE_CAPABILITY(avx512)
#undef FUSEDACT_DECLARE_CAPABILITY

}  // namespace fusedact::cpu
