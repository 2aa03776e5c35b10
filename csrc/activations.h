// THE MATHS: one struct per activation, and at the bottom the type list, which is the registry of the C++ side.
//
// V is a value type of math.h: a float or double, a SIMD pack, or a differentiable tensor (composite.h). A struct is
// made once per call from its scalar parameters, and has
//   forward(x)          f(x)
//   derivative(x)       f'(x), at kinks and NaN as PyTorch's scalar formula has it; or gradient(g, x) = g f'(x)
//   second(x)           f''(x); plain formulas, for it is computed in float64 whatever the dtype
// and, where they apply,
//   value_and_slope(x)                                 both, where computing them together is cheaper
//   derivative_from_output(y), second_from_output(y)   h(y) = f'(x) and h'(y), with `invertible` saying for which
//                                                      parameters y determines f'(x)
//   is_outer(x), outer_gradient(g), inner_gradient(g)  piecewise linear: the zone, and g f' in it and elsewhere
//   weight_derivative(x)   df/dw, where the first parameter may be a tensor that learns
//   wide              float32 and 16-bit are computed in float64, for the terms cancel
//   bends_in_float    second() keeps its bounds in float too, and is computed so for float32 and 16 bits
//   cheap             forward is so few instructions that memory sets the pace
//
// Knows nothing of memory, loops, dtypes or torch. Adding one: CONTRIBUTING.md.
#pragma once

#include <string_view>

#include "math.h"

