// The runs of gated units, for every activation: it and its slope are computed together, and share what they can. Compiled
// once per ISA; knows no activation by name.
#include <utility>

#include "gated.h"
#include "loops.h"

namespace fusedact::cpu {
namespace {

// What is done to gate and value beside the activation; most calls want nothing of it.
template <class V>
struct Changes {
  V alpha, scale, offset, low, high;
  bool active, limited;
  explicit Changes(const GatedScalars& s)
      : alpha(s.alpha),
        scale(1 / s.alpha),
        offset(s.offset),
        low(s.limited ? -s.limit : -infinity),
        high(s.limited ? s.limit : infinity),
        active(s.limited || s.alpha != 1.0 || s.offset != 0.0),
        limited(s.limited) {}
  FUSEDACT_INLINE V argument(V gate) const { return active ? alpha * at_most(gate, high) : gate; }
  FUSEDACT_INLINE V factor(V value) const { return active ? at_most(at_least(value, low), high) + offset : value; }
};

template <template <class> class A, class S>
void gated_run(const GatedRun& run) {
  using V = PackOf<S>;
  using T = typename V::scalar;
  const A<V> f(run.scalars->params);
  const Changes<V> changes(*run.scalars);
  const Elements<S> gate(run.gate, run.ahead), value(run.value, run.ahead), y(run.y);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V g = gate.read(i, width) + V(along<T>(run.gate_bias, i, width));
    V a = f.forward(changes.argument(g));
    if (changes.active) a = a * changes.scale;
    V v = value.read(i, width) + V(along<T>(run.value_bias, i, width));
    y.write(i, a * changes.factor(v), width, run.stream);
  });
}

// a f(x) and b f'(x)
template <class F, class V>
FUSEDACT_INLINE ValueAndSlope<V> times_both(const F& f, V x, V a, V b) {
  if constexpr (requires { f.value_and_slope(x); }) {
    auto [value, slope] = f.value_and_slope(x);
    return {a * value, b * slope};
  } else {
    return {a * f.forward(x), gradient(f, b, x)};
  }
}

// A loop that asks for no changes beside the one that does: the questions and what they keep cost 5 % here, nothing forward.
template <template <class> class A, class S>
void gated_backward_run(const GatedBackwardRun& run) {
  using V = PackOf<S>;
  using T = typename V::scalar;
  const A<V> f(run.scalars->params);
  const Changes<V> changes(*run.scalars);
  const Elements<S> grad(run.grad, run.ahead), gate(run.gate, run.ahead), value(run.value, run.ahead);
  const Elements<S> grad_gate(run.grad_gate), grad_value(run.grad_value);
  T *gate_sum = static_cast<T*>(run.gate_sum), *value_sum = static_cast<T*>(run.value_sum);
  auto loop = [&](auto plain) FUSEDACT_LAMBDA {
    for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      V incoming = grad.read(i, width);
      V g = gate.read(i, width) + V(along<T>(run.gate_bias, i, width));
      V v = value.read(i, width) + V(along<T>(run.value_bias, i, width));
      ValueAndSlope<V> of;  // the gradients of value and gate
      if constexpr (plain) {
        of = times_both(f, g, incoming, incoming * v);
      } else {
        of = times_both(f, changes.argument(g), incoming, incoming * changes.factor(v));
        of.value = of.value * changes.scale;
        if (changes.limited) {  // as torch.clamp: the limits pass the gradient, NaN does not
          of.value = select((v >= changes.low) & (v <= changes.high), of.value, V(0));
          of.slope = select(g <= changes.high, of.slope, V(0));
        }
      }
      grad_gate.write(i, of.slope, width, run.stream);
      grad_value.write(i, of.value, width, run.stream);
      if (gate_sum) add_to(gate_sum + i, of.slope, width);
      if (value_sum) add_to(value_sum + i, of.value, width);
    });
  };
  if (changes.active)
    loop(std::false_type{});
  else
    loop(std::true_type{});
}

