// The functions that activations are made of, for any value type V: float, double, a SIMD pack of either.
//
// Knows no activation, no memory, no torch. The only file with a host/device #ifdef.
//
// V brings, found by argument-dependent lookup for packs and below for scalars:
//   + - * / and comparisons (which give a mask, combined with & and |), select(mask, a, b), if_negative(x, a, b),
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
#include <iterator>
#include <limits>
#include <type_traits>

#include "cubics.h"
#include "pieces.h"

#if defined(__CUDACC__) || defined(__HIPCC__)
#define FUSEDACT_FN __host__ __device__ __forceinline__
#define FUSEDACT_COLD __host__ __device__ __forceinline__  // a call would want a stack
#else
#define FUSEDACT_FN [[gnu::always_inline]] inline
#define FUSEDACT_COLD [[gnu::noinline, gnu::cold]] static
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

// Whether a V is computed only to be rounded to 16 bits. 2^-18 is good enough then (0.51 units in the last place of float16),
// so that corrections are left out and polynomials are shorter.
template <class V>
constexpr bool is_brief = requires { requires V::for_16_bits; };

// Whether fma(a, b, c) rounds once, as it does but on a CPU of before 2013.
template <class V>
constexpr bool has_fma = !requires { requires V::without_fma; };

// Whether a V finds an entry of a table of 32 for each of its lanes in one instruction, look_up(t, table): there a polynomial
// whose coefficients are looked up is half the work of an exponential and a quotient.
template <class V>
constexpr bool has_pieces = requires { requires V::looks_up; };
// Whether a V reads a row of a longer table for each of its lanes, cubic<Table>(rows_of<Table>(x)), in less time than the
// longest formulas take.
template <class V>
constexpr bool has_rows = requires { requires V::reads_rows; };
// What a function is looked up in, if anything: what `if constexpr (tabulated<V>)` chooses between.
template <class V, class Pieces, class Cubics>
using table_for = std::conditional_t<has_pieces<V>, Pieces, Cubics>;
template <class V>
constexpr bool tabulated = has_pieces<V> || has_rows<V>;

// ---- scalars as value types -----------------------------------------------------------------------------------------

template <class T>
concept Scalar = std::is_same_v<T, float> || std::is_same_v<T, double>;

template <Scalar T>
FUSEDACT_FN T select(bool mask, T a, T b) {
  return mask ? a : b;
}
// a for x below zero, else b; for a zero or NaN either, where they are the same. (Packs need no comparison for it.)
template <Scalar T>
FUSEDACT_FN T if_negative(T x, T a, T b) {
  return x < 0 ? a : b;
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
  return std::bit_cast<float>((std::bit_cast<uint32_t>(t) + static_cast<uint32_t>(offset)) << 23);
}
FUSEDACT_FN double exponent(double t, int offset) {
  return std::bit_cast<double>((std::bit_cast<uint64_t>(t) + static_cast<uint64_t>(offset)) << 52);
}

// ---- small change ---------------------------------------------------------------------------------------------------

// NaN in the first argument stays, whatever the second. (Packs have an instruction for each.)
template <Scalar T>
FUSEDACT_FN T at_least(T x, T low) {
  return x < low ? low : x;
}
template <Scalar T>
FUSEDACT_FN T at_most(T x, T high) {
  return x > high ? high : x;
}
FUSEDACT_FN bool any(bool mask) { return mask; }
// x as another value: what a call takes by value is no reason then to keep x in memory. (Packs need it.)
template <Scalar T>
FUSEDACT_FN T apart(T x) {
  return x;
}

template <class V>
FUSEDACT_FN V negative_abs(V x) {
  return copysign(x, V(-1));
}

template <class V>
struct Two {
  V hi, lo;
};

// a + b exactly (Knuth).
template <class V>
FUSEDACT_FN Two<V> two_sum(V a, V b) {
  V s = a + b, from_b = s - a;
  return {s, (a - (s - from_b)) + (b - from_b)};
}
template <class V>
FUSEDACT_FN Two<V> two_product(V a, V b) {
  V p = a * b;
  return {p, fma_exact(a, b, -p)};
}
// c x for a constant c that is no float: c to twice the precision, x exact.
template <class V>
FUSEDACT_FN Two<V> two_scaled(Two<V> c, V x) {
  if constexpr (is_brief<V>) return {c.hi * x, V(0)};
  Two<V> p = two_product(c.hi, x);
  return {p.hi, fma(c.lo, x, p.lo)};
}
template <class V>
FUSEDACT_FN Two<V> two_constant(double c, double rest = 0) {
  using T = scalar_t<V>;
  T hi = static_cast<T>(c);
  return {V(hi), V(static_cast<T>((c - static_cast<double>(hi)) + rest))};
}

// a b / (d + d_lo): the remainder corrects product and quotient together, so that one rounding is left.
template <class V>
FUSEDACT_FN V product_over(V a, V b, V d, V d_lo) {
  if constexpr (is_brief<V>) return a * b / d;
  V inverse = V(1) / d;
  V p = a * b;
  V q = p * inverse;
  V missing = fma(-q, d_lo, fma_exact(-q, d, p)) + fma_exact(a, b, -p);
  return fma(missing, inverse, q);
}

// Horner's rule, the highest coefficient last. Four interleaved packs hide its latency better than Estrin's does.
// The table is a template argument: device code may use a constant's value, but not refer to the array.
template <const auto& c, int i, class V>
FUSEDACT_FN V horner(V sum, V x) {
  if constexpr (i < 0) {
    return sum;
  } else {
    constexpr auto next = c[i];
    return horner<c, i - 1>(fma(sum, x, V(next)), x);
  }
}
template <const auto& c, class V>
FUSEDACT_FN V polynomial(V x) {
  constexpr int highest = static_cast<int>(std::size(c)) - 1;
  constexpr auto first = c[highest];
  return horner<c, highest - 1>(V(first), x);
}

