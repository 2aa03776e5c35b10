// The kernels of gated units, forward and backward, for every activation and one storage type: FUSEDACT_STORAGE names it.
// The arithmetic is that of cpu/kernels_gated.cpp, operation by operation.
#include "../gated/kernels.h"
#include "loops.cuh"

namespace fusedact::cuda {
namespace {

// ---- the halves -----------------------------------------------------------------------------------------------------

template <class T, int n>
struct Both {
  Pack<T, n> gate, value;
};

// Where a thread's elements lie in gate and value. Element e of the result lies at e + e / length * length in each of two
// halves, at e in each of two tensors, and at 2 e where they alternate; between two steps all of a thread's move alike.
template <class T, int n>
struct Access {
  int64_t base, within;  // the first element, and its place in a row of `length`
  int grow;              // a step of 1 in the result is one of 2^grow here
  int32_t whole;

  FUSEDACT_DEVICE Access(const Sides& s, const Tiles& t, const Place& p) {
    const bool halves = !s.two && !s.pairs;
    int64_t row = 0;
    within = 0;
    if (halves && p.limit > 0) {
      const bool small = s.length <= UINT32_MAX && p.base <= UINT32_MAX;
      row = small ? static_cast<int64_t>(static_cast<uint32_t>(p.base) / static_cast<uint32_t>(s.length))
                  : p.base / s.length;
      within = p.base - row * s.length;
    }
    base = s.pairs ? 2 * p.base : p.base + row * s.length;
    grow = s.pairs || (halves && t.along);
    whole = !s.whole ? INT32_MAX : s.pairs ? 2 * n : n;
  }
  FUSEDACT_DEVICE int64_t at(uint32_t step) const { return base + (static_cast<int64_t>(step) << grow); }
  // Calls f(i, offset) for the elements that are there, one by one, over the ends of rows.
  template <class F>
  FUSEDACT_DEVICE void each(const Sides& s, int32_t left, F f) const {
    int64_t offset = 0, column = within;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (i < left) f(i, offset);
      ++offset;
      if (!s.two && ++column == s.length) {
        column = 0;
        offset += s.length;
      }
    }
  }
};

template <class T, int n>
FUSEDACT_DEVICE Both<T, n> read_both(const T* gates, const T* values, const Sides& s, const Access<T, n>& a,
                                     uint32_t step, int32_t left) {
  Both<T, n> x;
  const int64_t at = a.at(step);
  if (s.pairs) {
    const Pack<T, 2 * n> both = load<T, 2 * n>((gates < values ? gates : values) + at, 2 * min(left, n), a.whole);
    const bool second = gates > values;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      x.gate.v[i] = second ? both.v[2 * i + 1] : both.v[2 * i];
      x.value.v[i] = second ? both.v[2 * i] : both.v[2 * i + 1];
    }
  } else if (left >= a.whole) {
    x.gate = load<T, n>(gates + at, left, a.whole);
    x.value = load<T, n>(values + at, left, a.whole);
  } else {
    x = {};
    a.each(s, left, [&](int i, int64_t offset) {
      x.gate.v[i] = gates[at + offset];
      x.value.v[i] = values[at + offset];
    });
  }
  return x;
}
template <class T, int n>
FUSEDACT_DEVICE void write_both(T* gates, T* values, const Both<T, n>& x, const Sides& s, const Access<T, n>& a,
                                uint32_t step, int32_t left) {
  const int64_t at = a.at(step);
  if (s.pairs) {
    Pack<T, 2 * n> both;
    const bool second = gates > values;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      both.v[2 * i] = second ? x.value.v[i] : x.gate.v[i];
      both.v[2 * i + 1] = second ? x.gate.v[i] : x.value.v[i];
    }
    store((second ? values : gates) + at, both, 2 * min(left, n), a.whole);
  } else if (left >= a.whole) {
    store(gates + at, x.gate, left, a.whole);
    store(values + at, x.value, left, a.whole);
  } else {
    a.each(s, left, [&](int i, int64_t offset) {
      gates[at + offset] = x.gate.v[i];
      values[at + offset] = x.value.v[i];
    });
  }
}

