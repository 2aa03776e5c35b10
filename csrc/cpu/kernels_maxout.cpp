// The runs of maxout, forward: the largest of several pieces, and which. Compiled once per ISA.
#include "../maxout/runs.h"
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <class T, class S>
FUSEDACT_INLINE Pack<T> get(const S* p, Whole<T>) {
  return load<T>(p);
}
template <class T, class S>
FUSEDACT_INLINE Pack<T> get(const S* p, Part part) {
  return load<T>(p, part.count);
}

// The best so far: the first of equals; NaN beats all numbers, the first NaN all others. As torch.max.
template <class V>
struct Best {
  V value, which;
  FUSEDACT_INLINE void meet(V v, int64_t piece) {
    auto better = (v > value) | ((v != v) & (value == value));
    value = select(better, v, value);
    which = select(better, V(piece), which);
  }
};

template <class T, class S, class W>
FUSEDACT_INLINE void put(const Best<Pack<T>>& best, S* y, uint8_t* indices, W width) {
  write(y, best.value, width, false);
  alignas(64) T lane[Pack<T>::size];
  store(static_cast<T*>(lane), best.which);
  for (int i = 0; i < width_of(width); ++i) indices[i] = static_cast<uint8_t>(lane[i]);
}

// Pieces side by side: x + bias a few results at a time, then every piece's lanes gathered.
template <class S>
void together(const MaxoutRun& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const S* x = static_cast<const S*>(run.x);
  S* y = static_cast<S*>(run.y);
  const T* bias = static_cast<const T*>(run.bias);
  const int64_t k = run.pieces;
  alignas(64) T sum[V::size * 256], lane[V::size] = {};
  for_packs<T>(run.count, [&](int64_t o, auto width) FUSEDACT_LAMBDA {
    const int n = width_of(width);
    for_packs<T>(n * k, [&](int64_t i, auto w) FUSEDACT_LAMBDA {
      V v = get<T>(x + o * k + i, w);
      if (bias) v = v + read(bias + o * k + i, w);
      write(sum + i, v, w, false);
    });
    auto piece = [&](int64_t j) FUSEDACT_LAMBDA {
      for (int i = 0; i < n; ++i) lane[i] = sum[i * k + j];
      return load<T>(static_cast<const T*>(lane));
    };
    Best<V> best{piece(0), V(0)};
    for (int64_t j = 1; j < k; ++j) best.meet(piece(j), j);
    put<T>(best, y + o, run.indices + o, width);
  });
}

// Pieces a step apart, results side by side.
template <class S>
void apart(const MaxoutRun& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const S* x = static_cast<const S*>(run.x);
  S* y = static_cast<S*>(run.y);
  const T* bias = static_cast<const T*>(run.bias);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    auto piece = [&](int64_t j) FUSEDACT_LAMBDA {
      V v = get<T>(x + j * run.step + i, width);
      return bias ? v + V(bias[j]) : v;
    };
    Best<V> best{piece(0), V(0)};
    for (int64_t j = 1; j < run.pieces; ++j) best.meet(piece(j), j);
    put<T>(best, y + i, run.indices + i, width);
  });
}

template <class S>
void run_of(const MaxoutRun& run) {
  run.step == 1 ? together<S>(run) : apart<S>(run);
}

}  // namespace

void (*FUSEDACT_CPU_CAPABILITY::maxout_kernel(DType dtype))(const MaxoutRun&) {
  switch (dtype) {
    case DType::float32: return run_of<float>;
    case DType::float64: return run_of<double>;
    case DType::bfloat16: return run_of<BFloat16>;
    default: return run_of<Half>;
  }
}

}  // namespace fusedact::cpu
