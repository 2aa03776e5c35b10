// The runs of the epilogue: multiply, add, the sums of a backward pass, and dropout's random words. Once per ISA.
#include "epilogue.h"
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <class T>
void multiply_run(const MultiplyRun& run) {
  const T* a = static_cast<const T*>(run.a);
  T* out = static_cast<T*>(run.out);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    write(out + i, read<T>(a + i, width) * along<T>(run.b, i, width), width, false);
  });
}

template <class T>
void finish_run(const FinishRun& run) {
  const T* a = static_cast<const T*>(run.a);
  T* y = static_cast<T*>(run.y);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    Pack<T> kept = read<T>(a + i, width) * along<T>(run.mask, i, width);
    write(y + i, kept + along<T>(run.residual, i, width), width, run.stream);
  });
  if (run.stream) stream_fence();
}

template <class T>
void gather_run(const GatherRun& run) {
  const T *r = static_cast<const T*>(run.r), *x = static_cast<const T*>(run.x);
  T *grad_x = static_cast<T*>(run.grad_x), *scale_sum = static_cast<T*>(run.scale_sum);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    Pack<T> g = read<T>(r + i, width), centered(0);
    if (x) centered = read<T>(x + i, width) - along<T>(run.center, i, width);
    if (scale_sum) add_to(scale_sum + i, g * centered, width);
    if (!grad_x) return;
    g = g * along<T>(run.scale, i, width);
    if (run.slope.values) g = g + (centered * along<T>(run.slope, i, width) + along<T>(run.offset, i, width));
    write(grad_x + i, g, width, run.stream);
  });
  if (run.stream) stream_fence();
}

template <class S>
FUSEDACT_INLINE Pack<double> read_wide(const S* p, Whole<double>) {
  return load<double>(p);
}
template <class S>
FUSEDACT_INLINE Pack<double> read_wide(const S* p, Part part) {
  return load<double>(p, part.count);
}

template <class S>
void moments_run(const MomentsRun& run) {
  const S* x = static_cast<const S*>(run.x);
  const bool still = run.shift.step == 0;
  Pack<double> all(0), all_square(0);
  for_packs<double>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    const Pack<double> shift = along<double>(run.shift, i, width);
    Pack<double> sum(0), square(0);
    for (int64_t row = 0, at = i; row < run.rows; ++row, at += run.pitch) {
      Pack<double> d = read_wide(x + at, width) - shift;
      sum = sum + d;
      square = fma(d, d, square);
    }
    if (still && std::is_same_v<decltype(width), Whole<double>>) {
      all = all + sum;
      all_square = all_square + square;
    } else {
      add_to(run.sum + i, sum, width);
      add_to(run.square + i, square, width);
    }
  });
  if (still && run.count >= Pack<double>::size) {
    add_to(run.sum, all, Whole<double>{});
    add_to(run.square, all_square, Whole<double>{});
  }
}

// ---- Philox4x32-10 --------------------------------------------------------------------------------------------------

// 32-bit words in 64-bit lanes, whose upper halves hold anything: only products read whole lanes, and they mask them.
using Words = Native<uint64_t>;
constexpr int counters = vector_bytes / 8;  // in one vector

FUSEDACT_INLINE Words product(Words a, Words b) {  // of the lower halves
#if defined(__AVX512F__)
  return (Words)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

constexpr int rounds = 10;
struct Keys {
  Words key[rounds][2];
  explicit Keys(uint64_t seed) {
    auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (auto& key : this->key) {
      key[0] = Words{} + k0;
      key[1] = Words{} + k1;
      k0 += 0x9E3779B9;  // the golden ratio
      k1 += 0xBB67AE85;  // sqrt(3) - 1
    }
  }
};

// The words 0 and 1, and the words 2 and 3, of the counters from `first` on, interleaved.
FUSEDACT_INLINE void philox(const Keys& keys, uint64_t first, Native<int32_t> (&words)[2]) {
  Words c0, c1, c2 = {}, c3 = {};
  for (int i = 0; i < counters; ++i) c0[i] = first + i;
  c1 = c0 >> 32;
  for (const auto& key : keys.key) {
    Words p0 = product(c0, Words{} + 0xD2511F53), p1 = product(c2, Words{} + 0xCD9E8D57);
    c0 = (p1 >> 32) ^ c1 ^ key[0];
    c2 = (p0 >> 32) ^ c3 ^ key[1];
    c1 = p1;
    c3 = p0;
  }
  words[0] = (Native<int32_t>)((c0 & 0xffffffff) | c1 << 32);
  words[1] = (Native<int32_t>)((c2 & 0xffffffff) | c3 << 32);
}

constexpr int64_t group = 64;  // elements, of 16 counters

FUSEDACT_INLINE void put_factors(Native<int32_t> kept, float factor, float* p) {
  native_store<float>(p, (Native<float>)(kept & (Native<int32_t>)(Native<float>{} + factor)));
}
FUSEDACT_INLINE void put_factors(Native<int32_t> kept, double factor, double* p) {
  int32_t lane[vector_bytes / 4];
  std::memcpy(lane, &kept, sizeof lane);
  for (int i = 0; i < vector_bytes / 4; ++i) p[i] = lane[i] ? factor : 0;
}

template <class T>
void mask_run(const MaskRun& run) {
  const Dropout& dropout = *run.dropout;
  T* mask = static_cast<T*>(run.mask);
  const int64_t everything = int64_t{1} << 31;
  if (dropout.keep == everything) {
    for (int64_t i = 0; i < run.count; ++i) mask[i] = T(1);
    return;
  }
  const Keys keys(dropout.seed);
  const auto keep = Native<int32_t>{} + static_cast<int32_t>(dropout.keep);
  const T factor = static_cast<T>(dropout.factor);
  auto factors = [&](int64_t index, T* out) FUSEDACT_LAMBDA {
    for (int k = 0; k < 16; k += counters) {
      Native<int32_t> words[2];
      philox(keys, index * 16 + k, words);
      put_factors(words[0] < keep, factor, out + 2 * k);
      put_factors(words[1] < keep, factor, out + 32 + 2 * k);
    }
  };
  for (int64_t i = 0; i < run.count;) {
    const int64_t at = run.first + i, skip = at % group;
    const int64_t n = run.count - i < group - skip ? run.count - i : group - skip;
    if (n == group) {
      factors(at / group, mask + i);
    } else {
      T part[group];
      factors(at / group, part);
      std::memcpy(mask + i, part + skip, n * sizeof(T));
    }
    i += n;
  }
}

}  // namespace

EpilogueKernels FUSEDACT_CPU_CAPABILITY::epilogue_kernels() {
  return {{multiply_run<float>, multiply_run<double>},
          {finish_run<float>, finish_run<double>},
          {gather_run<float>, gather_run<double>},
          {mask_run<float>, mask_run<double>},
          {moments_run<float>, moments_run<double>, moments_run<BFloat16>, moments_run<Half>}};
}

}  // namespace fusedact::cpu