// ---- functions by tables, for values that look coefficients up --------------------------------------------------------

template <const auto& c, int i, class V>
FUSEDACT_FN V horner_of_pieces(V sum, V r, V t) {
  if constexpr (i < 0) {
    return sum;
  } else {
    return horner_of_pieces<c, i - 1>(fma(sum, r, look_up(t, c[i])), r, t);
  }
}
template <const auto& c, class V>
FUSEDACT_FN V polynomial_of_piece(V r, V t) {
  constexpr int highest = static_cast<int>(std::size(c)) - 1;
  return horner_of_pieces<c, highest - 1>(look_up(t, c[highest]), r, t);
}
// Which piece: the low bits of t, by a sum that pushes all others out, or five of the upper bits of x + offset. The centres are
// numbers at which the function is very nearly a float (Gal's tables), and x - centre is exact: what is left is little more
// than the last rounding.
template <class Pieces, class V>
FUSEDACT_FN V by_pieces(V x) {
  V t;
  if constexpr (requires { Pieces::width; }) {
    t = x + V(0x1.8p23f * Pieces::width);
  } else {
    t = octave_and_sixteenth(x + V(Pieces::offset));
  }
  V r = x - look_up(t, Pieces::centre);
  if constexpr (is_brief<V>) {
    return polynomial_of_piece<Pieces::brief>(r, t);
  } else {
    return polynomial_of_piece<Pieces::c>(r, t);
  }
}
// A function of x by its table, pieces or cubics, as far as the table's limit.
template <class Table, class V>
FUSEDACT_FN V piecewise(V x) {
  if constexpr (has_pieces<V>) {
    return by_pieces<Table>(x);
  } else {
    return cubic<Table>(rows_of<Table>(x));
  }
}
template <class V, class Far, class... More>
FUSEDACT_COLD V far_away(Far far, V x, More... more) {
  return far(x, more...);
}
// y, but where x is beyond the limit far(x, more...): by a call, for it is rare.
template <class V, class Far, class... More>
FUSEDACT_FN V with_far(V y, V x, float limit, Far far, More... more) {
  auto beyond = abs(x) > V(limit);
  if (any(beyond)) [[unlikely]]
    y = select(beyond, far_away(far, apart(x), apart(more)...), y);
  return y;
}
// A smooth ramp, f(x) - f(-x) = x, from -f(-|x|); and a smooth step, f(x) + f(-x) = 1, from f(-|x|).
template <class V>
FUSEDACT_FN V ramp(V x, V left) {
  return at_least(x, V(0)) - left;
}
template <class V>
FUSEDACT_FN V step(V x, V left) {
  return if_negative(x, left, V(1) - left);
}
template <class Table, class V, class Far>
FUSEDACT_FN V smooth_ramp(V x, Far far) {
  return with_far(ramp(x, piecewise<Table>(abs(x))), x, Table::limit, far);
}
template <class Table, class V, class Far>
FUSEDACT_FN V smooth_step(V x, Far far) {
  return with_far(step(x, piecewise<Table>(abs(x))), x, Table::limit, far);
}

// ---- tables: the output of minimax.py -------------------------------------------------------------------------------

template <class T>
struct table;

