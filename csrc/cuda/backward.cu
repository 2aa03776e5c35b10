// The backward kernels of every activation, from each thing that can be saved, for one storage type: FUSEDACT_STORAGE names it.
// The sums for bias and weight are left per unit, and added up by fold.cu.
#include "loops.cuh"

namespace fusedact::cuda {
namespace {

// What a step reads: the gradient, and x, y or the mask's bits.
template <class T, Saved kind>
struct Read {
  static constexpr int n = per_thread<T>;
  Pack<T, n> grad, saved;
};
template <class T>
struct Read<T, Saved::mask> {
  static constexpr int n = per_thread<T>;
  Pack<T, n> grad;
  uint32_t bits;
};

template <template <class> class A, class T, Saved kind, bool weighted, class C = compute_t<A, T>>
__global__ void __launch_bounds__(block_threads, 1)
    backward_kernel(const Tiles t, const T* grads, const void* saved, const Vector biases, const Vector weights,
                    const A<C> shared, const Epilogue<C> epilogue, T* grad_xs, C* partial_bias, C* partial_weight) {
  constexpr int n = per_thread<T>;
  __shared__ C scratch[block_threads * n];
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    Pack<C, n> bias{}, weight{};
    if constexpr (kind == Saved::input) bias = meet<C, T, n>(biases, t, p, C(-0.0));
    if constexpr (weighted) weight = meet<C, T, n>(weights, t, p, C(0));
    C sum[n] = {}, weight_sum[n] = {};
    const T* const grad_base = grads + p.base;
    T* const grad_x_base = grad_xs + p.base;
    for_steps(
        t, p,
        [&](uint32_t at, int32_t left) {
          Read<T, kind> read;
          read.grad = load<T, n>(grad_base + at, left, p.whole);
          if constexpr (kind == Saved::mask)
            read.bits = left > 0 ? get_bits<n>(static_cast<const uint8_t*>(saved), p.base + at) : 0;
          else
            read.saved = load<T, n>(static_cast<const T*>(saved) + p.base + at, left, p.whole);
          return read;
        },
        [&](const Read<T, kind>& read, uint32_t at, int32_t left) {
          if constexpr (weighted) meet_own(weight, weights, p, at, left);
          // What is rare is asked once for all elements: a question to each would cost as much as the answer.
          C g[n], v[n], r[n], w[n];
#pragma unroll
          for (int i = 0; i < n; ++i) g[i] = widen<C>(read.grad.v[i]);
          if (epilogue.active) {
#pragma unroll
            for (int i = 0; i < n; ++i) g[i] *= epilogue.gain;
          }
          if constexpr (kind == Saved::input) {
#pragma unroll
            for (int i = 0; i < n; ++i) v[i] = widen<C>(read.saved.v[i]) + bias.v[i];
            if (epilogue.clamped) {
#pragma unroll
              for (int i = 0; i < n; ++i)
                if (!epilogue.passes(functor<weighted>(shared, weight.v[i]).forward(v[i]))) g[i] = 0;
            }
          }
          Pack<T, n> grad_x;
#pragma unroll
          for (int i = 0; i < n; ++i) {
            const auto& f = functor<weighted>(shared, weight.v[i]);
            if constexpr (kind == Saved::input) {
              r[i] = gradient(f, g[i], v[i]);
              if constexpr (weighted) w[i] = g[i] * f.weight_derivative(v[i]);
            } else if constexpr (kind == Saved::output) {
              r[i] = gradient_from_output(f, g[i], widen<C>(read.saved.v[i]));
            } else {
              r[i] = select(static_cast<bool>(read.bits >> i & 1), f.outer_gradient(g[i]), f.inner_gradient(g[i]));
            }
            grad_x.v[i] = narrow<T>(r[i]);
          }
          store(grad_x_base + at, grad_x, left, p.whole);
          if (left < n) {  // what stands in for the elements beyond the end may have an infinite derivative
#pragma unroll
            for (int i = 0; i < n; ++i)
              if (i >= left) r[i] = w[i] = 0;
          }
#pragma unroll
          for (int i = 0; i < n; ++i) {
            sum[i] += r[i];
            if constexpr (weighted && kind == Saved::input) weight_sum[i] += w[i];
          }
        });
    if (partial_bias) leave_sums(partial_bias, sum, t, unit, p, scratch);
    if constexpr (weighted && kind == Saved::input) {
      if (partial_weight) leave_sums(partial_weight, weight_sum, t, unit, p, scratch);
    }
  }
}

template <template <class> class A, class T, Saved kind, bool weighted>
void launch(const BackwardArgs& a, const Tiles& t, const Partials& partials, Stream stream) {
  using C = compute_t<A, T>;
  backward_kernel<A, T, kind, weighted><<<blocks_for(t), block_threads, 0, stream>>>(
      t, static_cast<const T*>(a.grad), a.saved, a.bias, a.weight, A<C>(a.scalars.params), Epilogue<C>(a.scalars),
      static_cast<T*>(a.grad_x), static_cast<C*>(partials.bias), static_cast<C*>(partials.weight));
}

template <Saved kind>
struct Launchers {
  template <template <class> class A>
  static constexpr BackwardLaunch of() {
    using T = FUSEDACT_STORAGE;
    constexpr bool exists = kind == Saved::input || (kind == Saved::output && requires { &A<float>::invertible; }) ||
                            (kind == Saved::mask && requires(A<float> f, float g) { f.inner_gradient(g); });
    if constexpr (!built<A> || !exists) {
      return nullptr;
    } else if constexpr (has_weight<A>) {
      return [](const BackwardArgs& a, const Tiles& t, const Partials& partials, Stream stream) {
        return a.weight.extent == Extent::none ? launch<A, T, kind, false>(a, t, partials, stream)
                                               : launch<A, T, kind, true>(a, t, partials, stream);
      };
    } else {
      return launch<A, T, kind, false>;
    }
  }
};
template <Saved kind>
constexpr auto table = make_table<BackwardLaunch, Launchers<kind>>(AllActivations{});

}  // namespace

const BackwardLaunch* FUSEDACT_KERNELS::backward_table(Saved kind) {
  switch (kind) {
    case Saved::input: return table<Saved::input>.data();
    case Saved::output: return table<Saved::output>.data();
    default: return table<Saved::mask>.data();
  }
}

}  // namespace fusedact::cuda