// ---- limit, alpha and offset ----------------------------------------------------------------------------------------

template <class C>
struct Changes {
  C alpha, scale, offset, low, high;
  bool any, limited;
  explicit Changes(const GatedScalars& s)
      : alpha(static_cast<C>(s.alpha)),
        scale(static_cast<C>(1 / s.alpha)),
        offset(static_cast<C>(s.offset)),
        low(static_cast<C>(s.limited ? -s.limit : -infinity)),
        high(static_cast<C>(s.limited ? s.limit : infinity)),
        any(s.limited || s.alpha != 1.0 || s.offset != 0.0),
        limited(s.limited) {}
  FUSEDACT_DEVICE C argument(C gate) const { return any ? alpha * at_most(gate, high) : gate; }
  FUSEDACT_DEVICE C factor(C value) const { return any ? at_most(at_least(value, low), high) + offset : value; }
};

// ---- forward --------------------------------------------------------------------------------------------------------

template <template <class> class A, class T, class C = compute_t<A, T>>
__global__ void __launch_bounds__(block_threads, 1)
    gated_forward_kernel(const Tiles t, const Sides sides, const T* gates, const T* values, const Vector gate_biases,
                         const Vector value_biases, const A<C> f, const Changes<C> changes, T* ys) {
  constexpr int n = per_thread<T>;
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    const Access<T, n> access(sides, t, p);
    const Pack<C, n> gate_bias = meet<C, T, n>(gate_biases, t, p, C(-0.0));
    const Pack<C, n> value_bias = meet<C, T, n>(value_biases, t, p, C(-0.0));
    for_steps(
        t, p, [&](uint32_t at, int32_t left) { return read_both<T, n>(gates, values, sides, access, at, left); },
        [&](const Both<T, n>& x, uint32_t at, int32_t left) {
          Pack<T, n> y;
#pragma unroll
          for (int i = 0; i < n; ++i) {
            C a = f.forward(changes.argument(widen<C>(x.gate.v[i]) + gate_bias.v[i]));
            if (changes.any) a = a * changes.scale;
            y.v[i] = narrow<T>(a * changes.factor(widen<C>(x.value.v[i]) + value_bias.v[i]));
          }
          store(ys + p.base + at, y, left, p.whole);
        });
  }
}

