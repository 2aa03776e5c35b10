// The kernels of the epilogue, forward and backward, for every activation and one storage type: FUSEDACT_STORAGE names it.
// Dropout's mask is not stored: backward draws it again from the seed.
#include "../epilogue/kernels.h"
#include "loops.cuh"
#include "philox.cuh"

namespace fusedact::cuda {
namespace {

// What dropout multiplies the elements by.
template <class C, int n>
FUSEDACT_DEVICE Pack<C, n> factors(const Dropout& d, uint64_t seed, int64_t at, int32_t left, int32_t whole) {
  if (d.source == Dropout::Source::mask) return load<C, n>(static_cast<const C*>(d.mask) + at, left, whole);
  const uint32_t bits = kept_bits<n>(d, seed, at);
  Pack<C, n> x;
#pragma unroll
  for (int i = 0; i < n; ++i) x.v[i] = bits >> i & 1 ? static_cast<C>(d.factor) : C(0);
  return x;
}

// ---- forward --------------------------------------------------------------------------------------------------------

template <class T, int n>
struct Two {
  Pack<T, n> first, second;
};

template <template <class> class A, class T, bool weighted, class C = compute_t<A, T>>
__global__ void __launch_bounds__(block_threads, blocks_of<T, C>)
    epilogue_kernel(const Tiles t, const T* xs, const T* residuals, const Vector scales, const Vector biases,
                    const Vector weights, const A<C> shared, const Epilogue<C> epilogue, const Dropout dropout, T* ys) {
  constexpr int n = per_thread<T>;
  const uint64_t seed = seed_of(dropout);
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    const Pack<C, n> scale = meet<C, T, n>(scales, t, p, C(1)), bias = meet<C, T, n>(biases, t, p, C(-0.0));
    Pack<C, n> weight{};
    if constexpr (weighted) weight = meet<C, T, n>(weights, t, p, C(0));
    for_steps(
        t, p,
        [&](uint32_t at, int32_t left) {
          Two<T, n> read{};
          read.first = load<T, n>(xs + p.base + at, left, p.whole);
          if (residuals) read.second = load<T, n>(residuals + p.base + at, left, p.whole);
          return read;
        },
        [&](const Two<T, n>& read, uint32_t at, int32_t left) {
          if constexpr (weighted) meet_own(weight, weights, p, at, left);
          C r[n];
#pragma unroll
          for (int i = 0; i < n; ++i)
            r[i] = functor<weighted>(shared, weight.v[i]).forward(widen<C>(read.first.v[i]) * scale.v[i] + bias.v[i]);
          if (epilogue.active) {
#pragma unroll
            for (int i = 0; i < n; ++i) r[i] = epilogue.apply(r[i]);
          }
          if (dropout.source != Dropout::Source::none) {
            const Pack<C, n> factor = factors<C, n>(dropout, seed, p.base + at, left, p.whole);
#pragma unroll
            for (int i = 0; i < n; ++i) r[i] = r[i] * factor.v[i];
          }
          if (residuals) {
#pragma unroll
            for (int i = 0; i < n; ++i) r[i] = r[i] + widen<C>(read.second.v[i]);
          }
          Pack<T, n> y;
#pragma unroll
          for (int i = 0; i < n; ++i) y.v[i] = narrow<T>(r[i]);
          store(ys + p.base + at, y, left, p.whole);
        });
  }
}

template <template <class> class A, class T, bool weighted>
void launch_forward(const EpilogueArgs& a, const Tiles& t, Stream stream) {
  using C = compute_t<A, T>;
  epilogue_kernel<A, T, weighted><<<blocks_for(t), block_threads, 0, stream>>>(
      t, static_cast<const T*>(a.x), static_cast<const T*>(a.residual), a.scale, a.bias, a.weight,
      A<C>(a.scalars.params), Epilogue<C>(a.scalars), a.dropout, static_cast<T*>(a.y));
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <template <class> class A, class T, bool weighted, class C = compute_t<A, T>>
__global__ void __launch_bounds__(block_threads, blocks_of<T, C>)
    epilogue_backward_kernel(const Tiles t, const T* grads, const T* xs, const Vector scales, const Vector biases,
                             const Vector weights, const A<C> shared, const Epilogue<C> epilogue, const Dropout dropout,
                             T* grad_xs, C* partial_bias, C* partial_scale, C* partial_weight) {
  constexpr int n = per_thread<T>;
  __shared__ C scratch[block_threads * n];
  const uint64_t seed = seed_of(dropout);
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    const Pack<C, n> scale = meet<C, T, n>(scales, t, p, C(1)), bias = meet<C, T, n>(biases, t, p, C(-0.0));
    Pack<C, n> weight{};
    if constexpr (weighted) weight = meet<C, T, n>(weights, t, p, C(0));
    C sum[n] = {}, second[n] = {};  // of the bias; of the scale or the weight
    for_steps(
        t, p,
        [&](uint32_t at, int32_t left) {
          Two<T, n> read{};
          read.first = load<T, n>(grads + p.base + at, left, p.whole);
          if (xs) read.second = load<T, n>(xs + p.base + at, left, p.whole);
          return read;
        },
        [&](const Two<T, n>& read, uint32_t at, int32_t left) {
          if constexpr (weighted) meet_own(weight, weights, p, at, left);
          C g[n], x[n], v[n];
#pragma unroll
          for (int i = 0; i < n; ++i) g[i] = widen<C>(read.first.v[i]);
          if (dropout.source != Dropout::Source::none) {
            const Pack<C, n> factor = factors<C, n>(dropout, seed, p.base + at, left, p.whole);
#pragma unroll
            for (int i = 0; i < n; ++i) g[i] = g[i] * factor.v[i];
          }
#pragma unroll
          for (int i = 0; i < n; ++i) {
            x[i] = widen<C>(read.second.v[i]);
            v[i] = x[i] * scale.v[i] + bias.v[i];
          }
          if (epilogue.active) {
#pragma unroll
            for (int i = 0; i < n; ++i) g[i] *= epilogue.gain;
          }
          if (epilogue.clamped) {
#pragma unroll
            for (int i = 0; i < n; ++i)
              if (!epilogue.passes(functor<weighted>(shared, weight.v[i]).forward(v[i]))) g[i] = 0;
          }
          Pack<T, n> grad_x;
#pragma unroll
          for (int i = 0; i < n; ++i) {
            const auto& f = functor<weighted>(shared, weight.v[i]);
            const C r = gradient(f, g[i], v[i]);
            C w = partial_scale ? r * x[i] : C(0);
            if constexpr (weighted) {
              if (partial_weight) w = g[i] * f.weight_derivative(v[i]);
            }
            grad_x.v[i] = narrow<T>(r * scale.v[i]);
            // What stands in for the elements beyond the end may have an infinite derivative.
            sum[i] += i < left ? r : C(0);
            second[i] += i < left ? w : C(0);
          }
          if (grad_xs) store(grad_xs + p.base + at, grad_x, left, p.whole);
        });
    if (partial_bias) leave_sums(partial_bias, sum, t, unit, p, scratch);
    if (partial_scale) leave_sums(partial_scale, second, t, unit, p, scratch);
    if constexpr (weighted) {
      if (partial_weight) leave_sums(partial_weight, second, t, unit, p, scratch);
    }
  }
}

template <template <class> class A, class T, bool weighted>
void launch_backward(const EpilogueBackwardArgs& a, const Tiles& t, const Partials& partials, Stream stream) {
  using C = compute_t<A, T>;
  C *second = static_cast<C*>(partials.weight), *of_scale = a.grad_scale.data ? second : nullptr;
  epilogue_backward_kernel<A, T, weighted><<<blocks_for(t), block_threads, 0, stream>>>(
      t, static_cast<const T*>(a.grad), static_cast<const T*>(a.x), a.scale, a.bias, a.weight, A<C>(a.scalars.params),
      Epilogue<C>(a.scalars), a.dropout, static_cast<T*>(a.grad_x), static_cast<C*>(partials.bias), of_scale,
      of_scale ? nullptr : second);
}

// ---- the tables -----------------------------------------------------------------------------------------------------

struct Forward {
  template <template <class> class A>
  static constexpr EpilogueLaunch of() {
    using T = FUSEDACT_STORAGE;
    if constexpr (!built<A>) {
      return nullptr;
    } else if constexpr (has_weight<A>) {
      return [](const EpilogueArgs& a, const Tiles& t, Stream stream) {
        return a.weight.extent == Extent::none ? launch_forward<A, T, false>(a, t, stream)
                                               : launch_forward<A, T, true>(a, t, stream);
      };
    } else {
      return launch_forward<A, T, false>;
    }
  }
};
struct Backward {
  template <template <class> class A>
  static constexpr EpilogueBackwardLaunch of() {
    using T = FUSEDACT_STORAGE;
    if constexpr (!built<A>) {
      return nullptr;
    } else if constexpr (has_weight<A>) {
      return [](const EpilogueBackwardArgs& a, const Tiles& t, const Partials& partials, Stream stream) {
        return a.weight.extent == Extent::none ? launch_backward<A, T, false>(a, t, partials, stream)
                                               : launch_backward<A, T, true>(a, t, partials, stream);
      };
    } else {
      return launch_backward<A, T, false>;
    }
  }
};
constexpr auto forward_launchers = make_table<EpilogueLaunch, Forward>(AllActivations{});
constexpr auto backward_launchers = make_table<EpilogueBackwardLaunch, Backward>(AllActivations{});

}  // namespace

const EpilogueLaunch* FUSEDACT_KERNELS::epilogue_table() { return forward_launchers.data(); }
const EpilogueBackwardLaunch* FUSEDACT_KERNELS::epilogue_backward_table() { return backward_launchers.data(); }

}  // namespace fusedact::cuda
