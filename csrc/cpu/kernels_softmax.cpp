// The runs of softmax and log_softmax, forward and backward: three passes over a row, or over a strip of columns side by
// side, that stay in the caches. Compiled once per ISA.
// How an exponential keeps its digits is in softmax/maths.h.
#include "../softmax/maths.h"
#include "../softmax/runs.h"
#include "loops.h"

namespace fusedact::cpu {
namespace {

using namespace of_softmax;

// ---- small parts ----------------------------------------------------------------------------------------------------

template <class T, class S>
FUSEDACT_INLINE Pack<T> get(const S* p, Whole<T>) {
  return load<T>(p);
}
template <class T, class S>
FUSEDACT_INLINE Pack<T> get(const S* p, Part part) {
  return load<T>(p, part.count);
}

// The lanes past the end of a row, which were loaded as zeros, take no part in a maximum or a sum.
template <class T>
FUSEDACT_INLINE Pack<T> only(Pack<T> x, Whole<T>, T) {
  return x;
}
template <class T>
FUSEDACT_INLINE Pack<T> only(Pack<T> x, Part part, T otherwise) {
  return select(mask_from_bits<T>((uint64_t{1} << part.count) - 1), x, Pack<T>(otherwise));
}

template <class T>
FUSEDACT_INLINE T greatest(Pack<T> x) {
  Native<T> n = native_max(native_max(x.v.a, x.v.b), native_max(x.v.c, x.v.d));
  T most = n[0];
  for (int i = 1; i < Pack<T>::native; ++i) most = n[i] > most ? n[i] : most;
  return most;
}

// A sum in float64 of packs of T; of packs of float64 with what each step rounds off.
template <class T>
struct Total {
  using Wide = Lanes<double, Pack<T>::native>;
  Wide lanes{}, lost{};
  FUSEDACT_INLINE void add(Pack<T> x) {
    const auto& v = x.v;
    if constexpr (sizeof(T) == 8) {
      for (Wide n : {v.a, v.b, v.c, v.d}) {
        const Two<Wide> sum = two_sum(lanes, n);
        lanes = sum.hi;
        lost += sum.lo;
      }
    } else {
      lanes += (__builtin_convertvector(v.a, Wide) + __builtin_convertvector(v.b, Wide)) +
               (__builtin_convertvector(v.c, Wide) + __builtin_convertvector(v.d, Wide));
    }
  }
  FUSEDACT_INLINE double value() const {
    Two<double> total{0, 0};
    for (int i = 0; i < Pack<T>::native; ++i) {
      const Two<double> sum = two_sum(total.hi, lanes[i]);
      total = {sum.hi, total.lo + (sum.lo + lost[i])};
    }
    return total.hi - total.hi == 0 ? total.hi + total.lo : total.hi;  // infinite: what it lost is NaN
  }
};

// Calls f(offset, width) for each pack of [0, count), and fold() after every one of float64, every fourth of float32: so many
// are added up in T.
template <class T, class F, class Fold>
FUSEDACT_INLINE void for_folded(int64_t count, F f, Fold fold) {
  constexpr int64_t block = (sizeof(T) == 8 ? 1 : 4) * Pack<T>::size;
  for (int64_t start = 0; start < count; start += block) {
    for_packs<T>(count - start < block ? count - start : block,
                 [&](int64_t i, auto width) FUSEDACT_LAMBDA { f(start + i, width); });
    fold();
  }
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// Passes two and three, where the greatest element is known.
template <class S, bool log, bool biased, bool near>
[[gnu::noinline]] void finish_row(const SoftmaxRows& run, const S* x, S* y, compute_of<S> greatest) {
  using T = compute_of<S>;
  using V = Pack<T>;
  constexpr bool exact = exact_for<S> && near, two = exact && biased;  // without a bias elements have one part
  const T* bias = static_cast<const T*>(run.bias);
  T* work = static_cast<T*>(run.work);
  const V top(greatest), power = power_of(top);
  auto element = [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V v = get<T>(x + i, width);
    if constexpr (biased) return sum_of<exact>(v, read(bias + i, width));
    return Two<V>{v, V(0)};
  };

  V part(0);
  Total<T> total;
  auto fold = [&]() FUSEDACT_LAMBDA {
    total.add(part);
    part = V(0);
  };
  if constexpr (log) {
    const V of_top = weight_of<two, near>(Two<V>{top, V(0)}, top, power);
    const double unit = static_cast<double>(of_top.v.a[0]);
    for_folded<T>(
        run.channels,
        [&](int64_t i, auto width)
            FUSEDACT_LAMBDA { part = part + only(weight_of<two, near>(element(i, width), top, power), width, T(0)); },
        fold);
    const double sum = total.value() / unit;
    if (near && sum >= 3) {  // then results are -1 or less, and what is lost of the sum does not show
      const Two<T> l = sum_of_parts<T>(greatest, log1p(sum - 1));
      const V hi(l.hi), lo(l.lo);
      for_packs<T>(run.channels, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
        Two<V> v = element(i, width);
        V d = v.hi - hi;
        if constexpr (exact) d = select(d > V(-infinity), d + (v.lo - lo), d);
        write(y + i, d, width, run.stream);
      });
      return;
    }
    V tops(0);
    total = {};
    for_folded<T>(
        run.channels,
        [&](int64_t i, auto width) FUSEDACT_LAMBDA {
          Terms<V> t = terms<two, near>(element(i, width), top, power, of_top);
          part = part + only(t.rest, width, T(0));
          tops = tops + only(t.top, width, T(0));
        },
        fold);
    Total<T> count;
    count.add(tops);
    const Two<T> l = halves<T>(log_of(count.value(), total.value(), unit));
    const Two<V> both{V(l.hi), V(l.lo)};
    for_packs<T>(run.channels, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      write(y + i, minus_log<exact>(below<exact>(element(i, width), top), both), width, run.stream);
    });
  } else {
    for_folded<T>(
        run.channels,
        [&](int64_t i, auto width) FUSEDACT_LAMBDA {
          V e = weight_of<two, near>(element(i, width), top, power);
          write(work + i, e, width, false);
          part = part + only(e, width, T(0));
        },
        fold);
    const Two<T> r = inverse<T>(total.value());
    const Two<V> both{V(r.hi), V(r.lo)};
    for_packs<T>(run.channels, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      write(y + i, times<exact>(read(static_cast<const T*>(work) + i, width), both), width, run.stream);
    });
  }
}

