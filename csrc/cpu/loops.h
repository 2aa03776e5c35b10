// The vector loops over a run: load, add the bias, apply, store. Body and tail are one text.
//
// Knows packs and the shape of an activation's struct, but no activation by name. Compiled once per ISA, every symbol
// local to its file.
#pragma once

#include <array>

#include "../activations.h"
#include "pack.h"
#include "segments.h"

namespace fusedact::cpu {
namespace {

template <class F>
struct value_of;
template <template <class> class A, class V>
struct value_of<A<V>> {
  using type = V;
};
template <class F>
constexpr bool has_weight = std::is_constructible_v<F, const double*, typename value_of<F>::type>;

// ---- reading and writing a run of packs -----------------------------------------------------------------------------

// Calls f(offset, width) for each pack of [0, count): width is a constant for whole packs, so that loads are plain, and
// a number in the last.
template <class T>
struct Whole {};
struct Part {
  int count;
};
template <class T, class F>
FUSEDACT_INLINE void for_packs(int64_t count, F f) {
  constexpr int n = Pack<T>::size;
  int64_t i = 0;
  for (; i + n <= count; i += n) f(i, Whole<T>{});
  if (i < count) f(i, Part{static_cast<int>(count - i)});
}
template <class S>
FUSEDACT_INLINE Pack<compute_of<S>> read(const S* p, Whole<compute_of<S>>) {
  return load<compute_of<S>>(p);
}
template <class S>
FUSEDACT_INLINE Pack<compute_of<S>> read(const S* p, Part part) {
  return load<compute_of<S>>(p, part.count);
}
template <class T, bool brief, class S>
FUSEDACT_INLINE void write(S* p, Pack<T, brief> x, Whole<T>, bool stream) {
  if (stream && reinterpret_cast<uintptr_t>(p) % vector_bytes == 0) {
    stream_pack(p, x);
  } else {
    store(p, x);
  }
}
template <class T, bool brief, class S>
FUSEDACT_INLINE void write(S* p, Pack<T, brief> x, Part part, bool) {
  store(p, x, part.count);
}
template <class T, bool brief>
FUSEDACT_INLINE void add_to(T* sum, Pack<T, brief> x, Whole<T>) {
  store(sum, load<T>(static_cast<const T*>(sum)) + Pack<T>(x));
}
template <class T, bool brief>
FUSEDACT_INLINE void add_to(T* sum, Pack<T, brief> x, Part part) {
  store(sum, load<T>(static_cast<const T*>(sum), part.count) + Pack<T>(x), part.count);
}
template <class T, class W>
FUSEDACT_INLINE Pack<T> along(const Lane& lane, int64_t i, W width) {
  return read<T>(static_cast<const T*>(lane.values) + i * lane.step, width);  // no branch: a step of 0 stays
}

// What elements stored as S are computed in.
template <class S>
using PackOf = Pack<compute_of<S>, sizeof(S) == 2>;

// A tensor's elements, stored as S, seen as packs. What is read `ahead` is asked for 4 KiB before its turn.
template <class S>
class Elements {
  using V = PackOf<S>;
  using T = typename V::scalar;
  S* p_;
  bool ahead_;

 public:
  explicit Elements(const void* p, bool ahead = false) : p_(static_cast<S*>(const_cast<void*>(p))), ahead_(ahead) {}

  template <class W>
  FUSEDACT_INLINE V read(int64_t i, W width) const {
    if (ahead_ && std::is_same_v<W, Whole<T>>) fetch(i);
    return cpu::read<S>(p_ + i, width);
  }
  template <class W>
  FUSEDACT_INLINE void write(int64_t i, V x, W width, bool stream) const {
    cpu::write(p_ + i, x, width, stream);
  }