template <>
struct table<float> {
  static constexpr float magic = 0x1.8p23f + 127;  // t = x + magic has round(x) + 127 in its low bits, an exponent's
  static constexpr float log2e = 0x1.715476p+0f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float exp_floor = -112.0f;  // below it x e^x is zero even where the table's scale is kept
  static constexpr int scale = 40;             // results that may be subnormal travel times 2^scale
  static constexpr float unscale = 0x1p-40f;
  // (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2, so that e^r is right to 3.2e-9
  static constexpr float exp[] = {0.49999994f, 0.166665196f, 0.0416682549f, 0.0083688423f, 0.00138219562f};
  static constexpr float exp_brief[] = {0.499992281f, 0.166670576f, 0.0418907627f, 0.00831798185f};  // 1.1e-7
  // (log(1 + z) - z) / z^2 on [0, 1], 1.1e-8
  static constexpr float log1p[] = {-0.5f,        0.333332688f,   -0.249973416f, 0.199615255f,   -0.163865238f,
                                    0.130886376f, -0.0922538638f, 0.0501019917f, -0.0175823662f, 0.00288575795f};
  static constexpr float log1p_brief[] = {-0.49990806f, 0.331408739f,   -0.23612465f,
                                          0.151038617f, -0.0678540096f, 0.014587529f};  // log(1 + z) to 1.5e-6
  static constexpr float plain = 80.0f;  // while |t| is below, e^-|t| and a product with it are normal numbers
  // Q is the upper tail of the normal distribution. On [0, 5], where nearly all arguments are, polynomials in
  // a - centre for e^(a^2 / 2 + a / 2) Q(a), 1.1e-8, and for e^(a^2 / 2) (Q(a) - a phi(a)) / (root - a), 5.8e-8. The centre is a
  // float at which the function is very nearly one too, so that the first coefficient is exact.
  static constexpr float short_limit = 5.0f, tail_centre = 2.00001788139f, slope_centre = 2.00000786781f;
  static constexpr float tail_short[] = {0.456949651f,   0.0579350702f,    0.0297823753f,  -0.00105493574f,
                                         0.00113807141f, -0.000206490164f, 5.65710943e-5f, -1.28685133e-5f,
                                         2.86674435e-6f, -5.66305118e-7f,  1.25738453e-7f, -3.63232644e-8f,
                                         7.72663622e-9f, -6.90497992e-10f};
  static constexpr float slope_short[] = {0.504548907f,    -0.0343440287f,   0.0104402127f,  -0.00299253291f,
                                          0.000814050785f, -0.000212113504f, 5.33778875e-5f, -1.25096149e-5f,
                                          2.64128607e-6f,  -6.40875442e-7f,  1.96397977e-7f, -4.26717186e-8f,
                                          3.86412458e-9f};
  // The same in a - 2, 3.4e-6 and 3.7e-6.
  static constexpr float tail_brief[] = {0.456949115f,   0.0579400845f,   0.0297783446f,  -0.00107247801f,
                                         0.00114532223f, -0.00019368135f, 5.13258092e-5f, -1.59169285e-5f,
                                         4.41457496e-6f, -5.09493134e-7f};
  static constexpr float slope_brief[] = {0.504548967f,    -0.0343367383f,   0.0104411393f,  -0.00301356148f,
                                          0.000816539628f, -0.000196290901f, 4.91394239e-5f, -1.6583097e-5f,
                                          4.37913877e-6f,  -4.79443202e-7f};
  // Where the slope is wanted too, which shares the exponential: e^(a^2 / 2) Q(a) itself, 7.6e-9 and 2.1e-6.
  static constexpr float mills_centre = 2.99999070168f;
  static constexpr float mills_short[] = {0.121514268f,    -0.0344006047f,   0.00915637426f,   -0.00231051864f,
                                          0.000556268555f, -0.000128355445f, 2.84440885e-5f,   -6.13728162e-6f,
                                          1.31936463e-6f,  -2.42705198e-7f,  3.37583792e-8f,   -1.46143808e-8f,
                                          4.50463311e-9f,  6.31895924e-10f,  -1.07245691e-10f, -8.36853156e-11f};
  static constexpr float mills_brief[] = {0.168102339f,   -0.0627388954f,   0.0213088356f,  -0.00670049898f,
                                          0.00198265282f, -0.000556471408f, 0.00014257741f, -3.32999298e-5f,
                                          9.21518131e-6f, -2.97671909e-6f,  6.45100442e-7f, -5.80277373e-8f};
  // Beyond, in 1 / a^2: a e^(a^2 / 2) Q(a) and e^(a^2 / 2) (Q(a) / a - phi(a)), 2.9e-8.
  static constexpr float tail_far[] = {0.398942292f, -0.398956329f, 1.19997394f, -6.25553989f,
                                       52.8413429f,  -581.202148f,  4970.20703f, -19701.3086f};
  static constexpr float slope_far[] = {-0.398942292f, 0.398952603f, -0.400504649f, 1.28646195f,
                                        -8.2541275f,   62.8842545f,  -260.030579f};
};

template <>
struct table<double> {
  static constexpr double magic = 0x1.8p52 + 1023;
  static constexpr double log2e = 0x1.71547652b82fep+0;
  static constexpr double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10;
  static constexpr double exp_floor = -760.0;
  static constexpr int scale = 100;
  static constexpr double unscale = 0x1p-100;
  static constexpr double plain = 690.0;
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
  static constexpr bool log1p_by_atanh = true;  // (atanh(s) / s - 1) / s^2 in s^2 on [0, 1/9], 5.6e-17
  static constexpr double log1p[] = {0.33333333333333331,  0.20000000000002671,  0.14285714285023923,
                                     0.1111111118270441,   0.090909052916907013, 0.0769242263286537,
                                     0.066646016794800936, 0.059039953136005671, 0.051467896048737229,
                                     0.048921143959487053, 0.057865035808952608};
  // (a + 4) e^(a^2 / 2) Q(a) and e^(a^2 / 2) (Q(a) - a phi(a)) / (root - a) on [0, 39] in (a - 4) / (a + 4), where they
  // hardly vary and the last steps round alone; 3.1e-17 and 1.2e-17
  static constexpr double tail_limit = 39.0, tail_centre = 4.0;
  static constexpr double tail[] = {
      0.75528513041575152,    -0.60789664197189208,    0.38713740074221442,    -0.1865218579596615,
      0.060396574890830487,   -0.0075401889665405184,  -0.0034796923639404424, 0.0016308184544494154,
      0.00013334426652789928, -0.00023109491019571613, -1.9079275752047924e-6, 3.514458822819835e-5,
      7.1522104831788115e-7,  -5.9200337123042673e-6,  -6.2569101273040255e-7, 1.0218445352146705e-6,
      2.6470297258710417e-7,  -1.5652141919173257e-7,  -7.7593312189781496e-8, 1.5991497443650043e-8,
      1.475236699103655e-8,   -3.0959737969176656e-10, -1.2101801227014614e-9};
  static constexpr double slope[] = {0.46221124404957531,     -0.10336589852195695,    0.060462936767850445,
                                     -0.028083359953049714,   0.009504950375121583,    -0.001788260541147249,
                                     -0.00015461331325069964, 0.00018577577307532159,  -1.7477210575765116e-5,
                                     -1.8034924574161786e-5,  3.5388812898532624e-6,   2.2166600699350581e-6,
                                     -4.9211169181074454e-7,  -3.4910753943766341e-7,  5.2312086574433677e-8,
                                     6.2718266154030683e-8,   -7.2675301985527246e-10, -1.066108173663437e-8,
                                     -1.6366202357758201e-9,  1.1941079193310962e-9,   3.8057211083592081e-10};
};

