// The pass that counts: of pre-activations and outputs that are there, what csrc/statistics/kernels.h says, per channel.
//
// In two stages, as all sums here: units leave what they counted in float64, and one kernel joins that in an order that the
// shape alone fixes. The histogram is of whole numbers, in any order: shared memory's counters for each block, then theirs.
//
// Knows no activation.
#include <stdexcept>

#include "../statistics/kernels.h"
#include "drive.h"
#include "loops.cuh"

namespace fusedact::cuda {
namespace {

// In the order of Statistic, but for the count, which follows from the shape.
enum Kept : int { zeros, saturated, nan, inf, sum, squares, least, largest, kept_count };
static_assert(kept_count == statistic_count - 1);

FUSEDACT_DEVICE double start_of(int k) {
  constexpr double infinite = std::numeric_limits<double>::infinity();
  return k == least ? infinite : k == largest ? -infinite : 0.0;
}
FUSEDACT_DEVICE double joined(int k, double a, double b) {
  return k == least ? (b < a ? b : a) : k == largest ? (b > a ? b : a) : a + b;
}

// ---- the first stage ------------------------------------------------------------------------------------------------

template <class C>
struct Zones {
  C low[most_zones], high[most_zones];
  int count;
  explicit Zones(const Counts& counts) : count(static_cast<int>(counts.zone_count)) {
    for (int z = 0; z < most_zones; ++z) {
      low[z] = z < count ? static_cast<C>(counts.zones[2 * z]) : C(1);
      high[z] = z < count ? static_cast<C>(counts.zones[2 * z + 1]) : C(0);
    }
  }
};

// Neighbours often share a bin: lanes count in copies of it. The last bin of each is nobody's.
constexpr uint32_t copies = 16, bin_stride = histogram_bins + 1;

template <class C>
FUSEDACT_DEVICE void count_bin(uint32_t* bins, C v) {
  constexpr C scale = static_cast<C>(histogram_bins / (histogram_high - histogram_low));
  C t = (v - static_cast<C>(histogram_low)) * scale;
  t = t < C(0) ? C(0) : t > C(histogram_bins - 1) ? C(histogram_bins - 1) : t;
  if (v == v) atomicAdd(bins + static_cast<uint32_t>(t), 1u);
}

// What a thread has counted of one of its columns. A unit has no more than 512 steps: two counts share a word.
template <class C>
struct Column {
  uint32_t zeros_saturated = 0, nan_inf = 0;
  double sum = 0, squares = 0;
  C least = infinity_of(), largest = -infinity_of();

