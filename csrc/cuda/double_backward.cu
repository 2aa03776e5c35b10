// The kernels of the second derivative, from the saved input or output, in float64 whatever the dtype: arithmetic is the
// limit here, not memory, so that one kernel reads every dtype, two elements at a time.
#include "loops.cuh"

namespace fusedact::cuda {
namespace {

constexpr int n = 2;

// Calls f with an element of the dtype: the type is all that it says.
template <class F>
FUSEDACT_DEVICE void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::float32: f(float()); break;
    case DType::float64: f(double()); break;
    case DType::bfloat16: f(bfloat16()); break;
    default: f(float16()); break;
  }
}
FUSEDACT_DEVICE Pack<double, n> read(const void* from, DType dtype, int64_t at, int32_t left, int32_t whole) {
  Pack<double, n> x;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const Pack<T, n> stored = load<T, n>(static_cast<const T*>(from) + at, left, whole);
#pragma unroll
    for (int i = 0; i < n; ++i) x.v[i] = widen<double>(stored.v[i]);
  });
  return x;
}
FUSEDACT_DEVICE void write(void* to, DType dtype, int64_t at, const Pack<double, n>& x, int32_t left, int32_t whole) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    Pack<T, n> stored;
#pragma unroll
    for (int i = 0; i < n; ++i) stored.v[i] = narrow<T>(x.v[i]);
    store(static_cast<T*>(to) + at, stored, left, whole);
  });
}

struct Read {
  Pack<double, n> u, grad, saved;
};

template <template <class> class A, Saved kind>
__global__ void __launch_bounds__(block_threads, 2)
    double_backward_kernel(const Tiles t, const DType dtype, const void* us, const void* grads, const void* saved,
                           const Vector biases, const A<double> f, const Epilogue<double> epilogue, void* grad_grads,
                           void* grad_xs, double* partial_bias) {
  __shared__ double scratch[block_threads * n];
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    Pack<double, n> bias{};
    if constexpr (kind == Saved::input)
      with_type(dtype, [&](auto type) { bias = meet<double, decltype(type), n>(biases, t, p, -0.0); });
    double sum[n] = {};
    for_steps(
        t, p,
        [&](uint32_t at, int32_t left) {
          return Read{read(us, dtype, p.base + at, left, p.whole), read(grads, dtype, p.base + at, left, p.whole),
                      read(saved, dtype, p.base + at, left, p.whole)};
        },
        [&](const Read& in, uint32_t at, int32_t left) {
          Pack<double, n> grad_grad, grad_x;
#pragma unroll
          for (int i = 0; i < n; ++i) {
            double u = in.u.v[i], bend;
            if constexpr (kind == Saved::input) {
              const double v = in.saved.v[i] + bias.v[i];
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

template <template <class> class A, Saved kind>
void launch(const DoubleBackwardArgs& a, const Tiles& t, const Partials& partials, Stream stream) {
  double_backward_kernel<A, kind><<<blocks_for(t), block_threads, 0, stream>>>(
      t, a.dtype, a.u, a.grad, a.saved, a.bias, A<double>(a.scalars.params), Epilogue<double>(a.scalars), a.grad_grad,
      a.grad_x, static_cast<double*>(partials.bias));
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
