// Dropout's mask as a tensor, for compositions and for tensors that do not lie in their logical order.
#include "philox.cuh"
#include "tables.h"

namespace fusedact::cuda {
namespace {

template <class C>
__global__ void __launch_bounds__(block_threads)
    mask_kernel(const Dropout dropout, C* mask, const int64_t count, const int32_t whole) {
  constexpr int n = per_thread<C>;
  const uint64_t seed = seed_of(dropout);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_threads * n;
  // A whole warp at a time: its lanes share counters.
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x / 32 * 32) * n; first < count;
       first += stride) {
    const int64_t at = first + threadIdx.x % 32 * n;
    const uint32_t bits = kept_bits<n>(dropout, seed, at);
    Pack<C, n> x;
#pragma unroll
    for (int i = 0; i < n; ++i) x.v[i] = bits >> i & 1 ? static_cast<C>(dropout.factor) : C(0);
    store(mask + at, x, static_cast<int32_t>(max(int64_t{0}, min(count - at, int64_t{n}))), whole);
  }
}

template <class C>
void launch(const Dropout& dropout, void* mask, int64_t count, Stream stream) {
  constexpr int64_t each = block_threads * per_thread<C>;
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((count + each - 1) / each, processors * 32));
  const bool whole = reinterpret_cast<uintptr_t>(mask) % 16 == 0;
  mask_kernel<C>
      <<<blocks, block_threads, 0, stream>>>(dropout, static_cast<C*>(mask), count, whole ? per_thread<C> : INT32_MAX);
}

}  // namespace

void dropout_mask(const Dropout& dropout, DType dtype, void* mask, int64_t count, Stream stream) {
  if (count == 0) return;
  dtype == DType::float64 ? launch<double>(dropout, mask, count, stream) : launch<float>(dropout, mask, count, stream);
}

}  // namespace fusedact::cuda
