// The runs around the activation of a gated unit. Compiled once per ISA; knows no activation.
#include "gated.h"
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <class T>
void gate_run(const GateRun& run) {
  using V = Pack<T>;
  const V alpha(run.alpha), limit(run.limit);
  const T* x = static_cast<const T*>(run.x);
  T* t = static_cast<T*>(run.t);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    write(t + i, alpha * at_most(read<T>(x + i, width) + along<T>(run.bias, i, width), limit), width, false);
  });
}

template <class T>
void gated_run(const GatedRun& run) {
  using V = Pack<T>;
  const V scale(run.scale), offset(run.offset), low(-run.limit), high(run.limit);
  const T *a = static_cast<const T*>(run.a), *value = static_cast<const T*>(run.value);
  T* y = static_cast<T*>(run.y);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V v = read<T>(value + i, width) + along<T>(run.bias, i, width);
    if (run.limited) v = at_most(at_least(v, low), high);
    write(y + i, scale * read<T>(a + i, width) * (v + offset), width, run.stream);
  });
  if (run.stream) stream_fence();
}

template <class T>
void gated_backward_run(const GatedBackwardRun& run) {
  using V = Pack<T>;
  const V scale(run.scale), offset(run.offset), low(-run.limit), high(run.limit);
  const T *grad = static_cast<const T*>(run.grad), *a = static_cast<const T*>(run.a);
  const T *gate = static_cast<const T*>(run.gate), *value = static_cast<const T*>(run.value);
  T *t = static_cast<T*>(run.t), *sum = static_cast<T*>(run.value_sum);
  T *grad_a = static_cast<T*>(run.grad_a), *grad_value = static_cast<T*>(run.grad_value);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V g = read<T>(grad + i, width), v = read<T>(value + i, width) + along<T>(run.value_bias, i, width);
    V of_value = g * (scale * read<T>(a + i, width)), of_a;
    if (run.limited) {
      V bounded = at_most(at_least(v, low), high);
      of_value = select((v >= low) & (v <= high), of_value, V(0));
      auto passes = read<T>(gate + i, width) + along<T>(run.gate_bias, i, width) <= high;
      of_a = select(passes, g * (bounded + offset), V(0));
      write(t + i, select(passes, read<T>(static_cast<const T*>(t) + i, width), V(1)), width, false);
    } else {
      of_a = g * (v + offset);
    }
    write(grad_a + i, of_a, width, false);
    if (sum) add_to(sum + i, of_value, width);
    write(grad_value + i, of_value, width, run.stream);
  });
  if (run.stream) stream_fence();
}

// ---- pairs ----------------------------------------------------------------------------------------------------------

// The lanes of two vectors as one list: every second one, from `from` on; and the first or second half, alternating.
template <class T>
FUSEDACT_INLINE Native<T> every_second(Native<T> a, Native<T> b, int from) {
  constexpr int n = Pack<T>::native;
  Native<int_of<T>> lanes;
  for (int i = 0; i < n; ++i) lanes[i] = 2 * i + from;
  return __builtin_shuffle(a, b, lanes);
}
template <class T>
FUSEDACT_INLINE Native<T> alternating(Native<T> a, Native<T> b, int from) {
  constexpr int n = Pack<T>::native;
  Native<int_of<T>> lanes;
  for (int i = 0; i < n; ++i) lanes[i] = (from + i) / 2 + (i % 2) * n;
  return __builtin_shuffle(a, b, lanes);
}

template <class T>
void split_run(const void* from, void* to_first, void* to_second, int64_t count) {
  constexpr int n = Pack<T>::native;
  const T* pairs = static_cast<const T*>(from);
  T *first = static_cast<T*>(to_first), *second = static_cast<T*>(to_second);
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    const Native<T> a = native_load<T>(pairs + 2 * i), b = native_load<T>(pairs + 2 * i + n);
    native_store<T>(first + i, every_second<T>(a, b, 0));
    native_store<T>(second + i, every_second<T>(a, b, 1));
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
    const Native<T> left = alternating<T>(a, b, 0), right = alternating<T>(a, b, n);
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
  if (stream) stream_fence();
}

template <class T>
constexpr GatedKernels kernels_of{gate_run<T>, gated_run<T>, gated_backward_run<T>, split_run<T>, merge_run<T>};

}  // namespace

GatedKernels FUSEDACT_CPU_CAPABILITY::gated_kernels(bool in_double) {
  return in_double ? kernels_of<double> : kernels_of<float>;
}
}  // namespace fusedact::cpu