namespace fusedact {

inline constexpr double infinity = std::numeric_limits<double>::infinity();

// What most activations say of themselves.
template <int Params = 0>
struct Plain {
  static constexpr int params = Params;
  static constexpr bool cheap = false;
  static constexpr bool wide = false;
  static constexpr bool bends_in_float = false;
};
template <int Params = 0>
struct Invertible : Plain<Params> {
  static constexpr bool invertible(const double*) { return true; }
};
// Two slopes and no bend. The gradient chooses, it does not multiply by 0, so that an infinite g vanishes where f is flat.
template <class Self, class V, int Params = 0>
struct PiecewiseLinear : Plain<Params> {
  static constexpr bool cheap = true;
  static constexpr bool bends_in_float = true;
  FUSEDACT_FN V outer_gradient(V g) const { return g; }   // where is_outer(x)
  FUSEDACT_FN V inner_gradient(V) const { return V(0); }  // elsewhere
  FUSEDACT_FN V gradient(V g, V x) const {
    const Self& self = static_cast<const Self&>(*this);
    return select(self.is_outer(x), self.outer_gradient(g), self.inner_gradient(g));
  }
  FUSEDACT_FN V derivative(V x) const { return gradient(V(1), x); }
  FUSEDACT_FN V second(V x) const { return x * V(0); }
  FUSEDACT_FN V second_from_output(V y) const { return y * V(0); }
};

// ---- straight lines and kinks ---------------------------------------------------------------------------------------

template <class V>
struct identity : PiecewiseLinear<identity<V>, V> {
  static constexpr std::string_view name = "identity";
  explicit identity(const double*) {}
  FUSEDACT_FN V forward(V x) const { return x; }
  FUSEDACT_FN auto is_outer(V x) const { return (x == x) | (x != x); }
  FUSEDACT_FN V gradient_from_output(V g, V y) const { return this->gradient(g, y); }
  static bool invertible(const double*) { return true; }
};

template <class V>
struct relu : PiecewiseLinear<relu<V>, V> {
  static constexpr std::string_view name = "relu";
  explicit relu(const double*) {}
  FUSEDACT_FN V forward(V x) const { return at_least(x, V(0)); }
  FUSEDACT_FN auto is_outer(V x) const { return (x > V(0)) | (x != x); }
  FUSEDACT_FN V gradient_from_output(V g, V y) const { return this->gradient(g, y); }
  static bool invertible(const double*) { return true; }
};

template <class V>
struct leaky_relu : PiecewiseLinear<leaky_relu<V>, V, 1> {
  static constexpr std::string_view name = "leaky_relu";
  V slope;
  explicit leaky_relu(const double* p) : slope(p[0]) {}
  FUSEDACT_FN V inner_gradient(V g) const { return slope * g; }
  FUSEDACT_FN V forward(V x) const { return select(x > V(0), x, slope * x); }
  FUSEDACT_FN auto is_outer(V x) const { return x > V(0); }
  FUSEDACT_FN V gradient_from_output(V g, V y) const { return this->gradient(g, y); }
  static bool invertible(const double* p) { return p[0] >= 0; }
};

// leaky_relu whose slope learns.
template <class V>
struct prelu : PiecewiseLinear<prelu<V>, V, 1> {
  static constexpr std::string_view name = "prelu";
  V slope;
  explicit prelu(const double* p) : slope(p[0]) {}
  FUSEDACT_FN explicit prelu(const double*, V weight) : slope(weight) {}
  FUSEDACT_FN V inner_gradient(V g) const { return slope * g; }
  FUSEDACT_FN V forward(V x) const { return select(x > V(0), x, slope * x); }
  FUSEDACT_FN auto is_outer(V x) const { return x > V(0); }
  FUSEDACT_FN V weight_derivative(V x) const { return select(x > V(0), V(0), x); }
};

// leaky_relu whose slope is drawn anew for each element; the noise comes in as the weight.
template <class V>
struct rrelu : prelu<V> {
  static constexpr std::string_view name = "rrelu";
  using prelu<V>::prelu;
};

template <class V>
struct threshold : PiecewiseLinear<threshold<V>, V, 2> {
  static constexpr std::string_view name = "threshold";
  V limit, value;
  explicit threshold(const double* p) : limit(p[0]), value(p[1]) {}
  FUSEDACT_FN V forward(V x) const { return select(x <= limit, value, x); }
  FUSEDACT_FN auto is_outer(V x) const { return (x > limit) | (x != x); }
  FUSEDACT_FN V gradient_from_output(V g, V y) const { return this->gradient(g, y); }
  static bool invertible(const double* p) { return p[1] <= p[0]; }
};

template <class V>
struct fatrelu : PiecewiseLinear<fatrelu<V>, V, 1> {
  static constexpr std::string_view name = "fatrelu";
  V limit;
  explicit fatrelu(const double* p) : limit(p[0]) {}
  FUSEDACT_FN V forward(V x) const { return select(x <= limit, V(0), x); }
  FUSEDACT_FN auto is_outer(V x) const { return (x > limit) | (x != x); }
  FUSEDACT_FN V gradient_from_output(V g, V y) const { return this->gradient(g, y); }
  static bool invertible(const double* p) { return p[0] >= 0; }
};

template <class V>
struct hardtanh : PiecewiseLinear<hardtanh<V>, V, 2> {
  static constexpr std::string_view name = "hardtanh";
  V low, high;
  explicit hardtanh(const double* p) : low(p[0]), high(p[1]) {}
  FUSEDACT_FN V forward(V x) const { return at_most(at_least(x, low), high); }
  FUSEDACT_FN auto is_outer(V x) const { return ((x > low) & (x < high)) | (x != x); }
  FUSEDACT_FN V gradient_from_output(V g, V y) const { return this->gradient(g, y); }
  static bool invertible(const double*) { return true; }
};

template <class V>
struct relu6 : hardtanh<V> {
  static constexpr std::string_view name = "relu6";
  static constexpr int params = 0;
  static constexpr double range[] = {0, 6};
  explicit relu6(const double*) : hardtanh<V>(range) {}
};

// torch.clamp: the edges belong to the slope, and NaN has none.
template <class V>
struct clamp : PiecewiseLinear<clamp<V>, V, 2> {
  static constexpr std::string_view name = "clamp";
  V low, high;
  explicit clamp(const double* p) : low(p[0]), high(p[1]) {}
  FUSEDACT_FN V forward(V x) const { return at_most(at_least(x, low), high); }
  FUSEDACT_FN auto is_outer(V x) const { return (x >= low) & (x <= high); }
};

// relu6(x + 3) / 6
template <class V>
struct hardsigmoid : PiecewiseLinear<hardsigmoid<V>, V> {
  static constexpr std::string_view name = "hardsigmoid";
  explicit hardsigmoid(const double*) {}
  FUSEDACT_FN V outer_gradient(V g) const { return g * V(1.0 / 6); }
  FUSEDACT_FN V forward(V x) const { return at_most(at_least(x + V(3), V(0)), V(6)) / V(6); }
  FUSEDACT_FN auto is_outer(V x) const { return (x > V(-3)) & (x < V(3)); }
};

template <class V>
struct hardshrink : PiecewiseLinear<hardshrink<V>, V, 1> {
  static constexpr std::string_view name = "hardshrink";
  V limit;
  explicit hardshrink(const double* p) : limit(p[0]) {}
  FUSEDACT_FN V forward(V x) const { return select(abs(x) <= limit, V(0), x); }
  FUSEDACT_FN auto is_outer(V x) const { return (abs(x) > limit) | (x != x); }
  FUSEDACT_FN V gradient_from_output(V g, V y) const { return this->gradient(g, y); }
  static bool invertible(const double* p) { return p[0] >= 0; }
};

template <class V>
struct softshrink : PiecewiseLinear<softshrink<V>, V, 1> {
  static constexpr std::string_view name = "softshrink";
  V limit;
  explicit softshrink(const double* p) : limit(p[0]) {}
  FUSEDACT_FN V forward(V x) const { return select(abs(x) <= limit, V(0), x - select(x > V(0), limit, -limit)); }
  FUSEDACT_FN auto is_outer(V x) const { return (abs(x) > limit) | (x != x); }
  FUSEDACT_FN V gradient_from_output(V g, V y) const { return select(y == V(0), V(0), g); }
  static bool invertible(const double*) { return true; }
};

// ---- x times a straight line ----------------------------------------------------------------------------------------

// x relu6(x + 3) / 6
template <class V>
struct hardswish : Plain<> {
  static constexpr std::string_view name = "hardswish";
  static constexpr bool cheap = true;
  static constexpr bool bends_in_float = true;
  explicit hardswish(const double*) {}
  FUSEDACT_FN V forward(V x) const {
    V c = at_most(at_least(x + V(3), V(0)), V(6));
    Two<V> sixth = two_constant<V>(1.0 / 6);
    return x * fma_exact(c, sixth.hi, c * sixth.lo);  // 6 times this sixth is 1
  }
  FUSEDACT_FN V derivative(V x) const {
    V slope = fma(x, V(2), V(3)) * V(1.0 / 6);  // exact near its root
    return select(x <= V(-3), V(0), select(x < V(3), slope, V(1)));
  }
  FUSEDACT_FN V second(V x) const { return select((x > V(-3)) & (x < V(3)), V(1.0 / 3), V(0)); }
};

// x / 2 clamp(x + 2, 0, 2)
template <class V>
struct hard_mish : Plain<> {
  static constexpr std::string_view name = "hard_mish";
  static constexpr bool cheap = true;
  static constexpr bool bends_in_float = true;
  explicit hard_mish(const double*) {}
  FUSEDACT_FN V forward(V x) const { return x * (V(0.5) * at_most(at_least(x + V(2), V(0)), V(2))); }
  FUSEDACT_FN V derivative(V x) const { return select(x > V(0), V(1), select(x < V(-2), V(0), x + V(1))); }
  FUSEDACT_FN V second(V x) const { return select((x > V(-2)) & (x < V(0)), V(1), V(0)); }
};

template <class V>
struct squared_relu : Plain<> {
  static constexpr std::string_view name = "squared_relu";
  static constexpr bool cheap = true;
  static constexpr bool bends_in_float = true;
  explicit squared_relu(const double*) {}
  FUSEDACT_FN V forward(V x) const {
    V r = at_least(x, V(0));
    return r * r;
  }
  FUSEDACT_FN V derivative(V x) const { return V(2) * at_least(x, V(0)); }
  FUSEDACT_FN V second(V x) const { return select(x > V(0), V(2), V(0)); }
};

// ---- exponential on the left ----------------------------------------------------------------------------------------

// scale * (x > 0 ? x : alpha (e^(x / width) - 1)), of which elu, celu and selu are cases. `slope` is scale alpha / width.
template <class V, int Params>
struct Elu : Invertible<Params> {
  static constexpr bool bends_in_float = true;
  double scale;
  Two<V> height, inverse_width, slope;
  Elu(double alpha, double width, double factor)
      : scale(factor),
        height(two_constant<V>(factor * alpha)),
        inverse_width(two_constant<V>(1 / width)),
        slope(two_constant<V>(factor * alpha / width)) {}