// (x - tanh x) / x^3 in x^2 on [0, 1], 5.6e-17; used in float64 only
inline constexpr double tanhshrink_series[] = {0.33333333333333331,    -0.1333333333333257,     0.053968253967677085,
                                               -0.021869488518112178,  0.0088632352278976614,   -0.0035921249440890083,
                                               0.0014558134067141036,  -0.00058992823945125102, 0.0002387912788478545,
                                               -9.6069242936926128e-5, 3.7700940405266911e-5,   -1.37191461220204e-5,
                                               4.1575358150700043e-6,  -8.3004135874620838e-7,  2.0073251134502345e-8,
                                               3.956605654081434e-8,   -7.820367095753676e-9};

// ---- exponentials ---------------------------------------------------------------------------------------------------

// e^(x + lo) 2^offset = power (1 + e), |e| < 0.42, error of e below 0.3 u. The caller sees to it that x is not so small
// that power leaves its range; lo is a correction to x.
template <class V>
struct Exp {
  V e, power;
};
template <class V>
FUSEDACT_FN V exp_tail(V r) {
  if constexpr (is_brief<V>) return fma(r * r, polynomial<table<scalar_t<V>>::exp_brief>(r), r);
  return fma(r * r, polynomial<table<scalar_t<V>>::exp>(r), r);
}
template <class V>
FUSEDACT_FN Exp<V> exp_parts(V x, int offset = 0) {
  using K = table<scalar_t<V>>;
  V t = fma(x, V(K::log2e), V(K::magic));  // carries n = round(x / ln 2)
  V n = t - V(K::magic);
  if constexpr (is_brief<V>) return {exp_tail(fma(n, V(-0.6931471805599453), x)), exponent(t, offset)};
  V r = fma(n, V(-K::ln2_lo), fma(n, V(-K::ln2_hi), x));
  return {exp_tail(r), exponent(t, offset)};
}
template <class V>
FUSEDACT_FN Exp<V> exp_parts(V x, V lo, int offset = 0) {
  using K = table<scalar_t<V>>;
  if constexpr (is_brief<V>) return exp_parts(x, offset);
  V t = fma(x, V(K::log2e), V(K::magic));
  V n = t - V(K::magic);
  V r = fma(n, V(-K::ln2_hi), x) + fma(n, V(-K::ln2_lo), lo);
  return {exp_tail(r), exponent(t, offset)};
}
// e^(x + more + lo): more joins x when the multiple of ln 2 is off, where nothing of it is lost.
template <class V>
FUSEDACT_FN Exp<V> exp_parts(V x, V more, V lo, int offset) {
  using K = table<scalar_t<V>>;
  V t = fma(x + more, V(K::log2e), V(K::magic));
  V n = t - V(K::magic);
  V r = (fma(n, V(-K::ln2_hi), x) + more) + fma(n, V(-K::ln2_lo), lo);
  return {exp_tail(r), exponent(t, offset)};
}
template <class V>
FUSEDACT_FN V rounded(Exp<V> x) {
  return fma(x.power, x.e, x.power);
}

// e^(x + lo) for x <= 0, with gradual underflow.
template <class V>
FUSEDACT_FN V exp_negative(V x, V lo) {
  using K = table<scalar_t<V>>;
  V bounded = at_least(x, V(K::exp_floor));
  return rounded(exp_parts(bounded, select(x < bounded, V(0), lo), K::scale)) * V(K::unscale);
}
template <class V>
FUSEDACT_FN V exp_negative(V x) {
  using K = table<scalar_t<V>>;
  return rounded(exp_parts(at_least(x, V(K::exp_floor)), K::scale)) * V(K::unscale);
}

// c e^(x + lo) for x <= 0: the product is made before the result may become subnormal.
template <class V>
FUSEDACT_FN V times_exp(Two<V> c, V x, V lo) {
  using K = table<scalar_t<V>>;
  V bounded = at_least(x, V(K::exp_floor));
  V e = rounded(exp_parts(bounded, select(x < bounded, V(0), lo), K::scale));
  return fma(c.hi, e, c.lo * e) * V(K::unscale);
}

// e^(x + lo) 2^scale for x <= 0, for tails: 0 below exp_floor, so that an infinite factor makes NaN; NaN stays.
template <class V>
FUSEDACT_FN V exp_scaled(V x, V lo) {
  using K = table<scalar_t<V>>;
  return select(x < V(K::exp_floor), V(0), rounded(exp_parts(x, lo, K::scale)));
}
template <class V>
FUSEDACT_FN V exp_scaled(V x) {
  using K = table<scalar_t<V>>;
  return select(x < V(K::exp_floor), V(0), rounded(exp_parts(x, K::scale)));
}
// c times that, rounded once more.
template <class V>
FUSEDACT_FN V times_exp_scaled(Two<V> c, V x, V lo) {
  using K = table<scalar_t<V>>;
  auto [e, power] = exp_parts(x, lo, K::scale);
  return select(x < V(K::exp_floor), V(0), (c.hi + fma(c.hi, e, fma(c.lo, e, c.lo))) * power);
}

// e^x - 1 for x <= 0: relative error below 1.5 u.
template <class V>
FUSEDACT_FN V expm1_negative(V x) {
  auto [e, power] = exp_parts(at_least(x, V(-60)));  // e^-60 is lost beside 1 even in float64
  return fma(power, e, power - V(1));
}

// ---- the logistic family: everything from z = e^-|t|, which neither overflows nor cancels ---------------------------

