// The forward kernels of every activation, for one storage type: FUSEDACT_STORAGE names it.
#include "loops.cuh"

namespace fusedact::cuda {
namespace {

template <template <class> class A, class T, bool weighted, class C = compute_t<A, T>>
__global__ void __launch_bounds__(block_threads)
    forward_kernel(const Tiles t, const T* xs, const Vector biases, const Vector weights, const A<C> shared,
                   const Epilogue<C> epilogue, T* ys, uint8_t* mask) {
  constexpr int n = per_thread<T>;
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    const Pack<C, n> bias = meet<C, T, n>(biases, t, p, C(-0.0));  // x + (-0) is x for every x, also for -0
    Pack<C, n> weight{};
    if constexpr (weighted) weight = meet<C, T, n>(weights, t, p, C(0));
    for_steps(
        t, p, [&](uint32_t at) { return load<T, n>(xs + p.base + at, count_at<n>(p, at), t.aligned); },
        [&](const Pack<T, n>& x, uint32_t at) {
          const uint32_t count = count_at<n>(p, at);
          if constexpr (weighted) meet_own(weight, weights, t, p.base + at, count);
          Pack<T, n> y;
          uint32_t bits = 0;
#pragma unroll
          for (int i = 0; i < n; ++i) {
            const auto& f = functor<weighted>(shared, weight.v[i]);
            const C v = widen<C>(x.v[i]) + bias.v[i];
            C r = f.forward(v);
            if constexpr (requires { f.is_outer(v); }) {
              if (mask && i < count && f.is_outer(v) && (!epilogue.clamped || epilogue.passes(r))) bits |= 1u << i;
            }
            if (epilogue.active) r = epilogue.apply(r);
            y.v[i] = narrow<T>(r);
          }
          store(ys + p.base + at, y, count, t.aligned);
          if constexpr (requires(A<C> f, C v) { f.is_outer(v); }) {
            if (mask) put_bits<n>(mask, p.base + at, bits, count > 0);
          }
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
