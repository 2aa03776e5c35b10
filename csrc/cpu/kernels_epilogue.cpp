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
}

template <class T, class S>
FUSEDACT_INLINE Pack<T> read_as(const S* p, Whole<T>) {
  return load<T>(p);
}
template <class T, class S>
FUSEDACT_INLINE Pack<T> read_as(const S* p, Part part) {
  return load<T>(p, part.count);
}

// The sums about `shift`, in float64, from those of n elements about a centre that is near them: there float32 is exact
// enough, whatever the mean and the outliers.
struct Near {
  double n, centre, sum, square;
  void add_to(double shift, double& total, double& total_square) const {
    const double moved = centre - shift;
    total += sum + n * moved;
    total_square += square + moved * (2 * sum + n * moved);
  }
};

// A channel's elements in one run: two passes over the first-level cache.
template <class S, class T>
void moments_still(const S* x, const MomentsRun& run) {
  constexpr int size = Pack<T>::size;
  T lane[2][size], centre = 0, sum = 0, square = 0;
  auto total = [](const T(&lane)[size]) {
    T total = 0;
    for (T l : lane) total += l;
    return total;
  };
  Pack<T> all(0), squares(0);
  const int64_t whole = run.count / size * size;
  for (int64_t i = 0; i < whole; i += size) all = all + read_as<T>(x + i, Whole<T>{});
  store(lane[0], all);
  centre = total(lane[0]);
  const Part rest{static_cast<int>(run.count - whole)};
  T tail[size];
  store(tail, read_as<T>(x + whole, rest));
  for (int i = 0; i < rest.count; ++i) centre += tail[i];
  centre /= static_cast<T>(run.count);
  if (centre - centre != 0) centre = 0;  // infinite: so will the mean be, and not NaN
  all = Pack<T>(0);
  const Pack<T> centres(centre);
  for (int64_t i = 0; i < whole; i += size) {
    Pack<T> d = read_as<T>(x + i, Whole<T>{}) - centres;
    all = all + d;
    squares = fma(d, d, squares);
  }
  store(lane[0], all);
  store(lane[1], squares);
  sum = total(lane[0]);
  square = total(lane[1]);
  for (int i = 0; i < rest.count; ++i) {
    sum += tail[i] - centre;
    square += (tail[i] - centre) * (tail[i] - centre);
  }
  const double shift = *static_cast<const double*>(run.shift.values);
  Near{static_cast<double>(run.count), centre, sum, square}.add_to(shift, *run.sum, *run.square);
}

// Every column of a few rows, likewise.
template <class S, class T>
void moments_along(const S* x, const MomentsRun& run) {
  const double* shift = static_cast<const double*>(run.shift.values);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    Pack<T> centre(0), sum(0), square(0);
    for (int64_t row = 0; row < run.rows; ++row) centre = centre + read_as<T>(x + i + row * run.pitch, width);
    centre = centre * Pack<T>(1.0 / static_cast<double>(run.rows));
    centre = select(centre - centre == Pack<T>(0), centre, Pack<T>(0));
    for (int64_t row = 0; row < run.rows; ++row) {
      Pack<T> d = read_as<T>(x + i + row * run.pitch, width) - centre;
      sum = sum + d;
      square = fma(d, d, square);
    }
    T lane[3][Pack<T>::size];
    store(lane[0], centre);
    store(lane[1], sum);
    store(lane[2], square);
    for (int k = 0; k < width_of(width); ++k)
      Near{static_cast<double>(run.rows), lane[0][k], lane[1][k], lane[2][k]}.add_to(shift[i + k], run.sum[i + k],
                                                                                     run.square[i + k]);
  });
}

template <class S>
void moments_run(const MomentsRun& run) {
  const S* x = static_cast<const S*>(run.x);
  run.shift.step ? moments_along<S, compute_of<S>>(x, run) : moments_still<S, compute_of<S>>(x, run);
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
