// The vector loops: load, widen, add the bias, apply, narrow, store, for one segment. Body and tail are one text.
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

template <template <class> class A, class S>
using compute_for = std::conditional_t<A<float>::wide, double, compute_of<S>>;

template <class F>
constexpr bool piecewise = requires(F f) { f.inner_gradient(f.outer_gradient({})); };
template <class F>
constexpr bool has_weight = std::is_constructible_v<F, const double*, typename F::value>;

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
template <class T, class S>
FUSEDACT_INLINE Pack<T> read(const S* p, Whole<T>) {
  return load<T>(p);
}
template <class T, class S>
FUSEDACT_INLINE Pack<T> read(const S* p, Part part) {
  return load<T>(p, part.count);
}
template <class T, class S>
FUSEDACT_INLINE void write(S* p, Pack<T> x, Whole<T>, bool stream) {
  if (stream && reinterpret_cast<uintptr_t>(p) % vector_bytes == 0) {
    stream_pack(p, x);
  } else {
    store(p, x);
  }
}
template <class T, class S>
FUSEDACT_INLINE void write(S* p, Pack<T> x, Part part, bool) {
  store(p, x, part.count);
}
template <class T>
FUSEDACT_INLINE void add_to(T* sum, Pack<T> x, Whole<T>) {
  store(sum, load<T>(static_cast<const T*>(sum)) + x);
}
template <class T>
FUSEDACT_INLINE void add_to(T* sum, Pack<T> x, Part part) {
  store(sum, load<T>(static_cast<const T*>(sum), part.count) + x, part.count);
}
// A Lane's vector: `step` elements on per element; a standing one is a whole pack wherever one looks.
template <class T, class W>
FUSEDACT_INLINE Pack<T> along(const void* p, int step, int64_t i, W width) {
  const T* lane = static_cast<const T*>(p);
  return step ? read<T>(lane + i, width) : load<T>(lane);
}

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

template <class F, class V, class W>
FUSEDACT_INLINE F functor(const F& f, const Scalars& s, const Lane& lane, int64_t i, W width) {
  if constexpr (std::is_constructible_v<F, const double*, V>) {
    if (lane.weight) return F(s.params, along<typename V::scalar>(lane.weight, lane.weight_step, i, width));
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

// ---- the segments ---------------------------------------------------------------------------------------------------

template <template <class> class A, class S>
void forward_segment(const ForwardArgs& args, const Lane& lane, int64_t begin, int64_t count) {
  using T = compute_for<A, S>;
  using V = Pack<T>;
  using F = A<V>;
  const F shared(args.scalars.params);
  const Epilogue<V> epilogue(args.scalars);
  const S* x = static_cast<const S*>(args.x) + begin;
  S* y = static_cast<S*>(args.y) + begin;
  for_packs<T>(count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V v = read<T>(x + i, width) + along<T>(lane.bias, lane.bias_step, i, width);
    const F f = functor<F, V>(shared, args.scalars, lane, i, width);
    V r = f.forward(v);
    if (epilogue.active) r = epilogue.apply(r);
    if constexpr (requires { f.is_outer(v); }) {
      if (args.mask) {
        auto outer = f.is_outer(v);
        if (epilogue.clamped) outer = outer & epilogue.passes(f.forward(v));
        put_bits(args.mask, begin + i, bits(outer), width_of(width));
      }
    }
    write(y + i, r, width, lane.stream);
  });
  if (lane.stream) stream_fence();
}

template <template <class> class A, class S, Saved kind>
void backward_segment(const BackwardArgs& args, const Lane& lane, int64_t begin, int64_t count) {
  using T = compute_for<A, S>;
  using V = Pack<T>;
  using F = A<V>;
  const F shared(args.scalars.params);
  const Epilogue<V> epilogue(args.scalars);
  const S* grad = static_cast<const S*>(args.grad) + begin;
  const S* saved = static_cast<const S*>(args.saved) + (kind == Saved::mask ? 0 : begin);
  S* grad_x = static_cast<S*>(args.grad_x) + begin;
  T* bias_sum = static_cast<T*>(lane.bias_sum);
  T* weight_sum = static_cast<T*>(lane.weight_sum);
  for_packs<T>(count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V g = read<T>(grad + i, width), r;
    const F f = functor<F, V>(shared, args.scalars, lane, i, width);
    if (epilogue.active) g = g * epilogue.gain;
    if constexpr (kind == Saved::input) {
      V v = read<T>(saved + i, width) + along<T>(lane.bias, lane.bias_step, i, width);
      if (epilogue.clamped) {
        V y;
        forward_of(f, v, y);
        g = select(epilogue.passes(y), g, V(0));
      }
      r = gradient(f, g, v);
      if constexpr (requires { f.weight_derivative(v); }) {
        if (weight_sum) add_to(weight_sum + i, g * f.weight_derivative(v), width);
      }
    } else if constexpr (kind == Saved::output) {
      r = gradient_from_output(f, g, read<T>(saved + i, width));
    } else {
      auto outer = mask_from_bits<T>(get_bits(static_cast<const uint8_t*>(args.saved), begin + i, width_of(width)));
      r = select(outer, f.outer_gradient(g), f.inner_gradient(g));
    }
    if (bias_sum) add_to(bias_sum + i, r, width);
    write(grad_x + i, r, width, lane.stream);
  });
  if (lane.stream) stream_fence();
}

template <template <class> class A, class S, Saved kind>
void double_backward_segment(const DoubleBackwardArgs& args, const Lane& lane, int64_t begin, int64_t count) {
  using T = double;
  using V = Pack<T>;
  using F = A<V>;
  const F f(args.scalars.params);
  const Epilogue<V> epilogue(args.scalars);
  const S* u_in = static_cast<const S*>(args.u) + begin;
  const S* grad = static_cast<const S*>(args.grad) + begin;
  const S* saved = static_cast<const S*>(args.saved) + begin;
  S* grad_grad = static_cast<S*>(args.grad_grad) + begin;
  S* grad_x = static_cast<S*>(args.grad_x) + begin;
  T* bias_sum = static_cast<T*>(lane.bias_sum);
  for_packs<T>(count, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
    V u = read<T>(u_in + i, width), g = read<T>(grad + i, width), s = read<T>(saved + i, width), first, bend;
    if constexpr (kind == Saved::input) {
      V v = s + along<T>(lane.bias, lane.bias_step, i, width);
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
    write(grad_grad + i, first, width, lane.stream);
    write(grad_x + i, r, width, lane.stream);
  });
  if (lane.stream) stream_fence();
}

// ---- the tables -----------------------------------------------------------------------------------------------------

// One row per activation: make.operator()<A, S>() for the four storage types, in the order of DType.
template <class Segment, class Make, template <class> class... A>
constexpr auto make_table(TypeList<A...>, Make make) {
  using Row = std::array<Segment, dtype_count>;
  return std::array<Row, sizeof...(A)>{Row{make.template operator()<A, float>(), make.template operator()<A, double>(),
                                           make.template operator()<A, BFloat16>(),
                                           make.template operator()<A, Half>()}...};
}
template <class Segment, size_t n>
const Segment (*as_table(const std::array<std::array<Segment, dtype_count>, n>& table))[dtype_count] {
  return reinterpret_cast<const Segment(*)[dtype_count]>(table.data());
}

}  // namespace
}  // namespace fusedact::cpu