// q = n / (1 + z) with n = z on the left, and better n - z q, which rounds once where 1 + z and q round twice.
template <class V>
FUSEDACT_FN V sigmoid_of(V t, V z) {
  V n = if_negative(t, z, V(1)), q = n / (V(1) + z);
  if constexpr (is_brief<V>) return q;
  return fma_exact(-z, q, n);
}
template <class V>
FUSEDACT_FN V sigmoid_by_exp(V x) {
  return sigmoid_of(x, exp_negative(negative_abs(x)));
}
template <class V>
FUSEDACT_FN V sigmoid(V x) {
  if constexpr (has_pieces<V>) {
    return smooth_step<pieces::sigmoid>(x, [](V far) { return sigmoid_by_exp(far); });
  } else {
    return sigmoid_by_exp(x);
  }
}
template <class V>
FUSEDACT_FN V sigmoid(Two<V> t) {
  return sigmoid_of(t.hi, exp_negative(negative_abs(t.hi), if_negative(t.hi, t.lo, -t.lo)));
}

// w sigma(t) sigma(-t), w times the derivative of sigma: w z / (1 + z)^2, the product made before it may be subnormal.
template <class V>
FUSEDACT_FN V times_sigmoid_slope(V w, V t, V lo) {
  using K = table<scalar_t<V>>;
  V scaled = exp_scaled(negative_abs(t), if_negative(t, lo, -lo)), z = scaled * V(K::unscale);
  return scaled * w / fma(z, z + V(2), V(1)) * V(K::unscale);
}
template <class V>
FUSEDACT_FN V times_sigmoid_slope(V w, V t) {
  using K = table<scalar_t<V>>;
  V scaled = exp_scaled(negative_abs(t)), z = scaled * V(K::unscale);
  return scaled * w / fma(z, z + V(2), V(1)) * V(K::unscale);
}
// (1 + z)^3 for z of 0 to 1
template <class V>
FUSEDACT_FN Two<V> cube_of_one_and(V z) {
  V a = V(3) + z, b = fma(z, a, V(3)), c = fma(z, b, V(1));
  V a_lo = z - (a - V(3)), b_lo = fma_exact(z, a, V(3) - b), c_lo = fma_exact(z, b, V(1) - c);
  return {c, fma(z, fma(z, a_lo, b_lo), c_lo)};
}
// The second derivative of sigma: -+ z (1 - z) / (1 + z)^3, where 1 - z cancels near 0.
template <class V>
FUSEDACT_FN V sigmoid_second(V t) {
  using K = table<scalar_t<V>>;
  V below = negative_abs(t), scaled = exp_scaled(below), z = scaled * V(K::unscale);
  V y = select(z < V(0.5), fma(scaled, z, -scaled), scaled * expm1_negative(below));
  y = y / cube_of_one_and(z).hi * V(K::unscale);
  return select(t < V(0), -y, y);
}
// The second derivative of x sigma(t(x)), with slope = t', w = x t' and bend = x t''. It is z (near + z far) / (1 + z)^3 with
// near, far = t' (2 -+ |w|) + x t'', where only near cancels at the root, and what it loses there is little.
template <class V>
FUSEDACT_FN V times_sigmoid_second(Two<V> t, Two<V> w, V slope, V bend) {
  using K = table<scalar_t<V>>;
  auto negative = t.hi < V(0);
  V below = negative_abs(t.hi), bounded = at_least(below, V(K::exp_floor));
  auto gone = below < bounded;
  auto [e, power] = exp_parts(bounded, select(gone, V(0), select(negative, t.lo, -t.lo)), K::scale);
  power = select(gone, V(0), power);
  V scaled = fma(power, e, power), z = scaled * V(K::unscale);
  Two<V> cube = cube_of_one_and(z);
  V size = select(negative, -w.hi, w.hi), rest = select(negative, -w.lo, w.lo);
  V more = V(2) + size, more_lo = (size - (more - V(2))) + rest;
  V less = V(2) - size, less_lo = ((V(2) - less) - size) - rest;
  V near = fma(slope, less, bend), far = fma(slope, more, bend);
  V most = far * (power * V(K::unscale)), sum = most + near;  // near + z far, of z more than its rounded value
  sum = sum + fma(most, e, fma(slope, fma(z, more_lo, less_lo), near - (sum - most)));
  V y = product_over(scaled, sum, cube.hi, cube.lo) * V(K::unscale);
  return select(scaled > V(0), y, scaled);  // w may be infinite where z is 0
}

// Where e^-|t| times something may be subnormal, |t| > plain: z travels times 2^scale until the last product.
template <class V>
FUSEDACT_COLD V times_sigmoid_tail(V x, V t, V lo) {
  using K = table<scalar_t<V>>;
  auto negative = t < V(0);
  V z = exp_scaled(negative_abs(t), select(negative, lo, -lo));
  return select(negative, x * z * V(K::unscale), x);
}
// The derivative there. w = x t'(x); infinite x give NaN, as the product rule has it.
template <class V>
FUSEDACT_COLD V times_sigmoid_derivative_tail(V x, V t, V lo, Two<V> w) {
  using K = table<scalar_t<V>>;
  auto negative = t < V(0);
  V bounded = at_most(at_least(w.hi, V(-1e4)), V(1e4));
  V one_w = V(1) + bounded, lost = select(w.hi == bounded, (V(1) - (one_w - bounded)) + w.lo, V(0));
  V left = times_exp_scaled(Two<V>{one_w, lost}, negative_abs(t), select(negative, lo, -lo)) * V(K::unscale);
  V z = exp_scaled(negative_abs(t), select(negative, lo, -lo)) * V(K::unscale);
  return fma(x, V(0), select(negative, left, fma(z, bounded, V(1))));
}