template <template <class> class A, class T>
void launch_forward(const GatedForwardArgs& a, const Tiles& t, const Sides& sides, Stream stream) {
  using C = compute_t<A, T>;
  gated_forward_kernel<A, T><<<blocks_for(t), block_threads, 0, stream>>>(
      t, sides, static_cast<const T*>(a.gate), static_cast<const T*>(a.value), a.gate_bias, a.value_bias,
      A<C>(a.scalars.params), Changes<C>(a.scalars), static_cast<T*>(a.y));
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <class T, int n>
struct Read {
  Pack<T, n> grad;
  Both<T, n> x;
};

// a f(x) and b f'(x)
template <class F, class C>
FUSEDACT_DEVICE ValueAndSlope<C> times_both(const F& f, C x, C a, C b) {
  if constexpr (requires { f.value_and_slope(x); }) {
    const ValueAndSlope<C> both = f.value_and_slope(x);
    return {a * both.value, b * both.slope};
  } else {
    return {a * f.forward(x), gradient(f, b, x)};
  }
}

template <template <class> class A, class T, class C = compute_t<A, T>>
__global__ void __launch_bounds__(block_threads, blocks_of<T, C>)
    gated_backward_kernel(const Tiles t, const Sides sides, const T* grads, const T* gates, const T* values,
                          const Vector gate_biases, const Vector value_biases, const A<C> f, const Changes<C> changes,
                          T* grad_gates, T* grad_values, C* partial_gate, C* partial_value) {
  constexpr int n = per_thread<T>;
  __shared__ C scratch[block_threads * n];
  for (uint32_t unit = blockIdx.x; unit < t.units; unit += gridDim.x) {
    const Place p = place<n>(t, unit);
    const Access<T, n> access(sides, t, p);
    const Pack<C, n> gate_bias = meet<C, T, n>(gate_biases, t, p, C(-0.0));
    const Pack<C, n> value_bias = meet<C, T, n>(value_biases, t, p, C(-0.0));
    C gate_sum[n] = {}, value_sum[n] = {};
    for_steps(
        t, p,
        [&](uint32_t at, int32_t left) {
          return Read<T, n>{load<T, n>(grads + p.base + at, left, p.whole),
                            read_both<T, n>(gates, values, sides, access, at, left)};
        },
        [&](const Read<T, n>& read, uint32_t at, int32_t left) {
          Both<T, n> result;
#pragma unroll
          for (int i = 0; i < n; ++i) {
            const C incoming = widen<C>(read.grad.v[i]);
            const C g = widen<C>(read.x.gate.v[i]) + gate_bias.v[i], v = widen<C>(read.x.value.v[i]) + value_bias.v[i];
            const C x = changes.argument(g);
            ValueAndSlope<C> of = times_both(f, x, incoming, incoming * changes.factor(v));
            if (changes.any) of.value = of.value * changes.scale;
            if (changes.limited) {  // as torch.clamp: the limits pass the gradient, NaN does not
              if (!((v >= changes.low) & (v <= changes.high))) of.value = 0;
              if (!(g <= changes.high)) of.slope = 0;
            }
            result.gate.v[i] = narrow<T>(of.slope);
            result.value.v[i] = narrow<T>(of.value);
            // What stands in for the elements beyond the end may have an infinite derivative.
            gate_sum[i] += i < left ? of.slope : C(0);
            value_sum[i] += i < left ? of.value : C(0);
          }
          write_both(grad_gates, grad_values, result, sides, access, at, left);
        });
    if (partial_gate) leave_sums(partial_gate, gate_sum, t, unit, p, scratch);
    if (partial_value) leave_sums(partial_value, value_sum, t, unit, p, scratch);
  }
}

template <template <class> class A, class T>
void launch_backward(const GatedBackwardArgs& a, const Tiles& t, const Sides& sides, const Partials& partials,
                     Stream stream) {
  using C = compute_t<A, T>;
  gated_backward_kernel<A, T><<<blocks_for(t), block_threads, 0, stream>>>(
      t, sides, static_cast<const T*>(a.grad), static_cast<const T*>(a.gate), static_cast<const T*>(a.value),
      a.gate_bias, a.value_bias, A<C>(a.scalars.params), Changes<C>(a.scalars), static_cast<T*>(a.grad_gate),
      static_cast<T*>(a.grad_value), static_cast<C*>(partials.bias), static_cast<C*>(partials.weight));
}

// ---- the tables -----------------------------------------------------------------------------------------------------

struct Forward {
  template <template <class> class A>
  static constexpr GatedLaunch of() {
    if constexpr (built<A>)
      return launch_forward<A, FUSEDACT_STORAGE>;
    else
      return nullptr;
  }
};
struct Backward {
  template <template <class> class A>
  static constexpr GatedBackwardLaunch of() {
    if constexpr (built<A>)
      return launch_backward<A, FUSEDACT_STORAGE>;
    else
      return nullptr;
  }
};
constexpr auto forward_launchers = make_table<GatedLaunch, Forward>(AllActivations{});
constexpr auto backward_launchers = make_table<GatedBackwardLaunch, Backward>(AllActivations{});

}  // namespace

const GatedLaunch* FUSEDACT_KERNELS::gated_table() { return forward_launchers.data(); }
const GatedBackwardLaunch* FUSEDACT_KERNELS::gated_backward_table() { return backward_launchers.data(); }

}  // namespace fusedact::cuda