  static constexpr FUSEDACT_DEVICE C infinity_of() { return std::numeric_limits<C>::infinity(); }
  FUSEDACT_DEVICE void see_input(C v, const Zones<C>& zones) {
    bool inside = false;
#pragma unroll  // an index that is not a constant would put them on the stack
    for (int z = 0; z < most_zones; ++z) inside |= (z < zones.count) & (v >= zones.low[z]) & (v <= zones.high[z]);
    if (inside) zeros_saturated += 1u << 16;
  }
  FUSEDACT_DEVICE void see_output(C y) {
    if (y == C(0)) zeros_saturated += 1;
    if (!(abs(y) < infinity_of())) nan_inf += y != y ? 1 : 1u << 16;
    least = y < least ? y : least;  // never NaN
    largest = y > largest ? y : largest;
    const double d = static_cast<double>(y);
    sum += d;
    squares = __fma_rn(d, d, squares);
  }
  FUSEDACT_DEVICE double operator[](int k) const {
    switch (k) {
      case Kept::zeros: return zeros_saturated & 0xffff;
      case Kept::saturated: return zeros_saturated >> 16;
      case Kept::nan: return nan_inf & 0xffff;
      case Kept::inf: return nan_inf >> 16;
      case Kept::sum: return sum;
      case Kept::squares: return squares;
      case Kept::least: return least;
      default: return largest;
    }
  }
};

// One number of each column, joined with those of the unit's other threads; as leave_sums of loops.cuh.
template <class C, int n>
FUSEDACT_DEVICE void leave(int k, double* partial, const Column<C> (&columns)[n], const Tiles& t, uint32_t unit,
                           const Place& p, double* scratch) {
  const uint32_t lane = threadIdx.x & (t.lanes() - 1), line = threadIdx.x >> t.log_lanes;
  const uint32_t group = unit / t.across, tile = unit - group * t.across;
  if (t.along) {
    const uint32_t width = t.lanes() * n;
#pragma unroll
    for (int i = 0; i < n; ++i) scratch[line * width + lane * n + i] = columns[i][k];
    __syncthreads();
    for (uint32_t j = threadIdx.x; j < width; j += block_threads) {
      double total = scratch[j];
      for (uint32_t l = 1; l < t.lines(); ++l) total = joined(k, total, scratch[l * width + j]);
      const int64_t column = static_cast<int64_t>(tile) * width + j;
      if (column < t.length) partial[group * t.length + column] = total;
    }
    __syncthreads();
    return;
  }
  double total = columns[0][k];
#pragma unroll
  for (int i = 1; i < n; ++i) total = joined(k, total, columns[i][k]);
#pragma unroll
  for (int distance = warp / 2; distance > 0; distance /= 2)
    total = joined(k, total, __shfl_xor_sync(all_lanes, total, distance));
  if (t.lanes() > warp) {
    if (threadIdx.x % warp == 0) scratch[threadIdx.x / warp] = total;
    __syncthreads();
    if (threadIdx.x == 0)
      for (uint32_t w = 1; w < block_threads / warp; ++w) total = joined(k, total, scratch[w]);
    __syncthreads();
  }
  if (lane == 0 && p.row < t.rows) partial[p.row * t.across + tile] = total;
}

// x or y may be missing: `of_x`, `of_y`. partial: [kept_count, count]; histograms: [gridDim.x, histogram_bins], or null.
template <class T, bool of_x, bool of_y>
__global__ void __launch_bounds__(block_threads)
    count_kernel(const Tiles t, const T* xs, const Vector biases, const T* ys,
                 const Zones<std::conditional_t<sizeof(T) == 8, double, float>> zones, double* partial,
                 const int64_t count, uint32_t* histograms) {
  using C = std::conditional_t<sizeof(T) == 8, double, float>;
  constexpr int n = per_thread<T>;
  __shared__ double scratch[block_threads * n];
  __shared__ uint32_t bins[copies * bin_stride];
  for (uint32_t i = threadIdx.x; i < copies * bin_stride; i += block_threads) bins[i] = 0;
  __syncthreads();
  uint32_t* const mine = bins + threadIdx.x % copies * bin_stride;

  struct Read {
    Pack<T, n> x, y;
  };
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    Pack<C, n> bias{};
    if constexpr (of_x) bias = meet<C, T, n>(biases, t, p, C(-0.0));
    Column<C> columns[n];
    for_steps(
        t, p,
        [&](uint32_t at, int32_t left) {
          Read read;
          if constexpr (of_x) read.x = load<T, n>(xs + p.base + at, left, p.whole);
          if constexpr (of_y) read.y = load<T, n>(ys + p.base + at, left, p.whole);
          return read;
        },
        [&](const Read& read, uint32_t, int32_t left) {
#pragma unroll
          for (int i = 0; i < n; ++i) {
            if (i >= left) continue;
            if constexpr (of_x) {
              const C v = widen<C>(read.x.v[i]) + bias.v[i];
              columns[i].see_input(v, zones);
              if (histograms) count_bin(mine, v);
            }
            if constexpr (of_y) columns[i].see_output(widen<C>(read.y.v[i]));
          }
        });
    // Not unrolled: eight copies of this are more code than the loop above.
#pragma unroll 1
    for (int k = 0; k < kept_count; ++k) leave(k, partial + k * count, columns, t, unit, p, scratch);
  }
  if (of_x && histograms) {
    __syncthreads();
    for (uint32_t bin = threadIdx.x; bin < histogram_bins; bin += block_threads) {
      uint32_t total = 0;
      for (uint32_t copy = 0; copy < copies; ++copy) total += bins[copy * bin_stride + bin];
      histograms[blockIdx.x * histogram_bins + bin] = total;
    }
  }
}

// ---- the second stage -----------------------------------------------------------------------------------------------

// partial [kept_count][outer, channels, inner]: blockIdx.y is the statistic; a block joins a channel, threads side by side
// over its partials where those lie in runs, channels side by side where they do not.
constexpr uint32_t side = 32;

__global__ void __launch_bounds__(side* side)
    join_kernel(const Shape s, const double elements, const double* partials, double* sums) {
  __shared__ double scratch[side][side + 1];
  const int k = static_cast<int>(blockIdx.y);
  const bool runs = s.inner >= side;
  const uint32_t lane = threadIdx.x % side, line = threadIdx.x / side;
  const int64_t channel = runs ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * side + lane;
  const double* partial = partials + k * s.outer * s.channels * s.inner;
  double total = start_of(k);
  if (runs) {
    for (int64_t a = 0; a < s.outer; ++a)
      for (int64_t b = threadIdx.x; b < s.inner; b += side * side)
        total = joined(k, total, partial[(a * s.channels + channel) * s.inner + b]);
#pragma unroll
    for (int distance = side / 2; distance > 0; distance /= 2)
      total = joined(k, total, __shfl_xor_sync(all_lanes, total, distance));
    if (lane == 0) scratch[line][0] = total;
  } else {
    if (channel < s.channels)
      for (int64_t a = line; a < s.outer; a += side)
        for (int64_t b = 0; b < s.inner; ++b)
          total = joined(k, total, partial[(a * s.channels + channel) * s.inner + b]);
    scratch[line][lane] = total;
  }
  __syncthreads();
  if (line > 0 || channel >= s.channels || (runs && lane > 0)) return;
  for (uint32_t l = 1; l < side; ++l) total = joined(k, total, scratch[l][runs ? 0 : lane]);
  double* const kept = sums + (k + 1) * s.channels + channel;
  *kept = joined(k, *kept, total);
  if (k == 0) sums[channel] += elements;
}

// A block for each bin.
__global__ void __launch_bounds__(block_threads)
    join_bins(const uint32_t blocks, const uint32_t* histograms, double* histogram) {
  __shared__ unsigned long long scratch[block_threads / warp];
  unsigned long long total = 0;
  for (uint32_t b = threadIdx.x; b < blocks; b += block_threads) total += histograms[b * histogram_bins + blockIdx.x];
#pragma unroll
  for (int distance = warp / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(all_lanes, total, distance);
  if (threadIdx.x % warp == 0) scratch[threadIdx.x / warp] = total;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (uint32_t w = 1; w < block_threads / warp; ++w) total += scratch[w];
  histogram[blockIdx.x] += static_cast<double>(total);
}

// ---- launching ------------------------------------------------------------------------------------------------------

// One channel is all of the tensor.
Shape shape_of(const StatisticsArgs& a) { return a.shape.channels > 1 ? a.shape : Shape{1, 1, a.shape.numel()}; }

Tiles cut_for(const StatisticsArgs& a) {
  const Shape s = shape_of(a);
  Tiles t = cut(s, {.per_thread = 16 / size_of(a.dtype), .channels = s.channels > 1, .sums = true});
  t.aligned = t.aligned && aligned(16, {a.x, a.y});
  return t;
}

int64_t sums_bytes(const Tiles& t) { return t.partials() * kept_count * 8; }

template <class T, bool of_x, bool of_y>
void count(const StatisticsArgs& a, const Tiles& t, double* partial, uint32_t* histograms, Stream stream) {
  using C = std::conditional_t<sizeof(T) == 8, double, float>;
  count_kernel<T, of_x, of_y>
      <<<blocks_for(t), block_threads, 0, stream>>>(t, static_cast<const T*>(a.x), a.bias, static_cast<const T*>(a.y),
                                                    Zones<C>(a.counts), partial, t.partials(), histograms);
}

template <class T>
void count(const StatisticsArgs& a, const Tiles& t, double* partial, uint32_t* histograms, Stream stream) {
  if (a.x && a.y) return count<T, true, true>(a, t, partial, histograms, stream);
  a.x ? count<T, true, false>(a, t, partial, histograms, stream)
      : count<T, false, true>(a, t, partial, histograms, stream);
}

}  // namespace

int64_t workspace_bytes(const StatisticsArgs& args) {
  if (args.shape.numel() == 0) return 0;
  const Tiles t = cut_for(args);
  return sums_bytes(t) + (args.counts.histogram ? int64_t{blocks_for(t)} * histogram_bins * 4 : 0);
}

void statistics(const StatisticsArgs& args, void* workspace, Stream stream) {
  if (args.shape.numel() == 0) return;
  check(args.shape);
  if (args.counts.zone_count > most_zones) throw std::invalid_argument("fusedact: more than 4 zones on CUDA");
  const Tiles t = cut_for(args);
  const Shape s = shape_of(args), left = s.channels > 1 ? partial_shape(s, t, false) : Shape{1, 1, t.partials()};
  double* const partial = static_cast<double*>(workspace);
  const bool bins = args.counts.histogram && args.x;
  auto* const histograms = bins ? reinterpret_cast<uint32_t*>(partial + t.partials() * kept_count) : nullptr;
  switch (args.dtype) {
    case DType::float32: count<float32>(args, t, partial, histograms, stream); break;
    case DType::float64: count<float64>(args, t, partial, histograms, stream); break;
    case DType::bfloat16: count<bfloat16>(args, t, partial, histograms, stream); break;
    default: count<float16>(args, t, partial, histograms, stream); break;
  }
  const auto channels = static_cast<uint32_t>(s.channels);
  const dim3 grid(left.inner >= side ? channels : (channels + side - 1) / side, kept_count);
  const double elements = args.y ? static_cast<double>(s.outer * s.inner) : 0.0;
  join_kernel<<<grid, side * side, 0, stream>>>(left, elements, partial, args.counts.sums);
  if (bins) join_bins<<<histogram_bins, block_threads, 0, stream>>>(blocks_for(t), histograms, args.counts.histogram);
}

}  // namespace fusedact::cuda