// x sigma(t), as above. A t that was rounded has left no room for the two roundings of a z near 1.
template <bool exact, class V>
FUSEDACT_FN V times_sigmoid_of(V x, V t, Exp<V> parts) {
  V z = rounded(parts), xp = x * parts.power;  // exact, so that x z is rounded once
  V p = if_negative(t, fma(xp, parts.e, xp), x);
  if constexpr (exact && has_fma<V>) return fma_exact(-z, p / (V(1) + z), p);
  V q = p / fma(parts.power, parts.e, V(1) + parts.power);  // 1 + z, rounded once
  return select(z < V(0.4), fma_exact(-z, q, p), q);
}
// The same where nothing is lost by it: e^-t may be large.
template <class V>
FUSEDACT_FN V times_sigmoid_brief(V x, V t) {
  return x / (V(1) + rounded(exp_parts(-t)));
}
template <class V>
FUSEDACT_FN V times_sigmoid_by_exp(V x) {
  V y;
  if constexpr (is_brief<V>) {
    y = times_sigmoid_brief(x, x);
  } else {
    y = times_sigmoid_of<true>(x, x, exp_parts(negative_abs(x)));
  }
  auto beyond = negative_abs(x) < V(-table<scalar_t<V>>::plain);
  if (any(beyond)) [[unlikely]]
    y = select(beyond, times_sigmoid_tail(apart(x), apart(x), V(0)), y);
  return y;
}
template <class V>
FUSEDACT_FN V times_sigmoid(V x) {
  if constexpr (has_pieces<V>) {
    return smooth_ramp<pieces::silu>(x, [](V far) { return times_sigmoid_by_exp(far); });
  } else {
    return times_sigmoid_by_exp(x);
  }
}
template <class V>
FUSEDACT_FN V times_sigmoid(V x, Two<V> t) {
  V y;
  if constexpr (is_brief<V>) {
    y = times_sigmoid_brief(x, t.hi);
  } else {
    y = times_sigmoid_of<false>(x, t.hi, exp_parts(negative_abs(t.hi), if_negative(t.hi, t.lo, -t.lo)));
  }
  auto beyond = negative_abs(t.hi) < V(-table<scalar_t<V>>::plain);
  if (any(beyond)) [[unlikely]]
    y = select(beyond, times_sigmoid_tail(apart(x), apart(t.hi), apart(t.lo)), y);
  return y;
}

// sigma(t) (1 + w (1 - sigma(t))): the derivative of x sigma(t(x)), with w = x t'(x). With z = e^-|t| it is
// z (1 + w + z) / (1 + z)^2 on the left, where 1 + w + z cancels at the root, and (1 + z (1 + w)) / (1 + z)^2 on the right.
template <class V>
FUSEDACT_FN V times_sigmoid_derivative_brief(V t, V w) {
  V s = V(1) / (V(1) + rounded(exp_parts(-t)));
  return s * fma(w, V(1) - s, V(1));
}
template <class V>
FUSEDACT_FN V times_sigmoid_derivative_by_exp(V x) {
  V y;
  if constexpr (is_brief<V>) {
    y = times_sigmoid_derivative_brief(x, x);
  } else {
    auto [e, power] = exp_parts(negative_abs(x));
    V z = fma(power, e, power), one_x = V(1) + x;
    V sum = fma(power, e, one_x + power);  // 1 + x + z, without z's rounding
    y = if_negative(x, sum * z, fma(z, one_x, V(1))) / fma(z, z + V(2), V(1));
  }
  auto beyond = negative_abs(x) < V(-table<scalar_t<V>>::plain);
  if (any(beyond)) [[unlikely]]
    y = select(beyond, times_sigmoid_derivative_tail(apart(x), apart(x), V(0), Two<V>{apart(x), V(0)}), y);
  return y;
}
template <class V>
FUSEDACT_FN V times_sigmoid_derivative(V x) {
  if constexpr (has_pieces<V>) {
    return smooth_step<pieces::silu_slope>(x, [](V far) { return times_sigmoid_derivative_by_exp(far); });
  } else {
    return times_sigmoid_derivative_by_exp(x);
  }
}
// The same where w = t + a b; what is largest is added up first, and rounds once.
template <class V>
FUSEDACT_FN V times_sigmoid_derivative(V x, Two<V> t, V a, V b) {
  V y, w = fma(a, b, t.hi);
  if constexpr (is_brief<V>) {
    y = times_sigmoid_derivative_brief(t.hi, w);
  } else {
    auto negative = t.hi < V(0);
    auto [e, power] = exp_parts(negative_abs(t.hi), select(negative, t.lo, -t.lo));
    V z = fma(power, e, power), one_t = V(1) + t.hi;
    V two_z = z + V(2), d = fma(z, two_z, V(1)), d_lo = fma_exact(z, two_z, V(1) - d);
    V sum = (one_t + power) + fma(a, b, fma(power, e, t.lo));
    V left = sum * power;  // exact, so that sum z is rounded once; and most of what d lost, for 1 / d is about a half
    left = fma(left, fma(V(-0.5), d_lo, e), left);
    y = select(negative, left, fma(z, fma(a, b, one_t + t.lo), V(1))) / d;
  }
  auto beyond = negative_abs(t.hi) < V(-table<scalar_t<V>>::plain);
  if (any(beyond)) [[unlikely]]
    y = select(beyond, times_sigmoid_derivative_tail(x, t.hi, t.lo, Two<V>{w, fma_exact(a, b, t.hi - w) + t.lo}), y);
  return y;
}

