// The forward kernels of every activation, for one storage type: FUSEDACT_STORAGE names it.
#include "loops.cuh"

namespace fusedact::cuda {
namespace {

template <template <class> class A, class T, bool weighted, class C = compute_t<A, T>>
__global__ void __launch_bounds__(block_threads, 1)
    forward_kernel(const Tiles t, const T* xs, const Vector biases, const Vector weights, const A<C> shared,
                   const Epilogue<C> epilogue, T* ys, uint8_t* mask) {
  constexpr int n = per_thread<T>;
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    const Pack<C, n> bias = meet<C, T, n>(biases, t, p, C(-0.0));  // x + (-0) is x for every x, also for -0
    Pack<C, n> weight{};
    if constexpr (weighted) weight = meet<C, T, n>(weights, t, p, C(0));
    const T* const x_base = xs + p.base;
    T* const y_base = ys + p.base;
    for_steps(
        t, p, [&](uint32_t at, int32_t left) { return load<T, n>(x_base + at, left, p.whole); },
        [&](const Pack<T, n>& x, uint32_t at, int32_t left) {
          if constexpr (weighted) meet_own(weight, weights, p, at, left);
          // What is rare is asked once for all elements: a question to each would cost as much as the answer.
          C v[n], r[n];
#pragma unroll
          for (int i = 0; i < n; ++i) {
            v[i] = widen<C>(x.v[i]) + bias.v[i];
            r[i] = functor<weighted>(shared, weight.v[i]).forward(v[i]);
          }
          if constexpr (requires(A<C> f) { f.is_outer(v[0]); }) {
            if (mask) {
              uint32_t bits = 0;
#pragma unroll
              for (int i = 0; i < n; ++i) {
                const bool outer = functor<weighted>(shared, weight.v[i]).is_outer(v[i]);
                if (i < left && outer && (!epilogue.clamped || epilogue.passes(r[i]))) bits |= 1u << i;
              }
              put_bits<n>(mask, p.base + at, bits, left > 0);
            }
          }
          if (epilogue.active) {
#pragma unroll
            for (int i = 0; i < n; ++i) r[i] = epilogue.apply(r[i]);
          }
          Pack<T, n> y;
#pragma unroll
          for (int i = 0; i < n; ++i) y.v[i] = narrow<T>(r[i]);
          store(y_base + at, y, left, p.whole);
        });
  }
}

template <template <class> class A, class T, bool weighted>
void launch(const ForwardArgs& a, const Tiles& t, Stream stream) {
  using C = compute_t<A, T>;
  forward_kernel<A, T, weighted><<<blocks_for(t), block_threads, 0, stream>>>(
      t, static_cast<const T*>(a.x), a.bias, a.weight, A<C>(a.scalars.params), Epilogue<C>(a.scalars),
      static_cast<T*>(a.y), a.mask);
}

struct Launchers {
  template <template <class> class A>
  static constexpr ForwardLaunch of() {
    using T = FUSEDACT_STORAGE;
    if constexpr (!built<A>) {
      return nullptr;
    } else if constexpr (has_weight<A>) {
      return [](const ForwardArgs& a, const Tiles& t, Stream stream) {
        return a.weight.extent == Extent::none ? launch<A, T, false>(a, t, stream) : launch<A, T, true>(a, t, stream);
      };
    } else {
      return launch<A, T, false>;
    }
  }
};
constexpr auto table = make_table<ForwardLaunch, Launchers>(AllActivations{});

}  // namespace

const ForwardLaunch* FUSEDACT_KERNELS::forward_table() { return table.data(); }

}  // namespace fusedact::cuda
