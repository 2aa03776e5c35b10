// The curves that gates are made of, for any value type V of math.h. Knows no memory and no loops.
#pragma once

#include "../math.h"

namespace fusedact::of_cells {

// f(v) and f'(v) from one exponential and one division, errors below 3 u and 4 u.
template <class V>
struct Curve {
  V value, slope;
};
template <class V>
FUSEDACT_FN Curve<V> sigmoid_curve(V v) {
  V z = exp_negative(negative_abs(v)), q = V(1) / (V(1) + z), zq = z * q;
  return {if_negative(v, zq, q), zq * q};
}
template <class V>
FUSEDACT_FN Curve<V> tanh_curve(V v) {
  using K = table<scalar_t<V>>;
  V bounded = at_least(V(2) * negative_abs(v), V(K::exp_floor));
  auto [e, scaled] = exp_parts(bounded, K::scale);
  V power = scaled * V(K::unscale), z = fma(scaled, e, scaled) * V(K::unscale);
  V minus = fma(power, e, power - V(1));  // z - 1, which does not cancel
  V q = V(1) / (V(1) + z);
  return {copysign(minus * q, v), V(4) * z * q * q};
}

}  // namespace fusedact::of_cells