// log(1 + e^t) for t = t.hi + t.lo, error below 2 u and what max(t, 0) needs.
template <class V>
FUSEDACT_FN V softplus_by_exp(Two<V> t) {
  using K = table<scalar_t<V>>;
  V z = exp_negative(negative_abs(t.hi), if_negative(t.hi, t.lo, -t.lo));
  V log1p;
  if constexpr (requires { K::log1p_by_atanh; }) {
    V s = z / (V(2) + z);
    V square = s * s;
    log1p = V(2) * fma(s * square, polynomial<K::log1p>(square), s);
  } else if constexpr (is_brief<V>) {
    log1p = fma(z * z, polynomial<K::log1p_brief>(z), z);
  } else {
    log1p = fma_exact(z * z, polynomial<K::log1p>(z), z);
  }
  return at_least(t.hi, V(0)) + log1p;
}

template <class V>
FUSEDACT_FN V softplus(Two<V> t) {
  if constexpr (has_pieces<V>) {
    using P = pieces::softplus;
    V left = piecewise<P>(abs(t.hi));
    left =
        fma(left, if_negative(t.hi, t.lo, -t.lo), left);  // for its derivative is very nearly itself where t is large
    return with_far(
        at_least(t.hi, V(0)) + left, t.hi, P::limit, [](V hi, V lo) { return softplus_by_exp(Two<V>{hi, lo}); }, t.lo);
  } else {
    return softplus_by_exp(t);
  }
}

// tanh x: q = -e / (2 + e) with e = expm1(-2|x|), better written h + h q with h = -e / 2, where e is small, and
// 1 - 2 z / (1 + z) with z = e^-2|x| beyond.
template <class V>
FUSEDACT_FN V tanh(V x) {
  if constexpr (has_pieces<V>) return copysign(piecewise<pieces::tanh>(at_most(abs(x), V(pieces::tanh::limit))), x);
  auto [e, power] = exp_parts(at_least(V(2) * negative_abs(x), V(-60)));
  V m = fma(power, e, power - V(1)), z = fma(power, e, power);
  if constexpr (is_brief<V>) return copysign(m / (V(1) + z), x);
  auto close = z > V(0.2);
  V q = select(close, -m, z) / (V(1) + z), h = V(-0.5) * m;
  return copysign(select(close, fma_exact(h, q, h), fma(V(-2), q, V(1))), x);
}

// 1 - tanh^2 t = 4 sigma(2t) sigma(-2t)
template <class V>
FUSEDACT_FN V sech_squared(V t) {
  return times_sigmoid_slope(V(4), V(2) * t);
}

// x - tanh x; by its series below 1, where the terms cancel.
template <class V>
FUSEDACT_FN V tanhshrink_of(V x) {
  V a = abs(x), square = x * x;
  V series = a * (square * polynomial<tanhshrink_series>(at_most(square, V(1))));
  return copysign(select(a < V(1), series, a - tanh(a)), x);
}

// ---- the normal distribution ----------------------------------------------------------------------------------------

// -a^2 / 2 to twice the precision, so that its exponential keeps its digits.
template <class V>
FUSEDACT_FN Two<V> minus_half_square(V a) {
  V h = V(-0.5) * a, p = h * a;
  if constexpr (is_brief<V>) return {p, V(0)};
  return {p, fma_exact(h, a, -p)};
}

// w phi(x), phi(x) = e^(-x^2 / 2) / sqrt(2 pi)
template <class V>
FUSEDACT_FN V times_normal_pdf(V w, V x) {
  Two<V> t = minus_half_square(x);
  return times_exp(two_scaled(two_constant<V>(0.3989422804014327), w), t.hi, t.lo);
}

// x Phi(x) in full range: on the left -|x| Q(|x|), on the right x more; the scale is kept until the last product.
template <class V>
FUSEDACT_COLD V times_normal_cdf_tail(V x) {
  using K = table<scalar_t<V>>;
  V a = abs(x);
  Two<V> t = minus_half_square(a), factor;  // a Q(a) = e^t factor
  if constexpr (requires { K::short_limit; }) {
    factor = {polynomial<K::tail_far>(V(1) / (a * a)), V(0)};
  } else {
    V bounded = at_most(a, V(K::tail_limit)), d = bounded + V(K::tail_centre), inverse = V(1) / d;
    V ratio = polynomial<K::tail>((bounded - V(K::tail_centre)) * inverse);
    V lost = bounded - (d - V(K::tail_centre)), rest = fma(-inverse, lost, fma_exact(-inverse, d, V(1)));
    Two<V> q = two_product(ratio, inverse);
    factor = two_product(q.hi, bounded);
    factor.lo = fma(fma(q.hi, rest, q.lo), bounded, factor.lo);
  }
  V y = fma(times_exp_scaled(factor, t.hi, t.lo), V(-K::unscale), at_least(x, V(0)));
  return y + at_most(x, V(0)) * V(0);  // f(-inf) is NaN, as PyTorch has it
}
template <class V>
FUSEDACT_FN V times_normal_cdf(V x) {
  using K = table<scalar_t<V>>;
  if constexpr (tabulated<V>) {
    return smooth_ramp<table_for<V, pieces::gelu, cubics::gelu>>(x, [](V far) { return times_normal_cdf_tail(far); });
  } else if constexpr (requires { K::short_limit; }) {
    V a = abs(x), y;
    // Q(a) = e^(-a^2 / 2 - a / 2) P(a): with the second term P hardly varies, and its last step rounds alone.
    if constexpr (is_brief<V>) {
      V h = V(-0.5) * a;
      V q = rounded(exp_parts(fma(h, a, h))) * polynomial<K::tail_brief>(a - V(2));
      y = fma(-a, q, at_least(x, V(0)));
    } else {
      Two<V> square = minus_half_square(a);
      V h = V(-0.5) * a;
      auto [e, power] = exp_parts(square.hi, h, square.lo, 1);
      V ratio = polynomial<K::tail_short>(a - V(K::tail_centre));
      V b = h * power;  // -|x| times the power, which is twice its own
      V p = fma(ratio, e, ratio), p_lo = fma_exact(ratio, e, ratio - p);
      y = fma_exact(b, p, b * p_lo) + at_least(x, V(0));
    }
    auto beyond = a > V(K::short_limit);
    if (any(beyond)) [[unlikely]]
      y = select(beyond, times_normal_cdf_tail(apart(x)), y);
    return y;
  } else {
    return times_normal_cdf_tail(x);
  }
}