  FUSEDACT_FN V forward(V x) const {
    Two<V> t = two_scaled(inverse_width, select(x > V(0), V(0), x));
    t.lo = select(t.hi < V(-60), V(0), t.lo);
    V e = expm1_negative(t.hi);
    return select(x > V(0), x * V(scale), fma(height.hi, e, fma(height.hi, fma(t.lo, e, t.lo), height.lo * e)));
  }
  FUSEDACT_FN V left_slope(V x) const {
    Two<V> t = two_scaled(inverse_width, select(x > V(0), V(0), x));
    return times_exp(slope, t.hi, t.lo);
  }
  FUSEDACT_FN V derivative(V x) const { return select((x > V(0)) | (x != x), V(scale), left_slope(x)); }
  FUSEDACT_FN V second(V x) const { return select(x < V(0), left_slope(x) * inverse_width.hi, V(0)); }
  FUSEDACT_FN V derivative_from_output(V y) const {
    return select((y > V(0)) | (y != y), V(scale), fma(y, inverse_width.hi, slope.hi));
  }
  FUSEDACT_FN V second_from_output(V y) const { return select(y < V(0), inverse_width.hi, V(0)); }
};

template <class V>
struct elu : Elu<V, 1> {
  static constexpr std::string_view name = "elu";
  explicit elu(const double* p) : Elu<V, 1>(p[0], 1, 1) {}
  FUSEDACT_FN V forward(V x) const { return select(x > V(0), x, this->height.hi * expm1_negative(x)); }
  FUSEDACT_FN V left_slope(V x) const { return times_exp(this->height, x, V(0)); }
  FUSEDACT_FN V derivative(V x) const { return select((x > V(0)) | (x != x), V(1), left_slope(x)); }
  static bool invertible(const double* p) { return p[0] >= 0; }
};

template <class V>
struct celu : Elu<V, 1> {
  static constexpr std::string_view name = "celu";
  explicit celu(const double* p) : Elu<V, 1>(p[0], p[0], 1) {}
  static bool invertible(const double* p) { return p[0] > 0; }
};

template <class V>
struct selu : Elu<V, 0> {
  static constexpr std::string_view name = "selu";
  explicit selu(const double*) : Elu<V, 0>(1.6732632423543772, 1, 1.0507009873554805) {}
};

// elu(x) + 1 = x > 0 ? x + 1 : e^x
template <class V>
struct elup1 : Invertible<> {
  static constexpr std::string_view name = "elup1";
  static constexpr bool bends_in_float = true;
  explicit elup1(const double*) {}
  FUSEDACT_FN V left(V x) const { return exp_negative(select(x > V(0), V(0), x)); }
  FUSEDACT_FN V forward(V x) const { return select(x > V(0), x + V(1), left(x)); }
  FUSEDACT_FN V derivative(V x) const { return select((x > V(0)) | (x != x), V(1), left(x)); }
  FUSEDACT_FN V second(V x) const { return select(x < V(0), left(x), V(0)); }
  FUSEDACT_FN V derivative_from_output(V y) const { return select((y > V(1)) | (y != y), V(1), y); }
  FUSEDACT_FN V second_from_output(V y) const { return select(y < V(1), V(1), V(0)); }
};

// ---- the logistic family --------------------------------------------------------------------------------------------

template <class V>
struct sigmoid_ : Invertible<> {
  static constexpr std::string_view name = "sigmoid";
  static constexpr bool bends_in_float = true;
  explicit sigmoid_(const double*) {}
  FUSEDACT_FN V forward(V x) const { return sigmoid(x); }
  FUSEDACT_FN V derivative(V x) const { return times_sigmoid_slope(V(1), x); }
  FUSEDACT_FN V second(V x) const { return sigmoid_second(x); }
  FUSEDACT_FN V derivative_from_output(V y) const { return y * (V(1) - y); }
  FUSEDACT_FN V second_from_output(V y) const { return V(1) - V(2) * y; }
};

template <class V>
struct logsigmoid : Invertible<> {
  static constexpr std::string_view name = "logsigmoid";
  static constexpr bool bends_in_float = true;
  explicit logsigmoid(const double*) {}
  FUSEDACT_FN V forward(V x) const { return -softplus(Two<V>{-x, V(0)}); }
  FUSEDACT_FN V derivative(V x) const { return sigmoid(-x); }
  FUSEDACT_FN V second(V x) const { return times_sigmoid_slope(V(-1), x); }
  FUSEDACT_FN V derivative_from_output(V y) const { return -expm1_negative(y); }
  FUSEDACT_FN V second_from_output(V y) const { return -exp_negative(y); }
};

// log(1 + e^(beta x)) / beta, and x itself where beta x > threshold.
template <class V>
struct softplus_ : Plain<2> {
  static constexpr std::string_view name = "softplus";
  static constexpr bool bends_in_float = true;
  Two<V> beta, inverse;
  V limit;
  explicit softplus_(const double* p) : beta(two_constant<V>(p[0])), inverse(two_constant<V>(1 / p[0])), limit(p[1]) {}
  FUSEDACT_FN V forward(V x) const {
    Two<V> t = two_scaled(beta, x);
    V y = softplus(t);
    return select(t.hi > limit, x, fma(inverse.hi, y, inverse.lo * y));
  }
  FUSEDACT_FN V derivative(V x) const {
    Two<V> t = two_scaled(beta, x);
    return select(t.hi > limit, V(1), sigmoid(t));
  }
  FUSEDACT_FN V second(V x) const {
    V t = beta.hi * x;
    return select(t > limit, V(0), times_sigmoid_slope(beta.hi, t));
  }
  // No derivative from y: below the threshold y reaches beyond it, so that y does not tell on which branch x was.
};

template <class V>
struct silu : Plain<> {
  static constexpr std::string_view name = "silu";
  static constexpr bool bends_in_float = true;
  explicit silu(const double*) {}
  FUSEDACT_FN V forward(V x) const { return times_sigmoid(x); }
  FUSEDACT_FN V derivative(V x) const { return times_sigmoid_derivative(x); }
  FUSEDACT_FN V second(V x) const {
    Two<V> t{x, V(0)};
    return times_sigmoid_second(t, t, V(1), V(0));
  }
};

// x sigma(beta x), beta a scalar or a tensor that learns.
template <class V>
struct swish : Plain<1> {
  static constexpr std::string_view name = "swish";
  Two<V> beta;
  explicit swish(const double* p) : beta(two_constant<V>(p[0])) {}
  FUSEDACT_FN explicit swish(const double*, V weight) : beta{weight, V(0)} {}
  FUSEDACT_FN V forward(V x) const { return times_sigmoid(x, two_scaled(beta, x)); }
  FUSEDACT_FN V derivative(V x) const { return times_sigmoid_derivative(x, two_scaled(beta, x), V(0), V(0)); }
  FUSEDACT_FN V second(V x) const {
    Two<V> t = two_scaled(beta, x);
    return times_sigmoid_second(t, t, beta.hi, V(0));
  }
  FUSEDACT_FN V weight_derivative(V x) const {
    V t = beta.hi * x;
    return x * sigmoid(t) * (x * sigmoid(-t));
  }
};

template <class V>
struct quick_gelu : swish<V> {
  static constexpr std::string_view name = "quick_gelu";
  static constexpr int params = 0;
  static constexpr double slope[] = {1.702};
  explicit quick_gelu(const double*) : swish<V>(slope) {
    this->beta = two_constant<V>(1.702, 4.2632564145606011e-17);  // the decimal 1.702, also in float64
  }
};

// The second derivative of x tanh(softplus x), 4 z n / (2 + 2z + z^2)^3 on the left with
// n = (4 + 2x) + (8 + 2x) z + (6 - 3x) z^2 + (2 - 2x) z^3, and on the right 4 z^2 n / (1 + 2z + 2z^2)^3, the
// coefficients reversed.
template <class V>
FUSEDACT_FN V mish_second(V x) {
  using K = table<scalar_t<V>>;
  auto negative = x < V(0);
  V scaled = exp_scaled(negative_abs(x)), z = scaled * V(K::unscale);
  V c0 = fma(x, V(2), V(4)), c1 = fma(x, V(2), V(8)), c2 = fma(x, V(-3), V(6)), c3 = fma(x, V(-2), V(2));
  V first = select(negative, c0, c3), last = select(negative, c3, c0);
  V n = fma(fma(fma(last, z, select(negative, c2, c1)), z, select(negative, c1, c2)), z, first);
  V d = fma(fma(z, select(negative, V(1), V(2)), V(2)), z, select(negative, V(2), V(1)));
  V y = scaled * select(negative, V(1), z) * n / (d * d * d) * V(4 * K::unscale);
  return select(scaled > V(0), y, scaled);  // n may be infinite where z is 0
}

// x tanh(softplus x) = x w (2 + w) / (2 + 2w + w^2) with w = e^x; from 20 on it is x, in float64 too.
template <class V>
struct mish : Plain<> {
  static constexpr std::string_view name = "mish";
  explicit mish(const double*) {}
  FUSEDACT_FN V forward(V x) const {
    auto by_exp = [](V far) { return forward_by_exp(far); };
    if constexpr (has_pieces<V>) {
      using P = pieces::mish_gate;
      return with_far(x * piecewise<P>(x), x, P::limit, by_exp);
    } else if constexpr (has_rows<V> && !is_brief<V>) {
      using P = cubics::mish;
      return with_far(piecewise<P>(x), x, P::limit, by_exp);
    } else {
      return forward_by_exp(x);
    }
  }
  FUSEDACT_FN V derivative(V x) const {
    if constexpr (has_pieces<V> || (has_rows<V> && !is_brief<V>)) {
      using P = table_for<V, pieces::mish_slope, cubics::mish_slope>;
      return with_far(piecewise<P>(x), x, P::limit, [](V far) { return derivative_by_exp(far); });
    } else {
      return derivative_by_exp(x);
    }
  }
  FUSEDACT_FN V second(V x) const { return mish_second(x); }