 private:
  FUSEDACT_INLINE void fetch(int64_t i) const {
    constexpr int distance = 4096, line = 64, bytes = V::size * static_cast<int>(sizeof(S));
    const char* p = reinterpret_cast<const char*>(p_ + i) + distance;
    for (int k = 0; k < bytes; k += line) __builtin_prefetch(p + k);  // past the end it does nothing
  }
};

// ---- the mask: one bit per element, at any bit offset ---------------------------------------------------------------

FUSEDACT_INLINE void put_bits(uint8_t* mask, int64_t at, uint64_t word, int count) {
  if (at % 8 == 0 && count % 8 == 0) {
    std::memcpy(mask + at / 8, &word, count / 8);
    return;
  }
  for (int done = 0; done < count;) {  // the mask was cleared before
    int shift = static_cast<int>((at + done) % 8), room = 8 - shift, n = count - done < room ? count - done : room;
    mask[(at + done) / 8] |= static_cast<uint8_t>((word >> done & ((1u << n) - 1)) << shift);
    done += n;
  }
}
FUSEDACT_INLINE uint64_t get_bits(const uint8_t* mask, int64_t at, int count) {
  uint64_t word = 0;
  if (at % 8 == 0) {
    std::memcpy(&word, mask + at / 8, (count + 7) / 8);
    return word;
  }
  for (int done = 0; done < count;) {
    int shift = static_cast<int>((at + done) % 8), room = 8 - shift, n = count - done < room ? count - done : room;
    word |= static_cast<uint64_t>(mask[(at + done) / 8] >> shift & ((1u << n) - 1)) << done;
    done += n;
  }
  return word;
}
template <class T>
FUSEDACT_INLINE int width_of(Whole<T>) {
  return Pack<T>::size;
}
FUSEDACT_INLINE int width_of(Part part) { return part.count; }

// ---- gain and clamp -------------------------------------------------------------------------------------------------

template <class V>
struct Epilogue {
  V gain, low, high;
  bool active, clamped;
  explicit Epilogue(const Scalars& s)
      : gain(s.gain),
        low(s.clamped ? s.clamp_min : -infinity),
        high(s.clamped ? s.clamp_max : infinity),
        active(s.clamped || s.gain != 1.0),
        clamped(s.clamped) {}
  FUSEDACT_INLINE V apply(V y) const { return at_most(at_least(y * gain, low), high); }
  // As torch.clamp: the limits pass the gradient, NaN does not.
  FUSEDACT_INLINE auto passes(V y) const { return (y * gain >= low) & (y * gain <= high); }
};

// Apart, because a clamped backward is rare and would double every loop.
template <class F, class V>
[[gnu::noinline]] void forward_of(const F& f, const V& v, V& y) {
  y = f.forward(v);
}

// ---- the functor of a pack ------------------------------------------------------------------------------------------

// The one made from the scalars, by reference: a copy would be a dozen registers' worth of constants. With a tensor
// parameter, one of its own per pack.
template <class F>
using FunctorFor = std::conditional_t<has_weight<F>, F, const F&>;
template <class F, class W>
FUSEDACT_INLINE FunctorFor<F> functor(const F& f, const Scalars& s, const Lane& weight, int64_t i, W width) {
  if constexpr (has_weight<F>) {
    if (weight.values) return F(s.params, along<typename value_of<F>::type::scalar>(weight, i, width));
  }
  return f;
}

template <class F, class V>
FUSEDACT_INLINE V gradient(const F& f, V g, V x) {
  if constexpr (requires { f.gradient(g, x); }) {
    return f.gradient(g, x);
  } else {
    return g * f.derivative(x);
  }
}
template <class F, class V>
FUSEDACT_INLINE V gradient_from_output(const F& f, V g, V y) {
  if constexpr (requires { f.gradient_from_output(g, y); }) {
    return f.gradient_from_output(g, y);
  } else {
    return g * f.derivative_from_output(y);
  }
}

// ---- the runs -------------------------------------------------------------------------------------------------------

// Whose maths is a comparison: there the questions of an epilogue or a mask within the loop cost as much as the activation, and
// spill. Such rows have a second loop that asks none (in place, in the caches, twice as fast).
template <class F, class V>
constexpr bool piecewise = requires(const F& f, V v) { f.is_outer(v); };

template <template <class> class A, class S>
void forward_run(const ForwardRun& run) {
  using V = PackOf<S>;
  using T = typename V::scalar;
  using F = A<V>;
  const F shared(run.scalars->params);
  const Epilogue<V> epilogue(*run.scalars);
  const Elements<S> x(run.x, run.ahead), y(run.y);
  const Lane bias = run.bias;
  const bool stream = run.stream;
  auto loop = [&](auto plain) FUSEDACT_LAMBDA {
    for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      V v = x.read(i, width) + V(along<T>(bias, i, width));
      FunctorFor<F> f = functor(shared, *run.scalars, run.weight, i, width);
      V r = f.forward(v);
      if constexpr (!plain) {
        if (epilogue.active) r = epilogue.apply(r);
        if constexpr (piecewise<F, V>) {
          if (run.mask) {
            auto outer = f.is_outer(v);
            if (epilogue.clamped) outer = outer & epilogue.passes(f.forward(v));
            put_bits(run.mask, run.mask_at + i, bits(outer), width_of(width));
          }
        }
      }
      y.write(i, r, width, stream);
    });
  };
  if (piecewise<F, V> && !epilogue.active && !run.mask)
    loop(std::bool_constant<piecewise<F, V>>{});
  else
    loop(std::false_type{});
}