// ---- pairs ----------------------------------------------------------------------------------------------------------

template <class T, int... lanes>
FUSEDACT_INLINE Native<T> shuffled(Native<T> a, Native<T> b) {
#if defined(__clang__)  // g++ has this one since 12 only
  return __builtin_shufflevector(a, b, lanes...);
#else
  return __builtin_shuffle(a, b, Native<int_of<T>>{lanes...});
#endif
}
// The lanes of two vectors as one list: every second one, from `from` on; and the first or second half, alternating.
template <class T>
using EachLane = std::make_integer_sequence<int, Pack<T>::native>;
template <class T, int from, int... i>
FUSEDACT_INLINE Native<T> every_second(Native<T> a, Native<T> b, std::integer_sequence<int, i...>) {
  return shuffled<T, 2 * i + from...>(a, b);
}
template <class T, int from, int... i>
FUSEDACT_INLINE Native<T> alternating(Native<T> a, Native<T> b, std::integer_sequence<int, i...>) {
  return shuffled<T, (from + i) / 2 + (i % 2) * static_cast<int>(sizeof...(i))...>(a, b);
}

template <class T>
void split_run(const void* from, void* to_first, void* to_second, int64_t count) {
  constexpr int n = Pack<T>::native;
  const T* pairs = static_cast<const T*>(from);
  T *first = static_cast<T*>(to_first), *second = static_cast<T*>(to_second);
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    const Native<T> a = native_load<T>(pairs + 2 * i), b = native_load<T>(pairs + 2 * i + n);
    native_store<T>(first + i, every_second<T, 0>(a, b, EachLane<T>{}));
    native_store<T>(second + i, every_second<T, 1>(a, b, EachLane<T>{}));
  }
  for (; i < count; ++i) {
    first[i] = pairs[2 * i];
    second[i] = pairs[2 * i + 1];
  }
}

template <class T>
void merge_run(const void* of_first, const void* of_second, void* to, int64_t count, bool stream) {
  constexpr int n = Pack<T>::native;
  const T *first = static_cast<const T*>(of_first), *second = static_cast<const T*>(of_second);
  T* pairs = static_cast<T*>(to);
  stream = stream && reinterpret_cast<uintptr_t>(pairs) % vector_bytes == 0;
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    const Native<T> a = native_load<T>(first + i), b = native_load<T>(second + i);
    const Native<T> left = alternating<T, 0>(a, b, EachLane<T>{}), right = alternating<T, n>(a, b, EachLane<T>{});
    if (stream) {
      native_stream(pairs + 2 * i, left);
      native_stream(pairs + 2 * i + n, right);
    } else {
      native_store<T>(pairs + 2 * i, left);
      native_store<T>(pairs + 2 * i + n, right);
    }
  }
  for (; i < count; ++i) {
    pairs[2 * i] = first[i];
    pairs[2 * i + 1] = second[i];
  }
}

// ---- the tables -----------------------------------------------------------------------------------------------------

constexpr auto forward_runs = make_table<GatedRun>(AllActivations{}, []<template <class> class A, class S>() {
  if constexpr (exists<A, S>)
    return Function<GatedRun>(gated_run<A, S>);
  else
    return Function<GatedRun>(nullptr);
});
constexpr auto backward_runs = make_table<GatedBackwardRun>(AllActivations{}, []<template <class> class A, class S>() {
  if constexpr (exists<A, S>)
    return Function<GatedBackwardRun>(gated_backward_run<A, S>);
  else
    return Function<GatedBackwardRun>(nullptr);
});

}  // namespace

GatedKernels FUSEDACT_CPU_CAPABILITY::gated_kernels() {
  return {as_table<GatedRun>(forward_runs),
          as_table<GatedBackwardRun>(backward_runs),
          {split_run<float>, split_run<double>},
          {merge_run<float>, merge_run<double>}};
}
}  // namespace fusedact::cpu