template <class S, bool log, bool biased>
void row_of(const SoftmaxRows& run, const S* x, S* y) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const T* bias = static_cast<const T*>(run.bias);
  V most(-infinity);
  for_packs<T>(run.channels, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V v = get<T>(x + i, width);
    if constexpr (biased) v = v + read(bias + i, width);
    most = at_least(most, only(v, width, static_cast<T>(-infinity)));  // passes over NaN
  });
  const T top = greatest(most);
  is_near(top) ? finish_row<S, log, biased, true>(run, x, y, top) : finish_row<S, log, biased, false>(run, x, y, top);
}

template <class S, bool log>
void rows(const SoftmaxRows& run) {
  const S* x = static_cast<const S*>(run.x);
  S* y = static_cast<S*>(run.y);
  for (int64_t row = 0; row < run.rows; ++row, x += run.channels, y += run.channels)
    run.bias ? row_of<S, log, true>(run, x, y) : row_of<S, log, false>(run, x, y);
}

template <class S, bool log>
void backward_rows(const SoftmaxBackwardRows& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const S *grad = static_cast<const S*>(run.grad), *y = static_cast<const S*>(run.y);
  S* grad_x = static_cast<S*>(run.grad_x);
  T* sums = static_cast<T*>(run.sums);
  for (int64_t row = 0; row < run.rows; ++row, grad += run.channels, y += run.channels, grad_x += run.channels) {
    V part(0);
    Total<T> total;
    for_folded<T>(
        run.channels,
        [&](int64_t i, auto width) FUSEDACT_LAMBDA {
          V g = get<T>(grad + i, width);
          part = log ? part + g : fma(g, get<T>(y + i, width), part);
        },
        [&]() FUSEDACT_LAMBDA {
          total.add(part);
          part = V(0);
        });
    const V sum(static_cast<T>(total.value()));
    for_packs<T>(run.channels, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      V r = gradient_of(get<T>(grad + i, width), get<T>(y + i, width), sum, log);
      if (sums) add_to(sums + i, r, width);
      write(grad_x + i, r, width, run.stream);
    });
  }
}

