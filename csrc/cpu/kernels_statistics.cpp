// The runs that count: of pre-activations, of outputs, of gradients. Compiled once per ISA.
//
// One native vector of columns at a time, its sums in registers from the first row to the last; what is left of the columns
// one by one, in the same order.
#include <limits>

#include "../statistics/kernels.h"
#include "../statistics/runs.h"
#include "pack.h"

namespace fusedact::cpu {
namespace {

template <class T>
constexpr int lanes = Pack<T>::native;
template <class T>
constexpr int halves = sizeof(double) / sizeof(T);  // vectors of double that hold one of T
template <class T>
constexpr T unbounded = std::numeric_limits<T>::infinity();

template <class T>
FUSEDACT_INLINE Native<T> all(double x) {
  return Native<T>{} + static_cast<T>(x);
}

template <class V>
FUSEDACT_INLINE void add_to(void* sums, int64_t i, V x) {
  auto* p = static_cast<char*>(sums) + i * sizeof(x[0]);
  V old;
  std::memcpy(&old, p, sizeof old);
  old += x;
  std::memcpy(p, &old, sizeof old);
}

// ---- pre-activations ------------------------------------------------------------------------------------------------

// The bin of each lane; histogram_bins for NaN.
template <class T>
FUSEDACT_INLINE auto bins_of(Native<T> v) {
  constexpr double scale = histogram_bins / (histogram_high - histogram_low);
  Native<T> t = (v - static_cast<T>(histogram_low)) * static_cast<T>(scale);
  t = native_min(native_max(t, all<T>(0)), all<T>(histogram_bins - 1));  // NaN has become 0
  t = v == v ? t : all<T>(histogram_bins);
  return __builtin_convertvector(t, Lanes<int32_t, lanes<T>>);
}

// Neighbours often share a bin: each adds to a copy of its own, and does not wait for the other's store. Two bins leave the
// vector at once: one by one costs 0.3 ns an element more.
template <class T>
FUSEDACT_INLINE void add_bins(uint32_t* histogram, Native<T> v) {
  constexpr int n = lanes<T>;
  static_assert(n % 2 == 0 && histogram_copies % 2 == 0);
  uint64_t pairs[n / 2];
  const auto bins = bins_of<T>(v);
  static_assert(sizeof bins == sizeof pairs);
  std::memcpy(pairs, &bins, sizeof pairs);
#pragma GCC unroll 8
  for (int k = 0; k < n; k += 2) {
    ++histogram[k % histogram_copies * histogram_stride + static_cast<uint32_t>(pairs[k / 2])];
    ++histogram[(k + 1) % histogram_copies * histogram_stride + (pairs[k / 2] >> 32)];
  }
}

// The zones as vectors, made once; those beyond the first `held` are made as they are met.
template <class T, int held>
struct Zones {
  Native<T> low[held + 1], high[held + 1];  // never empty
  const InputRun& run;

