// The second stage of sums: what the units of a pass left, added up per channel in float64, in an order that the shape fixes.
#include "pack.cuh"
#include "tables.h"

namespace fusedact::cuda {
namespace {

constexpr uint32_t side = 32;  // a block is 32 x 32 threads

// Channels side by side: partials of neighbouring channels are neighbours, or nearly.
template <class C>
__global__ void __launch_bounds__(side* side)
    fold_columns(const int64_t outer, const uint32_t channels, const int64_t inner, const C* partial, const Sum sum) {
  __shared__ double scratch[side][side + 1];
  const uint32_t lane = threadIdx.x % side, line = threadIdx.x / side, channel = blockIdx.x * side + lane;
  double total = 0;
  if (channel < channels)
    for (int64_t a = line; a < outer; a += side)
      for (int64_t b = 0; b < inner; ++b) total += partial[(a * channels + channel) * inner + b];
  scratch[line][lane] = total;
  __syncthreads();
  if (line > 0 || channel >= channels) return;
  for (uint32_t l = 1; l < side; ++l) total += scratch[l][lane];
  put(sum, channel, total);
}

// A channel for each block: its partials lie in long runs.
template <class C>
__global__ void __launch_bounds__(side* side)
    fold_runs(const int64_t outer, const uint32_t channels, const int64_t inner, const C* partial, const Sum sum) {
  __shared__ double scratch[side];
  for (uint32_t channel = blockIdx.x; channel < channels; channel += gridDim.x) {
    double total = 0;
    for (int64_t a = 0; a < outer; ++a)
      for (int64_t b = threadIdx.x; b < inner; b += side * side) total += partial[(a * channels + channel) * inner + b];
#pragma unroll
    for (int distance = side / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(~0u, total, distance);
    if (threadIdx.x % side == 0) scratch[threadIdx.x / side] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (uint32_t w = 1; w < side; ++w) total += scratch[w];
      put(sum, channel, total);
    }
    __syncthreads();
  }
}

__global__ void zero_kernel(const Sum sum, const uint32_t count) {
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) put(sum, i, 0.0);
}

template <class C>
void launch(const Shape& s, const void* partial, const Sum& sum, Stream stream) {
  const auto channels = static_cast<uint32_t>(s.channels);
  const C* from = static_cast<const C*>(partial);
  if (s.inner >= side)
    fold_runs<C><<<std::min(channels, 65535u), side * side, 0, stream>>>(s.outer, channels, s.inner, from, sum);
  else
    fold_columns<C><<<(channels + side - 1) / side, side * side, 0, stream>>>(s.outer, channels, s.inner, from, sum);
}

}  // namespace

void fold(const Shape& shape, const void* partial, bool wide, const Sum& sum, Stream stream) {
  wide ? launch<double>(shape, partial, sum, stream) : launch<float>(shape, partial, sum, stream);
}

void fill_zero(const Sum& sum, int64_t count, Stream stream) {
  if (sum.data && count > 0)
    zero_kernel<<<static_cast<unsigned>(std::min<int64_t>((count + 255) / 256, 1024)), 256, 0, stream>>>(
        sum, static_cast<uint32_t>(count));
}

}  // namespace fusedact::cuda
