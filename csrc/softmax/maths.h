// The maths of softmax and its logarithm, for any value type V of math.h: on the CPU a pack, on CUDA a float or double.
//
// The greatest element is not subtracted before the exponential, where the difference would be rounded: e^v is 2^n e^r, and
// all that a row has in common is taken off n. Where elements have more digits than a 16-bit type, x + b is carried as two
// parts. Sums are added up in float64 (rows) or with their rounding errors (strips).
//
// Knows no memory and no loops.
#pragma once

#include "../math.h"

namespace fusedact::of_softmax {

// Whether elements stored as S have more digits than float32 loses.
template <class S>
constexpr bool exact_for = sizeof(S) > 2;

// x + b. Exactly, unless one of them is infinite: then lo is NaN.
template <bool exact, class V>
FUSEDACT_FN Two<V> sum_of(V x, V b) {
  if constexpr (!exact) return {x + b, V(0)};
  return two_sum(x, b);
}
// v - top, likewise.
template <bool exact, class V>
FUSEDACT_FN Two<V> below(Two<V> v, V top) {
  if constexpr (!exact) return {v.hi - top, V(0)};
  Two<V> d = two_sum(v.hi, -top);
  return {d.hi, d.lo + v.lo};
}

// While the greatest is nearer to zero than this, e^v is reduced as it is. Else (infinities and NaN, too) v - top is, and
// x + b is rounded: what it loses may be more than an exponential bears, and v - top is exact where it counts.
template <class T>
constexpr T near_limit = sizeof(T) == 4 ? T(0x1p15) : T(1e9);
template <class T>
FUSEDACT_FN bool is_near(T top) {
  return top <= near_limit<T> && top >= -near_limit<T>;
}
// The power of two that is taken off a row whose greatest element is `top`.
template <class V>
FUSEDACT_FN V power_of(V top) {
  using K = table<scalar_t<V>>;
  return fma(top, V(K::log2e), V(K::magic)) - V(K::magic);
}

// e^v 2^(scale - power), or e^(v - top) 2^scale. What is lost of it below exp_floor is zero in the result, and nothing
// beside a sum that has the greatest in it. Relative error below 2 u.
template <bool exact, bool near, class V>
FUSEDACT_FN V weight_of(Two<V> v, V top, V power) {
  using K = table<scalar_t<V>>;
  V floor(K::exp_floor), t, r;
  if constexpr (near) {
    floor = fma(power, V(K::ln2_hi), floor);
  } else {
    v = below<exact>(v, top);
  }
  V x = at_least(v.hi, floor);
  t = fma(x, V(K::log2e), V(K::magic));
  V n = t - V(K::magic);
  r = fma(n, V(-K::ln2_lo), fma(n, V(-K::ln2_hi), x));
  if constexpr (exact) r = r + select(v.hi < x, V(0), v.lo);
  if constexpr (near) t = t - power;
  return rounded(Exp<V>{exp_tail(r), exponent(t, K::scale)});
}

// What log_softmax adds up: the weights of all but the greatest, which would drown small ones, and how often that is there.
template <class V>
struct Terms {
  V rest, top;
};
template <bool exact, bool near, class V>
FUSEDACT_FN Terms<V> terms(Two<V> v, V top, V power, V of_top) {
  auto is_top = v.hi == top;
  V rest = V(0);
  if constexpr (exact) rest = fma(v.lo * v.lo, V(0.5), v.lo) * of_top;  // e^lo - 1, lo being half a unit of top at most
  return {select(is_top, rest, weight_of<exact, near>(v, top, power)), select(is_top, V(1), V(0))};
}

// log(1 + z) for z > -1/8 in float64, error below 2 u.
FUSEDACT_FN double log1p(double z) {
  using K = table<double>;
  double power = 0;
  if (z >= 1) {
    int e;
    z = 2 * std::frexp(1 + z, &e) - 1;
    power = e - 1;
  }
  const double s = z / (2 + z), square = s * s;
  const double log = 2 * fma(s * square, polynomial<K::log1p>(square), s);
  return fma(power, K::ln2_hi, fma(power, K::ln2_lo, log));
}
// log of the sum of e^(v - top), from `tops` of 1 and the weights of the rest.
FUSEDACT_FN double log_of(double tops, double rest, double of_top) { return log1p((tops - 1) + rest / of_top); }

// A double as two T; a + b and 1 / x likewise.
template <class T>
FUSEDACT_FN Two<T> halves(double x) {
  const T hi = static_cast<T>(x);
  return {hi, static_cast<T>(x - static_cast<double>(hi))};
}
template <class T>
FUSEDACT_FN Two<T> sum_of_parts(T a, double b) {
  Two<double> s = two_sum(static_cast<double>(a), b);
  if constexpr (sizeof(T) == 4) return halves<T>(s.hi);
  return {static_cast<T>(s.hi), static_cast<T>(s.lo)};
}
template <class T>
FUSEDACT_FN Two<T> inverse(double x) {
  if constexpr (sizeof(T) == 4) return halves<T>(1 / x);
  const T hi = static_cast<T>(1 / x);
  return {hi, static_cast<T>(fma_exact(-static_cast<double>(hi), x, 1.0)) * hi};
}

template <bool exact, class V>
FUSEDACT_FN V times(V e, Two<V> inverse) {
  if constexpr (!exact) return e * inverse.hi;
  return fma(e, inverse.hi, e * inverse.lo);
}
template <bool exact, class V>
FUSEDACT_FN V minus_log(Two<V> d, Two<V> log) {
  V plain = d.hi - log.hi;
  if constexpr (!exact) return plain;
  Two<V> r = two_sum(d.hi, -log.hi);
  return select(d.hi > V(-std::numeric_limits<scalar_t<V>>::infinity()), r.hi + (r.lo + (d.lo - log.lo)), plain);
}
template <class V>
FUSEDACT_FN V gradient_of(V g, V y, V sum, bool log) {
  return log ? fma(-exp_negative(y), sum, g) : y * (g - sum);
}

}  // namespace fusedact::of_softmax
