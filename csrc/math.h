// The functions that activations are made of, for any value type V: float, double, a SIMD pack of either.
//
// Knows no activation, no memory, no torch. The only file with a host/device #ifdef.
//
// V brings, found by argument-dependent lookup for packs and below for scalars:
//   + - * / and comparisons (which give a mask, combined with & and |), select(mask, a, b),
//   fma(a, b, c)        a b + c, fused where the machine can
//   fma_exact(a, b, c)  the same, but right to the last bit where c cancels a b (without an FMA: Dekker's product)
//   abs, sqrt, copysign, sin, cos, exponent(t, offset)
//
// Accuracy is kept by carrying what each rounding lost: Two{hi, lo} is an unevaluated sum. Error bounds below are in
// units of u = 2^-24 (float) or 2^-53 (double); the sweep over every float (python -m fusedact accuracy) repeats them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define FUSEDACT_FN __host__ __device__ __forceinline__
#else
#define FUSEDACT_FN [[gnu::always_inline]] inline
#endif

namespace fusedact {

// ---- what a value type is -------------------------------------------------------------------------------------------

template <class V>
struct value_traits {
  using scalar = typename V::scalar;
};
template <>
struct value_traits<float> {
  using scalar = float;
};
template <>
struct value_traits<double> {
  using scalar = double;
};
template <class V>
using scalar_t = typename value_traits<V>::scalar;

// ---- scalars as value types -----------------------------------------------------------------------------------------

template <class T>
concept Scalar = std::is_same_v<T, float> || std::is_same_v<T, double>;

template <Scalar T>
FUSEDACT_FN T select(bool mask, T a, T b) {
  return mask ? a : b;
}
template <Scalar T>
FUSEDACT_FN T fma(T a, T b, T c) {
  return std::fma(a, b, c);
}
template <Scalar T>
FUSEDACT_FN T fma_exact(T a, T b, T c) {
  return std::fma(a, b, c);
}
template <Scalar T>
FUSEDACT_FN T abs(T x) {
  return std::fabs(x);
}
template <Scalar T>
FUSEDACT_FN T sqrt(T x) {
  return std::sqrt(x);
}
template <Scalar T>
FUSEDACT_FN T copysign(T x, T sign) {
  return std::copysign(x, sign);
}
template <Scalar T>
FUSEDACT_FN T sin(T x) {
  return std::sin(x);
}
template <Scalar T>
FUSEDACT_FN T cos(T x) {
  return std::cos(x);
}
FUSEDACT_FN float exponent(float t, int offset) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(t) + static_cast<uint32_t>(offset + 127)) << 23);
}
FUSEDACT_FN double exponent(double t, int offset) {
  return std::bit_cast<double>((std::bit_cast<uint64_t>(t) + static_cast<uint64_t>(offset + 1023)) << 52);
}

// ---- small change ---------------------------------------------------------------------------------------------------

// NaN in the first argument stays, whatever the second.
template <class V>
FUSEDACT_FN V at_least(V x, V low) {
  return select(x < low, low, x);
}
template <class V>
FUSEDACT_FN V at_most(V x, V high) {
  return select(x > high, high, x);
}

template <class V>
struct Two {
  V hi, lo;
};

// a + b exactly, for |a| >= |b| (or a == 0).
template <class V>
FUSEDACT_FN Two<V> two_sum(V a, V b) {
  V s = a + b;
  return {s, (a - s) + b};
}
template <class V>
FUSEDACT_FN Two<V> two_product(V a, V b) {
  V p = a * b;
  return {p, fma_exact(a, b, V(0) - p)};
}
// c x for a constant c that is no float: c to twice the precision, x exact.
template <class V>
FUSEDACT_FN Two<V> two_scaled(Two<V> c, V x) {
  Two<V> p = two_product(c.hi, x);
  return {p.hi, fma(c.lo, x, p.lo)};
}
template <class V>
FUSEDACT_FN Two<V> two_constant(double c) {
  using T = scalar_t<V>;
  T hi = static_cast<T>(c);
  return {V(hi), V(static_cast<T>(c - static_cast<double>(hi)))};
}