  FUSEDACT_FN static V forward_by_exp(V x) {
    using K = table<scalar_t<V>>;
    V bounded = at_most(x, V(20));
    auto [e, power] = exp_parts(bounded);
    V w = fma(power, e, power), m = V(2) + w, d = fma(w, m, V(2)), inverse = V(1) / d;
    V xp = x * power, p = fma(xp, e, xp), pp = p + p;  // x w; x power is exact
    V n = fma(p, w, pp), left = n * inverse;
    if constexpr (!is_brief<V>) {  // what n, p, d and the quotient lost
      V missing = fma(-left, d, n) + fma_exact(p, w, pp - n);
      missing = fma(fma_exact(xp, e, xp - p), m, missing);
      missing = fma(-left, fma(w, w - (m - V(2)), fma_exact(w, m, V(2) - d)), missing);
      left = fma(missing, inverse, left);
    }
    V right = fma(V(-2) * bounded, inverse, x);  // x - 2x / d, of which x is the most
    V y = select(x < V(0.5), left, right);
    auto beyond = x < V(-K::plain);
    if (any(beyond)) [[unlikely]]
      y = select(beyond, times_sigmoid_tail(apart(x), apart(x), V(0)), y);
    return y;
  }
  // w (4 (1 + x) + w (6 + 4x) + 4w^2 + w^3) / (2 + 2w + w^2)^2, where the sum cancels at the root near -1.19
  FUSEDACT_FN static V derivative_by_exp(V x) {
    using K = table<scalar_t<V>>;
    V bounded = at_most(x, V(20));
    auto [e, power] = exp_parts(bounded);
    V w = fma(power, e, power), square = w * w, high = V(4) + w;
    V six = fma(V(4), bounded, V(6)), four = fma(V(4), bounded, V(4));
    if constexpr (!is_brief<V>)  // what rounding w lost, times the slope of the sum near its root
      four = fma(fma_exact(power, e, power - w), fma(V(8), w, six), four);
    V sum = fma(square, high, fma(w, six, four));
    V inner = fma(square, high, fma(V(8), w, V(8))), d = fma(w, inner, V(4));
    V y = product_over(w, sum, d, fma_exact(w, inner, V(4) - d));
    auto beyond = abs(x) > V(K::plain);
    if (any(beyond)) [[unlikely]]
      y = select(beyond, times_sigmoid_derivative_tail(apart(x), apart(x), V(0), Two<V>{apart(x), V(0)}), y);
    return y;
  }
};

// ---- the normal family ----------------------------------------------------------------------------------------------

// x Phi(x), Phi the normal distribution. The left tail is the upper tail of |x|, never 1 + erf.
template <class V>
struct gelu : Plain<> {
  static constexpr std::string_view name = "gelu";
  static constexpr bool bends_in_float = true;
  explicit gelu(const double*) {}
  FUSEDACT_FN V forward(V x) const { return times_normal_cdf(x); }
  FUSEDACT_FN V derivative(V x) const { return times_normal_cdf_derivative(x); }
  FUSEDACT_FN ValueAndSlope<V> value_and_slope(V x) const { return times_normal_cdf_and_derivative(x); }
  FUSEDACT_FN V second(V x) const {
    // Rounded once, for it has a root; beyond the bound phi is 0, and no infinity may meet it.
    return times_normal_pdf(select(abs(x) > V(45), V(-2000), fma_exact(-x, x, V(2))), x);
  }
};

// x sigma(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): the same as x / 2 (1 + tanh u), without its cancellation.
template <class V>
struct gelu_tanh : Plain<> {
  static constexpr std::string_view name = "gelu_tanh";
  static constexpr double c1 = 1.5957691216057308,
                          c3 = 0.071354816272600249;  // sqrt(8 / pi), 0.044715 c1; their rests below
  explicit gelu_tanh(const double*) {}