// Phi(x) + x phi(x) = e^(-x^2 / 2) (root - |x|) H(|x|) on the left, and 1 minus the same on the right.
template <class V>
FUSEDACT_FN V root_minus(V a) {
  constexpr double root = 0.75179152469356446, rest = root - double(scalar_t<V>(root));
  return (V(root) - a) + V(rest);
}
template <class V>
FUSEDACT_COLD V times_normal_cdf_derivative_tail(V x) {
  using K = table<scalar_t<V>>;
  V a = abs(x);
  Two<V> t = minus_half_square(a);
  Two<V> factor;
  if constexpr (requires { K::short_limit; }) {
    factor = two_product(polynomial<K::slope_far>(V(1) / (a * a)), at_most(a, V(16)));
  } else {
    V bounded = at_most(a, V(K::tail_limit)), inverse = V(1) / (bounded + V(K::tail_centre));
    V ratio = polynomial<K::slope>((bounded - V(K::tail_centre)) * inverse);
    factor = two_product(ratio, root_minus(bounded));
  }
  V left = times_exp_scaled(factor, t.hi, t.lo) * V(K::unscale);
  return fma(x, V(0), if_negative(x, left, V(1) - left));  // infinite x: NaN, as the product rule has it
}
template <class V>
FUSEDACT_FN V times_normal_cdf_derivative(V x) {
  using K = table<scalar_t<V>>;
  if constexpr (tabulated<V>) {
    using Table = table_for<V, pieces::gelu_slope, cubics::gelu_slope>;
    return smooth_step<Table>(x, [](V far) { return times_normal_cdf_derivative_tail(far); });
  } else if constexpr (requires { K::short_limit; }) {
    V a = abs(x);
    Two<V> t = minus_half_square(a);
    auto [e, power] = exp_parts(t.hi, t.lo);
    V ratio;
    if constexpr (is_brief<V>) {
      ratio = polynomial<K::slope_brief>(a - V(2)) * power;
    } else {
      ratio = polynomial<K::slope_short>(a - V(K::slope_centre)) * power;
    }
    V left = fma(ratio, e, ratio) * root_minus(a);
    V y = if_negative(x, left, V(1) - left);
    auto beyond = a > V(K::short_limit);
    if (any(beyond)) [[unlikely]]
      y = select(beyond, times_normal_cdf_derivative_tail(apart(x)), y);
    return y;
  } else {
    return times_normal_cdf_derivative_tail(x);
  }
}

// Both of them, where a gate's gradient wants both: the exponential is shared.
template <class V>
struct ValueAndSlope {
  V value, slope;
};
template <class V>
FUSEDACT_FN ValueAndSlope<V> times_normal_cdf_and_derivative(V x) {
  using K = table<scalar_t<V>>;
  if constexpr (has_pieces<V>) {
    return {times_normal_cdf(x), times_normal_cdf_derivative(x)};
  } else if constexpr (has_rows<V>) {
    using Value = cubics::gelu;
    using Slope = cubics::gelu_slope;
    static_assert(Value::per_unit == Slope::per_unit && std::size(Value::row) == std::size(Slope::row));
    auto rows = rows_of<Value>(abs(x));
    V value = ramp(x, cubic<Value>(rows)), slope = step(x, cubic<Slope>(rows));
    return {with_far(value, x, Value::limit, [](V far) { return times_normal_cdf_tail(far); }),
            with_far(slope, x, Slope::limit, [](V far) { return times_normal_cdf_derivative_tail(far); })};
  } else if constexpr (requires { K::short_limit; }) {
    V a = abs(x), mills, ratio;
    Two<V> t = minus_half_square(a);
    auto [e, power] = exp_parts(t.hi, t.lo);
    if constexpr (is_brief<V>) {
      mills = polynomial<K::mills_brief>(a - V(2));
      ratio = polynomial<K::slope_brief>(a - V(2)) * power;
    } else {
      mills = polynomial<K::mills_short>(a - V(K::mills_centre));
      ratio = polynomial<K::slope_short>(a - V(K::slope_centre)) * power;
    }
    V tail = mills * power, left = fma(ratio, e, ratio) * root_minus(a);
    ValueAndSlope<V> y{fma(-a, fma(tail, e, tail), at_least(x, V(0))), if_negative(x, left, V(1) - left)};
    auto beyond = a > V(K::short_limit);
    if (any(beyond)) [[unlikely]] {
      y.value = select(beyond, times_normal_cdf_tail(apart(x)), y.value);
      y.slope = select(beyond, times_normal_cdf_derivative_tail(apart(x)), y.slope);
    }
    return y;
  } else {
    return {times_normal_cdf(x), times_normal_cdf_derivative(x)};
  }
}

}  // namespace fusedact