// ---- strips ---------------------------------------------------------------------------------------------------------

// The work space: [channels, pitch], then vectors of one value per column.
template <class T>
struct Columns {
  int64_t pitch;
  T *elements, *most, *sum, *rest, *tops;
  Columns(void* work, int64_t channels, int64_t width)
      : pitch((width + strip_step - 1) / strip_step * strip_step),
        elements(static_cast<T*>(work)),
        most(elements + channels * pitch),
        sum(most + pitch),
        rest(sum + pitch),
        tops(rest + pitch) {}
};

template <class T, class W>
FUSEDACT_INLINE void add_exactly(T* sum, T* rest, Pack<T> x, W width) {
  Two<Pack<T>> s = two_sum(read(static_cast<const T*>(sum), width), x);
  write(sum, s.hi, width, false);
  add_to(rest, s.lo, width);
}

// Passes two and three, where each column's greatest element is known.
template <class S, bool log, bool biased, bool near>
[[gnu::noinline]] void finish_strip(const SoftmaxStrip& run, const Columns<compute_of<S>>& columns) {
  using T = compute_of<S>;
  using V = Pack<T>;
  constexpr bool exact = exact_for<S> && near, two = exact && biased;
  const S* x = static_cast<const S*>(run.x);
  S* y = static_cast<S*>(run.y);
  const T* bias = static_cast<const T*>(run.bias);
  auto over = [&](auto f) FUSEDACT_LAMBDA {  // f(channel, column, width, element, top)
    for (int64_t c = 0; c < run.channels; ++c) {
      const V b(biased ? bias[c] : T(0));
      for_packs<T>(run.width, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
        V v = get<T>(x + c * run.pitch + i, width), top = read(static_cast<const T*>(columns.most) + i, width);
        if constexpr (biased) {
          f(c, i, width, sum_of<exact>(v, b), top);
        } else {
          f(c, i, width, Two<V>{v, V(0)}, top);
        }
      });
    }
  };

  if constexpr (log)  // the weight of each column's greatest
    for_packs<T>(run.width, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      V top = read(static_cast<const T*>(columns.most) + i, width);
      write(columns.elements + i, weight_of<two, near>(Two<V>{top, V(0)}, top, power_of(top)), width, false);
    });
  over([&](int64_t c, int64_t i, auto width, Two<V> v, V top) FUSEDACT_LAMBDA {
    V power = power_of(top);
    if constexpr (log) {
      Terms<V> t = terms<two, near>(v, top, power, read(static_cast<const T*>(columns.elements) + i, width));
      add_exactly(columns.sum + i, columns.rest + i, t.rest, width);
      add_to(columns.tops + i, t.top, width);
    } else {
      V e = weight_of<two, near>(v, top, power);
      write(columns.elements + c * columns.pitch + i, e, width, false);
      add_exactly(columns.sum + i, columns.rest + i, e, width);
    }
  });
  for (int64_t i = 0; i < run.width; ++i) {
    const double sum = static_cast<double>(columns.sum[i]) + static_cast<double>(columns.rest[i]);
    const Two<T> two_parts = log ? halves<T>(log_of(columns.tops[i], sum, columns.elements[i])) : inverse<T>(sum);
    columns.sum[i] = two_parts.hi;
    columns.rest[i] = two_parts.lo;
  }
  over([&](int64_t c, int64_t i, auto width, Two<V> v, V top) FUSEDACT_LAMBDA {
    const Two<V> both{read(static_cast<const T*>(columns.sum) + i, width),
                      read(static_cast<const T*>(columns.rest) + i, width)};
    V r;
    if constexpr (log)
      r = minus_log<exact>(below<exact>(v, top), both);
    else
      r = times<exact>(read(static_cast<const T*>(columns.elements) + c * columns.pitch + i, width), both);
    write(y + c * run.pitch + i, r, width, run.stream);
  });
}

