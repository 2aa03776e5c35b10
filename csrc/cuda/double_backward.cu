// The kernels of the second derivative, from the saved input or output, in float64 whatever the dtype, but where the
// activation bends_in_float. Arithmetic is the limit here, not memory, so that one kernel reads every dtype that is computed as it
// computes, two elements at a time. Sums are of float64.
#include "loops.cuh"

namespace fusedact::cuda {
namespace {

constexpr int n = 2;

// Calls f with an element of the dtype, which float64 is only if C is: the type is all that it says.
template <class C, class F>
FUSEDACT_DEVICE void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::float32: f(float()); break;
    case DType::float64:
      if constexpr (sizeof(C) == 8) f(double());
      break;
    case DType::bfloat16: f(bfloat16()); break;
    default: f(float16()); break;
  }
}
template <class C>
FUSEDACT_DEVICE Pack<C, n> read(const void* from, DType dtype, int64_t at, int32_t left, int32_t whole) {
  Pack<C, n> x{};
  with_type<C>(dtype, [&](auto type) {
    using T = decltype(type);
    const Pack<T, n> stored = load<T, n>(static_cast<const T*>(from) + at, left, whole);
#pragma unroll
    for (int i = 0; i < n; ++i) x.v[i] = widen<C>(stored.v[i]);
  });
  return x;
}
template <class C>
FUSEDACT_DEVICE void write(void* to, DType dtype, int64_t at, const Pack<C, n>& x, int32_t left, int32_t whole) {
  with_type<C>(dtype, [&](auto type) {
    using T = decltype(type);
    Pack<T, n> stored;
#pragma unroll
    for (int i = 0; i < n; ++i) stored.v[i] = narrow<T>(x.v[i]);
    store(static_cast<T*>(to) + at, stored, left, whole);
  });
}

template <class C>
struct Read {
  Pack<C, n> u, grad, saved;
};

template <template <class> class A, class C, Saved kind>
__global__ void __launch_bounds__(block_threads, 2)
    double_backward_kernel(const Tiles t, const DType dtype, const void* us, const void* grads, const void* saved,
                           const Vector biases, const A<C> f, const Epilogue<C> epilogue, void* grad_grads,
                           void* grad_xs, double* partial_bias) {
  __shared__ double scratch[block_threads * n];
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    Pack<C, n> bias{};
    if constexpr (kind == Saved::input)
      with_type<C>(dtype, [&](auto type) { bias = meet<C, decltype(type), n>(biases, t, p, C(-0.0)); });
    double sum[n] = {};
    for_steps(
        t, p,
        [&](uint32_t at, int32_t left) {
          return Read<C>{read<C>(us, dtype, p.base + at, left, p.whole),
                         read<C>(grads, dtype, p.base + at, left, p.whole),
                         read<C>(saved, dtype, p.base + at, left, p.whole)};
        },
        [&](const Read<C>& in, uint32_t at, int32_t left) {
          Pack<C, n> grad_grad, grad_x;
#pragma unroll
          for (int i = 0; i < n; ++i) {
            C u = in.u.v[i], bend;
            if constexpr (kind == Saved::input) {
              const C v = in.saved.v[i] + bias.v[i];
              if (epilogue.active) u *= epilogue.gain;
              if (epilogue.clamped && !epilogue.passes(f.forward(v))) u = 0;
              grad_grad.v[i] = gradient(f, u, v);
              bend = f.second(v);
            } else {
              grad_grad.v[i] = gradient_from_output(f, u, in.saved.v[i]);
              bend = f.second_from_output(in.saved.v[i]);
            }
            grad_x.v[i] = u * in.grad.v[i] * bend;
            if (i < left) sum[i] += grad_x.v[i];
          }
          write(grad_grads, dtype, p.base + at, grad_grad, left, p.whole);
          write(grad_xs, dtype, p.base + at, grad_x, left, p.whole);
        });
    if (partial_bias) leave_sums(partial_bias, sum, t, unit, p, scratch);
  }
}

template <template <class> class A, class C, Saved kind>
void launch_in(const DoubleBackwardArgs& a, const Tiles& t, const Partials& partials, Stream stream) {
  double_backward_kernel<A, C, kind><<<blocks_for(t), block_threads, 0, stream>>>(
      t, a.dtype, a.u, a.grad, a.saved, a.bias, A<C>(a.scalars.params), Epilogue<C>(a.scalars), a.grad_grad, a.grad_x,
      static_cast<double*>(partials.bias));
}

template <template <class> class A, Saved kind>
void launch(const DoubleBackwardArgs& a, const Tiles& t, const Partials& partials, Stream stream) {
  if constexpr (A<float>::bends_in_float)
    if (a.dtype != DType::float64) return launch_in<A, float, kind>(a, t, partials, stream);
  launch_in<A, double, kind>(a, t, partials, stream);
}

template <Saved kind>
struct Launchers {
  template <template <class> class A>
  static constexpr DoubleBackwardLaunch of() {
    constexpr bool exists = kind == Saved::input || requires { &A<float>::invertible; };
    if constexpr (built<A> && exists)
      return launch<A, kind>;
    else
      return nullptr;
  }
};
template <Saved kind>
constexpr auto table = make_table<DoubleBackwardLaunch, Launchers<kind>>(AllActivations{});

}  // namespace

const DoubleBackwardLaunch* double_backward_table(Saved kind) {
  return kind == Saved::input ? table<Saved::input>.data() : table<Saved::output>.data();
}

}  // namespace fusedact::cuda