// (n.hi + n.lo) / (d.hi + d.lo), error below 0.05 u before hi + lo is rounded. One division.
template <class V>
FUSEDACT_FN Two<V> two_quotient(Two<V> n, Two<V> d) {
  V inverse = V(1) / d.hi;
  V q = n.hi * inverse;
  V rest = fma_exact(V(0) - q, d.hi, n.hi) + fma(V(0) - q, d.lo, n.lo);
  return {q, rest * inverse};
}
template <class V>
FUSEDACT_FN V rounded(Two<V> x) {
  return x.hi + x.lo;
}

// Horner's rule, the highest coefficient last. Four interleaved packs hide its latency better than Estrin's does.
template <class V, int N>
FUSEDACT_FN V polynomial(V x, const scalar_t<V> (&c)[N]) {
  V sum = V(c[N - 1]);
#pragma GCC unroll 32
  for (int i = N - 2; i >= 0; --i) sum = fma(sum, x, V(c[i]));
  return sum;
}

// ---- tables: the output of minimax.py -------------------------------------------------------------------------------

template <class T>
struct table;

template <>
struct table<float> {
  static constexpr float magic = 0x1.8p23f;  // t = x + magic has round(x) in its low bits, for |x| < 2^22
  static constexpr float log2e = 0x1.715476p+0f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float exp_floor = -112.0f;  // below it x e^x is zero even where the table's scale is kept
  static constexpr int scale = 40;             // results that may be subnormal travel times 2^scale
  static constexpr float unscale = 0x1p-40f;
  // (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2, relative error 1.4e-7
  static constexpr float exp[] = {0.5f, 0.166665763f, 0.0416667052f, 0.00836329162f, 0.00139110407f};
  // (atanh(s) / s - 1) / s^2 in s^2 on [0, 1/9], 3.0e-8
  static constexpr float log1p[] = {0.333333343f, 0.199997157f, 0.14301452f, 0.107843384f, 0.119029522f};
  // e^(a^2 / 2) Q(a), Q the upper tail of the normal distribution, on [0, 15], 2.5e-8
  static constexpr float tail_limit = 15.0f;
  static constexpr float tail_p[] = {0.5f, 0.439286292f, 0.183970183f, 0.0408811718f, 0.00415313337f};
  static constexpr float tail_q[] = {1.0f, 1.67645752f, 1.20555496f, 0.471411198f, 0.102480002f, 0.0104102502f};
  // e^(a^2 / 2) (Q(a) - a phi(a)) / (root - a) on [0, 15], 2.9e-8
  static constexpr float slope_p[] = {0.665077984f, 0.754211247f, 0.378515393f, 0.0958873481f, 0.0104720201f};
  static constexpr float slope_q[] = {1.0f, 1.39963186f, 0.794201791f, 0.22062695f, 0.0262493156f};
};

