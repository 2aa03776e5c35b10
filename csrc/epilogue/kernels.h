// The contract of the epilogue between the operators and the back ends:
//   y = residual + mask * clamp(gain * act(x * scale + bias)),
// its backward pass, and the sums over a batch that a normalisation needs. Plain structs; no torch, no SIMD.
#pragma once

#include "../kernels.h"

namespace fusedact {

// Which elements dropout keeps, and what it multiplies those by; it multiplies the others by 0, as torch does (so NaN
// stays NaN). Element i, counted in the logical order of x, is kept if its random word is below `keep`, both taken as
// signed numbers. The word, of Philox4x32-10 (Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as
// 1, 2, 3, SC 2011) under the key `seed`: elements come in groups of 64, for which the block cipher runs on 16
// consecutive counters; of 32 elements the words 0 and 1 of each counter, of the next 32 the words 2 and 3. So the mask
// depends on seed, shape and p alone: not on threads, instruction sets, strides or blocks.
struct Dropout {
  enum class Source : uint8_t {
    none,
    seed,  // recomputed; x lies in logical order
    mask,  // a tensor of the factors, in the compute type, that lies as x
  };
  Source source = Source::none;
  uint64_t seed = 0;
  int64_t keep = 0;  // in [0, 2^32] less 2^31; the lower end keeps nothing, the upper one everything
  double factor = 1;
  const void* mask = nullptr;  // [outer, channels, inner]
  // On CUDA: where the seed lies, in the device's memory. Nothing waits for it, and a graph draws anew when it is replayed.
  const int64_t* seed_at = nullptr;
};

// The threshold has 32 bits: p is rounded to a multiple of 2^-32, and the factor belongs to what it is rounded to, so
// that the expectation is exact.
inline Dropout dropout_of(double p) {
  constexpr double words = 4294967296.0;
  const auto kept = static_cast<int64_t>((1 - p) * words + 0.5);
  return {Dropout::Source::seed,
          0,
          kept - (int64_t{1} << 31),
          kept == 0 ? 0.0 : words / static_cast<double>(kept),
          nullptr,
          nullptr};
}

struct EpilogueArgs {
  Shape shape;
  DType dtype = DType::float32;    // of x, residual and y
  const void* x = nullptr;         // [outer, channels, inner]
  const void* residual = nullptr;  // [outer, channels, inner], or absent
  Vector scale;                    // [channels], or absent
  Vector bias;                     // [channels], or absent
  Vector weight;
  Scalars scalars;
  Dropout dropout;
  void* y = nullptr;  // [outer, channels, inner]
  Parallel parallel;
};

// With r = grad * mask * f'(x * scale + bias):
//   grad_x = r * scale + ((x - center) * slope + offset),   the bracket where `slope` is given,
//   grad_bias = sum of r,  grad_scale = sum of r * (x - center),  all over all but the channels.
// The bracket is how the statistics of a batch move with x.
struct EpilogueBackwardArgs {
  Shape shape;
  DType dtype = DType::float32;  // of grad, x and grad_x
  const void* grad = nullptr;    // [outer, channels, inner]
  const void* x = nullptr;  // [outer, channels, inner]; absent where f' is constant and grad_scale is not asked for
  Vector scale, bias, weight;
  Vector center, slope, offset;  // [channels], or absent; the last two go together
  Scalars scalars;
  Dropout dropout;
  void* grad_x = nullptr;  // [outer, channels, inner]; may be grad; null: the sums only
  bool raw = false;        // r alone goes to grad_x
  Sum grad_bias;           // [channels]
  Sum grad_scale;          // [channels]
  Sum grad_weight;         // [channels] or [1], as weight.extent says; not together with grad_scale
  Parallel parallel;
};

// sum of x - shift and of (x - shift)^2 over all but the channels, in float64, from float32 sums over a few hundred
// elements about their own mean: no outlier and no far-off mean costs digits.
struct MomentsArgs {
  Shape shape;
  DType dtype = DType::float32;
  const void* x = nullptr;        // [outer, channels, inner]
  const double* shift = nullptr;  // [channels]: of the size of the mean, against cancellation
  double* sum = nullptr;          // [channels]
  double* square = nullptr;       // [channels]
  Parallel parallel;
};

namespace cpu {
void epilogue(const Activation&, const EpilogueArgs&);
void epilogue_backward(const Activation&, const EpilogueBackwardArgs&);
// The factors of elements [0, count): 0 or `factor`. float32 or float64.
void dropout_mask(const Dropout&, DType, void* mask, int64_t count, const Parallel&);
void moments(const MomentsArgs&);
}  // namespace cpu

// Without center, slope, offset and raw: the statistics of a batch are torch's on CUDA.
namespace cuda {
void epilogue(const Activation&, const EpilogueArgs&, Stream);
int64_t workspace_bytes(const Activation&, const EpilogueBackwardArgs&);
void epilogue_backward(const Activation&, const EpilogueBackwardArgs&, void* workspace, Stream);
void dropout_mask(const Dropout&, DType, void* mask, int64_t count, Stream);
}  // namespace cuda

}  // namespace fusedact
