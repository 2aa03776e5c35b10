// Dropout's random words: Philox4x32-10, and which element has which word, as epilogue/kernels.h says. The masks are the CPU's.
//
// Knows no activation.
#pragma once

#include "../epilogue/kernels.h"
#include "pack.cuh"

namespace fusedact::cuda {

struct Words {
  uint32_t w[4];
};

FUSEDACT_DEVICE Words philox(uint64_t seed, uint64_t counter) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{c0} * 0xD2511F53u, p1 = uint64_t{c2} * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

FUSEDACT_DEVICE uint64_t seed_of(const Dropout& d) {
  return d.source == Dropout::Source::seed && d.seed_at ? static_cast<uint64_t>(*d.seed_at) : d.seed;
}

// Which of n elements from `at` on are kept, a bit for each. The whole warp takes part, each lane with the n elements that
// follow the last lane's.
//
// 64 elements share 16 counters: the first 32 take words 0 and 1 of each, the others words 2 and 3. Where a warp starts on
// such a group, lanes 32 elements apart compute half of the counters each, and hand over the bits that the other needs.
template <int n>
FUSEDACT_DEVICE uint32_t kept_bits(const Dropout& d, uint64_t seed, int64_t at) {
  constexpr int64_t everything = int64_t{1} << 31;
  if (d.keep == everything) return (1u << n) - 1;
  const int32_t keep = static_cast<int32_t>(d.keep);
  const auto kept = [&](uint32_t word) { return static_cast<uint32_t>(static_cast<int32_t>(word) < keep); };
  const auto counter_of = [](int64_t i) { return static_cast<uint64_t>(i / 64 * 16 + i % 32 / 2); };
  const bool upper = at & 32;
  uint32_t bits = 0;
  if (n > 2 && (at - static_cast<int64_t>(threadIdx.x % 32) * n) % 64 == 0) {
    constexpr int own = n > 2 ? n / 4 : 1;  // counters
    uint32_t low = 0, high = 0;
#pragma unroll
    for (int k = 0; k < own; ++k) {
      const int counter = upper ? k + own : k;
      const Words x = philox(seed, counter_of(at) + counter);
      low |= (kept(x.w[0]) | kept(x.w[1]) << 1) << (2 * counter);
      high |= (kept(x.w[2]) | kept(x.w[3]) << 1) << (2 * counter);
    }
    bits = (upper ? high : low) | __shfl_xor_sync(~0u, upper ? low : high, 32 / n);
  } else if (at % 2 == 0 && n == 2) {
    const Words x = philox(seed, counter_of(at));
    bits = upper ? kept(x.w[2]) | kept(x.w[3]) << 1 : kept(x.w[0]) | kept(x.w[1]) << 1;
  } else {
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      const int64_t e = at + i;
      const Words x = philox(seed, counter_of(e));
      const uint32_t first = e & 32 ? x.w[2] : x.w[0], second = e & 32 ? x.w[3] : x.w[1];
      bits |= kept(e & 1 ? second : first) << i;
    }
  }
  return bits;
}

}  // namespace fusedact::cuda