template <>
struct table<double> {
  static constexpr double magic = 0x1.8p52;
  static constexpr double log2e = 0x1.71547652b82fep+0;
  static constexpr double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10;
  static constexpr double exp_floor = -760.0;
  static constexpr int scale = 100;
  static constexpr double unscale = 0x1p-100;
  static constexpr double exp[] = {0.5,
                                   0.16666666666666671,
                                   0.041666666666666644,
                                   0.00833333333332586,
                                   0.0013888888888905662,
                                   0.0001984126987559926,
                                   2.4801587269738219e-5,
                                   2.7557254537672882e-6,
                                   2.7557329232232436e-7,
                                   2.510554366612815e-8,
                                   2.0895670142659048e-9};
  static constexpr double log1p[] = {0.33333333333333331,  0.20000000000002671,  0.14285714285023923,  0.1111111118270441,
                                     0.090909052916907013, 0.0769242263286537,   0.066646016794800936, 0.059039953136005671,
                                     0.051467896048737229, 0.048921143959487053, 0.057865035808952608};
  static constexpr double tail_limit = 39.0;
  static constexpr double tail_p[] = {0.5,
                                      0.82798264539821409,
                                      0.67970017965989793,
                                      0.35741581044678089,
                                      0.13208122600981556,
                                      0.035679798002107015,
                                      0.0071258101678992568,
                                      0.0010402281565510044,
                                      0.00010663465487499769,
                                      6.9807092641083885e-6,
                                      2.2436117024607383e-7};
  static constexpr double tail_q[] = {1.0,
                                      2.4538498515992937,
                                      2.8172892704392671,
                                      2.0017398275607099,
                                      0.9803047569938288,
                                      0.34841132271826203,
                                      0.092008460019578936,
                                      0.018127925898364285,
                                      0.0026249633526999766,
                                      0.0002678558310151033,
                                      1.7498043218422348e-5,
                                      5.6239005306798067e-7};
  static constexpr double slope_p[] = {0.66507799513143429,  1.3301959770057508,    1.2803528667907771,
                                       0.77118297937756664,  0.32018254140706864,   0.095588698942208922,
                                       0.020796003956570951, 0.0032638443242661891, 0.00035521227571333203,
                                       2.4369376565093448e-5, 8.0851656500054922e-7};
  static constexpr double slope_q[] = {1.0,
                                       2.2656732547316616,
                                       2.3802163332780615,
                                       1.5302325424749164,
                                       0.66842665999153084,
                                       0.20792791923728479,
                                       0.046821723229543519,
                                       0.0075714218197615053,
                                       0.00084648862279920365,
                                       5.9561349677087309e-5,
                                       2.0266504823377609e-6};
};

// (x - tanh x) / x^3 in x^2 on [0, 1], 5.6e-17; used in float64 only
inline constexpr double tanhshrink_series[] = {
    0.33333333333333331,    -0.1333333333333257,    0.053968253967677085,  -0.021869488518112178, 0.0088632352278976614,
    -0.0035921249440890083, 0.0014558134067141036,  -0.00058992823945125102, 0.0002387912788478545, -9.6069242936926128e-5,
    3.7700940405266911e-5,  -1.37191461220204e-5,   4.1575358150700043e-6, -8.3004135874620838e-7, 2.0073251134502345e-8,
    3.956605654081434e-8,   -7.820367095753676e-9};

// ---- exponentials ---------------------------------------------------------------------------------------------------

// x + lo = n ln 2 + r, |r| <= ln 2 / 2; t carries n in its low bits.
template <class V>
struct Reduced {
  V r, t;
};
template <class V>
FUSEDACT_FN Reduced<V> reduce(V x, V lo) {
  using K = table<scalar_t<V>>;
  V t = fma(x, V(K::log2e), V(K::magic));
  V n = t - V(K::magic);
  V r = fma(n, V(-K::ln2_hi), x);  // exact
  return {fma(n, V(-K::ln2_lo), r) + lo, t};
}

// e^(x + lo) 2^scale for x <= 0 (lo a correction), without its last rounding: error below 0.3 u before hi + lo is
// rounded. Exactly 0 below exp_floor, so that an infinite factor makes NaN; NaN stays.
template <class V>
FUSEDACT_FN Two<V> exp_scaled(V x, V lo) {
  using K = table<scalar_t<V>>;
  auto [r, t] = reduce(x, lo);
  auto [sum, rest] = two_sum(V(1), r);
  auto [hi, tail] = two_sum(sum, fma(r * r, polynomial(r, K::exp), rest));
  V power = exponent(t, K::scale);
  auto vanished = x < V(K::exp_floor);
  return {select(vanished, V(0), hi * power), select(vanished, V(0), tail * power)};
}