  // x (a + b x^2) to twice the precision, for constants a and b; x is bounded where the result only saturates.
  FUSEDACT_FN static V bounded(V x) { return at_most(at_least(x, V(-1e4)), V(1e4)); }
  FUSEDACT_FN static Two<V> odd_cubic(V x, Two<V> a, Two<V> b) {
    x = bounded(x);
    V square = x * x, sum = fma(b.hi, square, a.hi);
    if constexpr (is_brief<V>) return {x * sum, V(0)};
    V lost = fma_exact(b.hi, square, a.hi - sum);
    V rest = lost + fma(b.hi, fma_exact(x, x, -square), fma(b.lo, square, a.lo));
    V p = sum * x;
    return {p, fma(rest, x, fma_exact(sum, x, -p))};
  }
  // c1, its first part so short that the difference from a sum with it is exact while z = e^-|t| is no zero.
  template <int float_bits, int double_bits>
  FUSEDACT_FN static Two<V> short_c1() {
    constexpr double unit = static_cast<double>(1ll << (sizeof(scalar_t<V>) == 4 ? float_bits : double_bits));
    constexpr double hi = static_cast<double>(static_cast<long long>(c1 * unit + 0.5)) / unit;
    return {V(hi), V((c1 - hi) - 9.9693088091109203e-17)};
  }
  FUSEDACT_FN static Two<V> argument(V x) {
    return odd_cubic(x, short_c1<21, 47>(), two_constant<V>(c3, -4.1218577217431828e-18));
  }
  FUSEDACT_FN static Two<V> argument_slope(V x) {  // times x
    return odd_cubic(x, short_c1<19, 46>(), two_constant<V>(0.21406444881780073, 1.5122146425849085e-18));
  }
  FUSEDACT_FN V forward(V x) const {
    if constexpr (has_pieces<V> || (has_rows<V> && !is_brief<V>)) {
      return smooth_ramp<table_for<V, pieces::gelu_tanh, cubics::gelu_tanh>>(x,
                                                                             [](V far) { return forward_by_exp(far); });
    } else {
      return forward_by_exp(x);
    }
  }
  FUSEDACT_FN V derivative(V x) const {
    if constexpr (tabulated<V>) {
      return smooth_step<table_for<V, pieces::gelu_tanh_slope, cubics::gelu_tanh_slope>>(
          x, [](V far) { return derivative_by_exp(far); });
    } else {
      return derivative_by_exp(x);
    }
  }
  FUSEDACT_FN static V forward_by_exp(V x) { return times_sigmoid(x, argument(x)); }
  FUSEDACT_FN static V derivative_by_exp(V x) {
    V b = bounded(x);
    return times_sigmoid_derivative(x, argument(x), V(2 * c3) * (b * b), b);
  }
  FUSEDACT_FN V second(V x) const {
    V square = x * x;
    V y = times_sigmoid_second(argument(x), argument_slope(x), fma(V(3 * c3), square, V(c1)), V(6 * c3) * square);
    return select(square > V(1e6), V(0), y);  // there the slope of sigma is 0, and what it multiplies overflows
  }
};

// ---- the hyperbolic tangent -----------------------------------------------------------------------------------------

template <class V>
struct tanh_ : Invertible<> {
  static constexpr std::string_view name = "tanh";
  static constexpr bool bends_in_float = true;
  explicit tanh_(const double*) {}
  FUSEDACT_FN V forward(V x) const { return tanh(x); }
  FUSEDACT_FN V derivative(V x) const { return sech_squared(x); }
  FUSEDACT_FN V second(V x) const { return V(-2) * tanh(x) * sech_squared(x); }
  FUSEDACT_FN V derivative_from_output(V y) const { return (V(1) - y) * (V(1) + y); }
  FUSEDACT_FN V second_from_output(V y) const { return V(-2) * y; }
};

// c tanh(x / c)
template <class V>
struct softcap : Invertible<1> {
  static constexpr std::string_view name = "softcap";
  static constexpr bool wide = true;
  V cap, inverse;
  explicit softcap(const double* p) : cap(p[0]), inverse(1 / p[0]) {}
  FUSEDACT_FN V forward(V x) const {
    V u = x / cap, t = cap * tanh(u);
    return select(abs(u) < V(1e-9), x, t);  // where u may have lost digits, f(x) is x
  }
  FUSEDACT_FN V times_slope(V w, V x) const {  // w (1 - tanh^2(x / c)), with what rounding x / c lost
    V t = x / cap, lost = fma_exact(-t, cap, x) * inverse;
    return times_sigmoid_slope(V(4) * w, V(2) * t, V(2) * lost);
  }
  FUSEDACT_FN V derivative(V x) const { return times_slope(V(1), x); }
  FUSEDACT_FN V second(V x) const { return times_slope(V(-2) * tanh(x * inverse) * inverse, x); }
  FUSEDACT_FN V derivative_from_output(V y) const {
    V t = y * inverse;
    return (V(1) - t) * (V(1) + t);
  }
  FUSEDACT_FN V second_from_output(V y) const { return V(-2) * y * inverse * inverse; }
};

// x - tanh x: below 1 by its series, since the terms cancel.
template <class V>
struct tanhshrink : Plain<> {
  static constexpr std::string_view name = "tanhshrink";
  static constexpr bool wide = true;
  explicit tanhshrink(const double*) {}
  FUSEDACT_FN V forward(V x) const { return tanhshrink_of(x); }
  FUSEDACT_FN V derivative(V x) const {
    V t = tanh(x);
    return t * t;
  }
  FUSEDACT_FN V second(V x) const { return V(2) * tanh(x) * sech_squared(x); }
};

// beta tanh(x / beta) sigma(x), TransformerEngine's gate.
template <class V>
struct situ : Plain<1> {
  static constexpr std::string_view name = "situ";
  static constexpr bool wide = true;
  V beta, inverse;
  explicit situ(const double* p) : beta(p[0]), inverse(1 / p[0]) {}
  FUSEDACT_FN V forward(V x) const { return beta * tanh(x * inverse) * sigmoid(x); }
  FUSEDACT_FN V derivative(V x) const {
    V t = x * inverse;
    return sigmoid(x) * (sech_squared(t) + beta * tanh(t) * sigmoid(-x));
  }
  FUSEDACT_FN V second(V x) const {
    V t = tanh(x * inverse), q = sech_squared(x * inverse), s = sigmoid(x), r = sigmoid(-x);
    return s * (V(-2) * t * q * inverse + V(2) * q * r + beta * t * r * (r - s));
  }
};

// ---- the rest -------------------------------------------------------------------------------------------------------

// x / (1 + |x|)
template <class V>
struct softsign : Plain<> {
  static constexpr std::string_view name = "softsign";
  explicit softsign(const double*) {}
  FUSEDACT_FN V forward(V x) const { return x / (V(1) + abs(x)); }
  FUSEDACT_FN V derivative(V x) const {
    V r = V(1) / (V(1) + abs(x));
    return r * r + (x - x);  // infinite x: NaN, as the quotient rule has it
  }
  FUSEDACT_FN V second(V x) const {
    V a = abs(x), d = V(1) + a, lost = a - (d - V(1));
    V y = select(x > V(0), V(-2), select(x < V(0), V(2), V(0))) / d / (d * d);
    return fma(y, V(-3) * lost / d, y);
  }
  FUSEDACT_FN V derivative_from_output(V y) const {
    V r = V(1) - abs(y);
    return r * r;
  }
  FUSEDACT_FN V second_from_output(V y) const {
    return select(y > V(0), V(-2), select(y < V(0), V(2), V(0))) * (V(1) - abs(y));
  }
  static bool invertible(const double*) { return true; }
};

template <class V>
struct square : Plain<> {
  static constexpr std::string_view name = "square";
  static constexpr bool cheap = true;
  static constexpr bool bends_in_float = true;
  explicit square(const double*) {}
  FUSEDACT_FN V forward(V x) const { return x * x; }
  FUSEDACT_FN V derivative(V x) const { return V(2) * x; }
  FUSEDACT_FN V second(V x) const { return x * V(0) + V(2); }
};

// sign(x) sqrt|x|; the gradient is infinite at 0.
template <class V>
struct signed_sqrt : Plain<> {
  static constexpr std::string_view name = "signed_sqrt";
  explicit signed_sqrt(const double*) {}
  FUSEDACT_FN V forward(V x) const { return copysign(sqrt(abs(x)), x); }
  FUSEDACT_FN V derivative(V x) const { return V(0.5) / sqrt(abs(x)); }
  FUSEDACT_FN V second(V x) const { return V(-0.25) / x / sqrt(abs(x)); }
};

template <class V>
struct cos_ : Plain<> {
  static constexpr std::string_view name = "cos";
  explicit cos_(const double*) {}
  FUSEDACT_FN V forward(V x) const { return cos(x); }
  FUSEDACT_FN V derivative(V x) const { return -sin(x); }
  FUSEDACT_FN V second(V x) const { return -cos(x); }
};

template <class V>
struct sin_ : Plain<> {
  static constexpr std::string_view name = "sin";
  explicit sin_(const double*) {}
  FUSEDACT_FN V forward(V x) const { return sin(x); }
  FUSEDACT_FN V derivative(V x) const { return cos(x); }
  FUSEDACT_FN V second(V x) const { return -sin(x); }
};

// ---- the registry of the C++ side -----------------------------------------------------------------------------------

template <template <class> class... Activations>
struct TypeList {
  static constexpr int size = sizeof...(Activations);
};

using AllActivations = TypeList<identity, relu, leaky_relu, prelu, rrelu, threshold, fatrelu, hardtanh, relu6, clamp,
                                hardsigmoid, hardshrink, softshrink, hardswish, hard_mish, squared_relu, elu, celu,
                                selu, elup1, sigmoid_, logsigmoid, softplus_, silu, swish, quick_gelu, mish, gelu,
                                gelu_tanh, tanh_, softcap, tanhshrink, situ, softsign, square, signed_sqrt, cos_, sin_>;

}  // namespace fusedact