  explicit Zones(const InputRun& r) : run(r) {
    for (int z = 0; z < held; ++z) {
      low[z] = all<T>(run.zones[2 * z]);
      high[z] = all<T>(run.zones[2 * z + 1]);
    }
  }
  FUSEDACT_INLINE auto contain(Native<T> v) const {
    using I = Native<int_of<T>>;
    I inside{};
#pragma GCC unroll 2
    for (int z = 0; z < held; ++z) inside |= (I)(v >= low[z]) & (I)(v <= high[z]);
    if (held == 2)
      for (int64_t z = held; z < run.zone_count; ++z)
        inside |= (I)(v >= all<T>(run.zones[2 * z])) & (I)(v <= all<T>(run.zones[2 * z + 1]));
    return inside;
  }
};

template <class T, int held, bool with_histogram>
void input_run_of(const InputRun& run) {
  using N = Native<T>;
  using I = Native<int_of<T>>;
  constexpr int n = lanes<T>;
  const T* x = static_cast<const T*>(run.x);
  const T* bias = static_cast<const T*>(run.bias.values);
  uint32_t* const histogram = run.histogram;
  const Zones<T, held> zones(run);
  const int64_t rows = run.rows, pitch = run.pitch;
  int64_t i = 0;
  for (; i + n <= run.columns; i += n) {
    const N b = native_load<T>(bias + i * run.bias.step);
    I saturated{};
    const T* p = x + i;
    for (int64_t row = 0; row < rows; ++row, p += pitch) {
      const N v = native_load<T>(p) + b;
      saturated -= zones.contain(v);  // true is -1
      if (with_histogram) add_bins<T>(histogram, v);
    }
    add_to(run.saturated, i, saturated);
  }
  for (; i < run.columns; ++i) {
    const T b = bias[i * run.bias.step];
    for (int64_t row = 0; row < rows; ++row) {
      const T v = x[row * pitch + i] + b;
      static_cast<int_of<T>*>(run.saturated)[i] -= zones.contain(all<T>(v))[0];
      if (with_histogram) ++histogram[bins_of<T>(all<T>(v))[0]];
    }
  }
}

// An activation has no zone, one, or two: no loop over them within the loop over elements.
template <class T, bool with_histogram>
void input_run_by_zones(const InputRun& run) {
  if (run.zone_count == 0) return input_run_of<T, 0, with_histogram>(run);
  if (run.zone_count == 1) return input_run_of<T, 1, with_histogram>(run);
  input_run_of<T, 2, with_histogram>(run);
}

template <class T>
void input_run(const InputRun& run) {
  run.histogram ? input_run_by_zones<T, true>(run) : input_run_by_zones<T, false>(run);
}

// ---- outputs --------------------------------------------------------------------------------------------------------

// After a block in which something was not finite: what, and how often.
template <class T>
[[gnu::noinline]] void count_not_finite(const OutputRun& run, int64_t i) {
  const T* y = static_cast<const T*>(run.y);
  for (int64_t row = 0; row < run.rows; ++row) {
    const T v = y[row * run.pitch + i];
    run.nan[i] += v != v;
    run.inf[i] += v == unbounded<T> || v == -unbounded<T>;
  }
}

template <class T>
void output_run(const OutputRun& run) {
  using N = Native<T>;
  using I = Native<int_of<T>>;
  using D = Native<double>;
  constexpr int n = lanes<T>;
  const T* y = static_cast<const T*>(run.y);
  T *leasts = static_cast<T*>(run.least), *largests = static_cast<T*>(run.largest);
  int64_t i = 0;
  for (; i + n <= run.columns; i += n) {
    N least = native_load<T>(leasts + i), largest = native_load<T>(largests + i);
    I zeros{};
    D sum[halves<T>], squares[halves<T>];
    for (int h = 0; h < halves<T>; ++h) {
      sum[h] = native_load<double>(run.sum + i + h * lanes<double>);
      squares[h] = native_load<double>(run.squares + i + h * lanes<double>);
    }
    for (int64_t row = 0; row < run.rows; ++row) {
      const T* p = y + row * run.pitch + i;
      const N v = native_load<T>(p);
      least = native_min(v, least);  // the second where one is NaN
      largest = native_max(v, largest);
      zeros -= (I)(v == N{});
      for (int h = 0; h < halves<T>; ++h) {
        const D d = native_load<double>(p + h * lanes<double>);
        sum[h] += d;
        squares[h] += d * d;
      }
    }
    native_store<T>(leasts + i, least);
    native_store<T>(largests + i, largest);
    add_to(run.zeros, i, zeros);
    bool finite = true;
    for (int h = 0; h < halves<T>; ++h) {
      native_store<double>(run.sum + i + h * lanes<double>, sum[h]);
      native_store<double>(run.squares + i + h * lanes<double>, squares[h]);
      finite &= native_bits((Native<int64_t>)(squares[h] < all<double>(unbounded<double>))) + 1 == 1u << lanes<double>;
    }
    if (!finite)
      for (int k = 0; k < n; ++k) count_not_finite<T>(run, i + k);
  }
  for (; i < run.columns; ++i) {
    for (int64_t row = 0; row < run.rows; ++row) {
      const T v = y[row * run.pitch + i];
      leasts[i] = v < leasts[i] ? v : leasts[i];
      largests[i] = v > largests[i] ? v : largests[i];
      static_cast<int_of<T>*>(run.zeros)[i] += v == T(0);
      const double d = v;
      run.sum[i] += d;
      run.squares[i] += d * d;
    }
    if (!(run.squares[i] < unbounded<double>)) count_not_finite<T>(run, i);
  }
}

// ---- gradients ------------------------------------------------------------------------------------------------------

template <class T>
void gradient_run(const GradientRun& run) {
  using I = Native<int_of<T>>;
  using D = Native<double>;
  constexpr int n = lanes<T>;
  const T* grad = static_cast<const T*>(run.grad);
  int64_t i = 0;
  for (; i + n <= run.columns; i += n) {
    I zeros{};
    D squares[halves<T>];
    for (int h = 0; h < halves<T>; ++h) squares[h] = native_load<double>(run.squares + i + h * lanes<double>);
    for (int64_t row = 0; row < run.rows; ++row) {
      const T* p = grad + row * run.pitch + i;
      zeros -= (I)(native_load<T>(p) == Native<T>{});
      for (int h = 0; h < halves<T>; ++h) {
        const D d = native_load<double>(p + h * lanes<double>);
        squares[h] += d * d;
      }
    }
    add_to(run.zeros, i, zeros);
    for (int h = 0; h < halves<T>; ++h) native_store<double>(run.squares + i + h * lanes<double>, squares[h]);
  }
  for (; i < run.columns; ++i)
    for (int64_t row = 0; row < run.rows; ++row) {
      const double d = grad[row * run.pitch + i];
      static_cast<int_of<T>*>(run.zeros)[i] += d == 0;
      run.squares[i] += d * d;
    }
}

template <class T>
constexpr StatisticsRuns runs_of{input_run<T>, output_run<T>, gradient_run<T>};

}  // namespace

StatisticsRuns FUSEDACT_CPU_CAPABILITY::statistics_runs(bool in_double) {
  return in_double ? runs_of<double> : runs_of<float>;
}

}  // namespace fusedact::cpu