// e^x for x <= 0; gradual underflow.
template <class V>
FUSEDACT_FN V exp_negative(V x, V lo) {
  using K = table<scalar_t<V>>;
  return rounded(exp_scaled(x, lo)) * V(K::unscale);
}
template <class V>
FUSEDACT_FN V exp_negative(V x) {
  return exp_negative(x, V(0));
}

// e^x - 1 for x <= 0, relative error below 0.4 u before hi + lo is rounded.
template <class V>
FUSEDACT_FN Two<V> expm1_negative(V x) {
  using K = table<scalar_t<V>>;
  V bounded = at_least(x, V(-60));  // e^-60 is lost beside 1 even in float64
  auto [r, t] = reduce(bounded, V(0));
  V w = r * r * polynomial(r, K::exp);
  auto [hi, lo] = two_sum(r, w);
  V power = exponent(t, 0);
  auto [sum, rest] = two_sum(power - V(1), power * hi);
  return {sum, fma(power, lo, rest)};
}

// ---- the logistic family: everything from z = e^-|t|, which neither overflows nor cancels ---------------------------

// sigma(t) for t = t.hi + t.lo is `value * scale`; the scale keeps the left tail's digits until the last product.
template <class V>
struct Logistic {
  Two<V> value;
  V scale;
};
template <class V>
FUSEDACT_FN Logistic<V> logistic(Two<V> t) {
  using K = table<scalar_t<V>>;
  auto negative = t.hi < V(0);
  Two<V> z = exp_scaled(V(0) - abs(t.hi), select(negative, t.lo, V(0) - t.lo));
  V d = fma(z.hi, V(K::unscale), V(1));
  V d_lo = fma(z.lo, V(K::unscale), fma(z.hi, V(K::unscale), V(1) - d));
  Two<V> n{select(negative, z.hi, V(1)), select(negative, z.lo, V(0))};
  return {two_quotient(n, Two<V>{d, d_lo}), select(negative, V(K::unscale), V(1))};
}

// x sigma(t)
template <class V>
FUSEDACT_FN V times_sigmoid(V x, Two<V> t) {
  auto [s, scale] = logistic(t);
  return x * rounded(s) * scale;
}

// sigma(t) (1 + w (1 - sigma(t))): the derivative of x sigma(t(x)), with w = x t'(x). With z = e^-|t| it is
// z (1 + w + z) / (1 + z)^2 on the left, where 1 + w + z cancels at the root, and (1 + z (1 + w)) / (1 + z)^2 on the right.
template <class V>
FUSEDACT_FN V times_sigmoid_derivative(Two<V> t, Two<V> w) {
  using K = table<scalar_t<V>>;
  auto negative = t.hi < V(0);
  Two<V> z = exp_scaled(V(0) - abs(t.hi), select(negative, t.lo, V(0) - t.lo));
  V z_hi = z.hi * V(K::unscale), z_lo = z.lo * V(K::unscale);
  V inverse = V(1) / (V(1) + (z_hi + z_lo));
  V one_w = V(1) + w.hi;
  V one_w_lo = select(abs(w.hi) < V(1), (V(1) - one_w) + w.hi, (w.hi - one_w) + V(1)) + w.lo;
  V left = (one_w + z_hi) + (z_lo + one_w_lo);
  V right = fma(z_hi + z_lo, one_w, V(1));
  V n = select(negative, left * inverse * rounded(z), right * inverse);
  return n * inverse * select(negative, V(K::unscale), V(1));
}

// sigma and its derivatives, for second derivatives (computed in float64) and tails that may round twice.
template <class V>
FUSEDACT_FN V sigmoid(V x) {
  auto [s, scale] = logistic(Two<V>{x, V(0)});
  return rounded(s) * scale;
}

