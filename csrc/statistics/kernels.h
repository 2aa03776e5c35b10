// The contract between the operators that count while they compute and their back ends. Knows nothing of torch or of SIMD.
#pragma once

#include "../kernels.h"

namespace fusedact {

// What is counted of each channel: the rows of `sums`, in float64. Count, zeros, sum, squares, least and largest are those of
// the output, as it is stored; saturated counts the pre-activations that lie in the zones. NaN and infinities are counted
// apart: they are in sum and squares, but NaN is neither least nor largest.
enum class Statistic : uint8_t { count, zeros, saturated, nan, inf, sum, squares, least, largest };
inline constexpr int statistic_count = 9;

// The histogram of the pre-activations: bins of equal width, since where activations bend and saturate is a matter of a few
// units around zero, and a bin is then found with one multiplication. What lies beyond the ends is in the outermost two, and
// NaN in none.
inline constexpr int histogram_bins = 66;
inline constexpr double histogram_low = -8.25, histogram_high = 8.25;

// Where to count, and what counts as saturated: closed intervals of the pre-activation. Everything is added to what is there.
struct Counts {
  const double* zones = nullptr;  // [zone_count, 2]
  int64_t zone_count = 0;
  double* sums = nullptr;       // [statistic_count, channels]
  double* histogram = nullptr;  // [histogram_bins], or null
};

// Of which CUDA's kernels hold so many; activations have one or two.
inline constexpr int most_zones = 4;

// One pass over tensors that are there already; x or y may be absent.
struct StatisticsArgs {
  Shape shape;
  DType dtype = DType::float32;
  const void* x = nullptr;  // [outer, channels, inner]
  Vector bias;              // [channels], or absent: x + bias is the pre-activation
  const void* y = nullptr;  // [outer, channels, inner]
  Counts counts;
  Parallel parallel;
};

namespace cpu {
void statistics(const StatisticsArgs&);
// bias_act's passes, with the same bits, counting block by block. `shape` has the channels even where nothing runs along
// them; the results may not lie in x or grad.
void forward_statistics(const Activation&, const ForwardArgs&, const Counts&);
// Of the gradient: count, zeros and squares are added to sums [statistic_count, channels].
void backward_statistics(const Activation&, const BackwardArgs&, double* sums);
}  // namespace cpu

namespace cuda {
int64_t workspace_bytes(const StatisticsArgs&);
void statistics(const StatisticsArgs&, void* workspace, Stream);
}  // namespace cuda

}  // namespace fusedact