template <template <class> class A, class S, Saved kind>
void backward_run(const BackwardRun& run) {
  using V = PackOf<S>;
  using T = typename V::scalar;
  using F = A<V>;
  const F shared(run.scalars->params);
  const Epilogue<V> epilogue(*run.scalars);
  const Elements<S> grad(run.grad, run.ahead), saved(run.saved, run.ahead), grad_x(run.grad_x);
  const Lane bias = run.bias;
  const bool stream = run.stream;
  T* const bias_sum = static_cast<T*>(run.bias_sum);
  T* const weight_sum = static_cast<T*>(run.weight_sum);
  auto loop = [&](auto plain) FUSEDACT_LAMBDA {
    for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      FunctorFor<F> f = functor(shared, *run.scalars, run.weight, i, width);
      auto one = [&](int64_t at) FUSEDACT_LAMBDA {
        V g = grad.read(at, width), r;
        if constexpr (!plain) {
          if (epilogue.active) g = g * epilogue.gain;
        }
        if constexpr (kind == Saved::input) {
          V v = saved.read(at, width) + V(along<T>(bias, i, width));
          if constexpr (!plain) {
            if (epilogue.clamped) {
              V y;
              forward_of(f, v, y);
              g = select(epilogue.passes(y), g, V(0));
            }
          }
          r = gradient(f, g, v);
          if constexpr (requires { f.weight_derivative(v); }) {
            if (weight_sum) add_to(weight_sum + i, g * f.weight_derivative(v), width);
          }
        } else if constexpr (kind == Saved::output) {
          r = gradient_from_output(f, g, saved.read(at, width));
        } else {
          auto outer = mask_from_bits<T>(get_bits(run.mask, run.mask_at + at, width_of(width)));
          r = select(outer, f.outer_gradient(g), f.inner_gradient(g));
        }
        grad_x.write(at, r, width, stream);
        return r;
      };
      V sum(0);
      if constexpr (F::cheap) {
        for (int64_t row = 0, at = i; row < run.rows; ++row, at += run.pitch) sum = sum + one(at);
      } else {
        sum = one(i);
      }
      if (bias_sum) add_to(bias_sum + i, sum, width);
    });
  };
  if (epilogue.active)
    loop(std::false_type{});
  else
    loop(std::true_type{});
}

template <template <class> class A, class S, Saved kind>
void double_backward_run(const DoubleBackwardRun& run) {
  using V = PackOf<S>;
  using T = typename V::scalar;
  using F = A<V>;
  const F f(run.scalars->params);
  const Epilogue<V> epilogue(*run.scalars);
  const Elements<S> us(run.u, run.ahead), grad(run.grad, run.ahead), saved(run.saved, run.ahead),
      grad_grad(run.grad_grad), grad_x(run.grad_x);
  T* bias_sum = static_cast<T*>(run.bias_sum);
  for_packs<T>(run.count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V u = us.read(i, width), g = grad.read(i, width), s = saved.read(i, width), first, bend;
    if constexpr (kind == Saved::input) {
      V v = s + along<T>(run.bias, i, width);
      if (epilogue.active) u = u * epilogue.gain;
      if (epilogue.clamped) {
        V y;
        forward_of(f, v, y);
        u = select(epilogue.passes(y), u, V(0));
      }
      first = gradient(f, u, v);
      bend = f.second(v);
    } else {
      first = gradient_from_output(f, u, s);
      bend = f.second_from_output(s);
    }
    V r = u * g * bend;
    if (bias_sum) add_to(bias_sum + i, r, width);
    grad_grad.write(i, first, width, run.stream);
    grad_x.write(i, r, width, run.stream);
  });
}

// A `wide` activation is computed in float64 only.
template <template <class> class A, class S>
constexpr bool exists = !(A<PackOf<S>>::wide && sizeof(compute_of<S>) == 4);

// ---- the tables -----------------------------------------------------------------------------------------------------

// One row per activation: the functions for each dtype, in their order.
template <class Run, class Make, template <class> class... A>
constexpr auto make_table(TypeList<A...>, Make make) {
  using Row = std::array<Function<Run>, dtype_count>;
  return std::array<Row, sizeof...(A)>{Row{make.template operator()<A, float>(), make.template operator()<A, double>(),
                                           make.template operator()<A, BFloat16>(),
                                           make.template operator()<A, Half>()}...};
}
template <class Run, size_t n>
Table<Run> as_table(const std::array<std::array<Function<Run>, dtype_count>, n>& table) {
  return reinterpret_cast<Table<Run>>(table.data());
}

}  // namespace
}  // namespace fusedact::cpu