// log(1 + e^t), t = t.hi + t.lo, as z -> 2 atanh(z / (2 + z)).
template <class V>
FUSEDACT_FN V softplus(Two<V> t) {
  using K = table<scalar_t<V>>;
  auto negative = t.hi < V(0);
  Two<V> z = exp_scaled(V(0) - abs(t.hi), select(negative, t.lo, V(0) - t.lo));
  V d = fma(z.hi, V(K::unscale), V(2));
  V d_lo = fma(z.lo, V(K::unscale), fma(z.hi, V(K::unscale), V(2) - d));
  Two<V> s = two_quotient(z, Two<V>{d, d_lo});
  V s1 = s.hi * V(K::unscale);
  V s2 = s1 * s1;
  V series = fma(s.hi * s2, polynomial(s2, K::log1p), s.lo);
  V log1p = s.hi + series;  // half of it, times 2^scale
  return fma(log1p, V(2) * V(K::unscale), at_least(t.hi, V(0)) + select(negative, V(0), t.lo));
}

// tanh, error below 0.1 u before hi + lo is rounded; the sign is the caller's to set: this is tanh |x|.
template <class V>
FUSEDACT_FN Two<V> tanh_abs(V x) {
  Two<V> e = expm1_negative(V(-2) * abs(x));
  V d = V(2) + e.hi;
  return two_quotient(Two<V>{V(0) - e.hi, V(0) - e.lo}, Two<V>{d, (V(2) - d) + e.hi + e.lo});
}
template <class V>
FUSEDACT_FN V tanh(V x) {
  return copysign(rounded(tanh_abs(x)), x);
}

// 1 - tanh^2 t = 4 z / (1 + z)^2 with z = e^-2|t|.
template <class V>
FUSEDACT_FN V sech_squared(Two<V> t) {
  using K = table<scalar_t<V>>;
  V lo = V(2) * select(t.hi < V(0), t.lo, V(0) - t.lo);
  Two<V> z = exp_scaled(V(-2) * abs(t.hi), lo);
  V inverse = V(1) / fma(z.hi, V(K::unscale), V(1));
  return rounded(z) * inverse * inverse * (V(4) * V(K::unscale));
}
template <class V>
FUSEDACT_FN V sech_squared(V t) {
  return sech_squared(Two<V>{t, V(0)});
}

// x - tanh x; by its series below 1.
template <class V>
FUSEDACT_FN V tanhshrink_of(V x) {
  Two<V> t = tanh_abs(x);
  V a = abs(x), square = x * x;
  V series = a * (square * polynomial(at_most(square, V(1)), tanhshrink_series));
  return copysign(select(a < V(1), series, (a - t.hi) - t.lo), x);
}

// ---- the normal distribution ----------------------------------------------------------------------------------------

// e^(-x^2 / 2) 2^scale: x^2 is split, so that the exponential keeps its digits.
template <class V>
FUSEDACT_FN Two<V> gauss_scaled(V x) {
  Two<V> square = two_product(x, x);
  return exp_scaled(V(-0.5) * square.hi, V(-0.5) * square.lo);
}

// Q(a) 2^scale, the upper tail of the normal distribution, for a >= 0.
template <class V>
FUSEDACT_FN Two<V> normal_tail_scaled(V a) {
  using K = table<scalar_t<V>>;
  Two<V> e = gauss_scaled(a);
  V bounded = at_most(a, V(K::tail_limit));
  V n = polynomial(bounded, K::tail_p), d = polynomial(bounded, K::tail_q);
  Two<V> r = two_quotient(Two<V>{n, V(0)}, Two<V>{d, V(0)});
  return {r.hi * e.hi, fma(r.hi, e.lo, r.lo * e.hi)};
}

// phi(x) = e^(-x^2 / 2) / sqrt(2 pi)
template <class V>
FUSEDACT_FN V normal_pdf(V x) {
  using K = table<scalar_t<V>>;
  return rounded(gauss_scaled(x)) * V(0.3989422804014327) * V(K::unscale);
}

}  // namespace fusedact