template <class S, bool log, bool biased>
void strip_of(const SoftmaxStrip& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const S* x = static_cast<const S*>(run.x);
  S* y = static_cast<S*>(run.y);
  const T* bias = static_cast<const T*>(run.bias);
  const Columns<T> columns(run.work, run.channels, run.width);

  for (int64_t i = 0; i < columns.pitch; ++i) {
    columns.most[i] = static_cast<T>(-infinity);
    columns.sum[i] = columns.rest[i] = columns.tops[i] = 0;
  }
  for (int64_t c = 0; c < run.channels; ++c) {
    const V b(biased ? bias[c] : T(0));
    for_packs<T>(run.width, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      V v = get<T>(x + c * run.pitch + i, width);
      if constexpr (biased) v = v + b;
      write(columns.most + i, at_least(read(static_cast<const T*>(columns.most) + i, width), v), width, false);
    });
  }
  int64_t near = 0;
  for (int64_t i = 0; i < run.width; ++i) near += is_near(columns.most[i]);
  if (near == run.width) return finish_strip<S, log, biased, true>(run, columns);
  if (near == 0) return finish_strip<S, log, biased, false>(run, columns);
  for (int64_t i = 0; i < run.width; ++i)  // rare: each column alone, so that its bits do not depend on its neighbours'
    strip_of<S, log, biased>({run.channels, 1, run.pitch, x + i, run.bias, y + i, run.work, run.stream});
}

template <class S, bool log>
void strip(const SoftmaxStrip& run) {
  run.bias ? strip_of<S, log, true>(run) : strip_of<S, log, false>(run);
}

template <class S, bool log>
void backward_strip(const SoftmaxBackwardStrip& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const S *grad = static_cast<const S*>(run.grad), *y = static_cast<const S*>(run.y);
  S* grad_x = static_cast<S*>(run.grad_x);
  T* sums = static_cast<T*>(run.sums);
  const Columns<T> columns(run.work, 0, run.width);

  for (int64_t i = 0; i < columns.pitch; ++i) columns.sum[i] = columns.rest[i] = 0;
  for (int64_t c = 0; c < run.channels; ++c)
    for_packs<T>(run.width, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      V g = get<T>(grad + c * run.pitch + i, width);
      add_exactly(columns.sum + i, columns.rest + i, log ? g : g * get<T>(y + c * run.pitch + i, width), width);
    });
  for (int64_t c = 0; c < run.channels; ++c) {
    V part(0);
    for_packs<T>(run.width, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      const int64_t at = c * run.pitch + i;
      const V sum =
          read(static_cast<const T*>(columns.sum) + i, width) + read(static_cast<const T*>(columns.rest) + i, width);
      V r = gradient_of(get<T>(grad + at, width), get<T>(y + at, width), sum, log);
      if (sums) part = part + only(r, width, T(0));
      write(grad_x + at, r, width, run.stream);
    });
    if (sums) {
      Total<T> total;
      total.add(part);
      sums[c] += static_cast<T>(total.value());
    }
  }
}

template <class S, bool log>
constexpr SoftmaxKernels kernels_of{rows<S, log>, strip<S, log>, backward_rows<S, log>, backward_strip<S, log>};

template <class S>
SoftmaxKernels either(bool log) {
  return log ? kernels_of<S, true> : kernels_of<S, false>;
}

}  // namespace

SoftmaxKernels FUSEDACT_CPU_CAPABILITY::softmax_kernels(DType dtype, bool log) {
  switch (dtype) {
    case DType::float32: return either<float>(log);
    case DType::float64: return either<double>(log);
    case DType::bfloat16: return either<BFloat16>(log);
    default: return either<Half>(log);
  }
}

}  // namespace fusedact::cpu
