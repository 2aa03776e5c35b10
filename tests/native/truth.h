// The truth in double: value, first and second derivative of every activation, for the sweep over every float.
//
// Independent of csrc/: its own formulas, on libm. Why double is enough for a statement about float: each form below is a
// product, quotient or sum of terms of one sign (or chosen so that what cancels is exact), of at most ten operations of
// 4 ulp of double each (libmvec's bound; libm's is 1). What an exponential does to a rounded argument is |t| ulp, and |t| is
// below 200 wherever the result is no zero of float. So the relative error is below 2^-42, which is 2^-18 ulp of float.
// Where a derivative has a root its terms cancel, and the contract there is absolute: the terms are below 4, so that 2^-48 is
// lost of the 2e-7 allowed. (tanhshrink, which says so, comes nearest to 2^-18.) Both statements are checked where the program runs:
// definition.h, with MPFR, judges these functions at a sample from every exponent, and the worst points of a sweep once more;
// why that is enough, sweep.cpp says at `Tally`.
//
// No branches and no calls under a condition: the loops become libmvec's vectors.
#pragma once

#include <cmath>
#include <limits>

#if defined(__x86_64__) && defined(__GLIBC__) && __GLIBC_PREREQ(2, 35) && !defined(__clang__)
// glibc declares these only under -ffast-math, which would also reorder sums.
extern "C" {
[[gnu::simd("notinbranch"), gnu::const]] double exp(double) noexcept;
[[gnu::simd("notinbranch"), gnu::const]] double expm1(double) noexcept;
[[gnu::simd("notinbranch"), gnu::const]] double log1p(double) noexcept;
[[gnu::simd("notinbranch"), gnu::const]] double erfc(double) noexcept;
[[gnu::simd("notinbranch"), gnu::const]] double tanh(double) noexcept;
}
#endif

namespace proof {

struct Triple {
  double f, d, s;
};

namespace truth {

using ::erfc, ::exp, ::expm1, ::log1p, ::tanh;

inline Triple choose(bool first, Triple a, Triple b) {
  return {first ? a.f : b.f, first ? a.d : b.d, first ? a.s : b.s};
}
inline Triple constant(double c) { return {c, 0, 0}; }
inline Triple line(double x, double slope = 1, double offset = 0) { return {slope * x + offset, slope, 0}; }
inline Triple clip(double x, double low, double high) {
  return choose(x > low, choose(x < high, line(x), constant(high)), constant(low));
}
inline double below(double x, double limit) { return x < limit ? x : limit; }
inline double above(double x, double limit) { return x > limit ? x : limit; }

// No exponential goes beyond e^-300: for float that is 0, whatever it meets, and libmvec leaves its vectors near the ends of
// double's range. No constant: gcc would fold that side, and take the exponential of what lies beyond after all.
inline double furthest = 300, gelu_ends = 25;

// sigma(t) and sigma(-t), each with all its digits.
struct Logistic {
  double s, c;
};
inline Logistic logistic(double t) {
  const double w = exp(-below(std::fabs(t), furthest)), large = 1 / (1 + w), small = w / (1 + w);
  return t < 0 ? Logistic{small, large} : Logistic{large, small};
}
inline double sech2(double t) {
  const double e = exp(-below(2 * std::fabs(t), furthest));
  return 4 * e / ((1 + e) * (1 + e));
}
inline double softplus_of(double t) { return above(t, 0) + log1p(exp(-below(std::fabs(t), furthest))); }

// x sigma(t(x)): t' and t'' given. Beyond |t| = 300 all is saturated, and x t'^2 may overflow.
inline Triple times_logistic(double x, double t, double t1, double t2) {
  const auto [s, c] = logistic(t);
  const double q = s * c;
  Triple r{x * s, s + x * t1 * q, 2 * t1 * q + x * q * (t2 + t1 * t1 * (c - s))};
  return choose(t > 290, line(x), choose(t < -290, Triple{-0.0, -0.0, 0.0}, r));
}

inline Triple elu(double x, double alpha, double scale, double width) {
  const double t = below(x, 0) / width, held = above(t, -furthest), e = exp(held), m = expm1(held);
  return choose(x > 0, line(x, scale),
                {scale * alpha * m, scale * alpha / width * e, scale * alpha / (width * width) * e});
}

inline Triple softcap(double x, double cap) {
  const double t = tanh(x / cap), q = sech2(x / cap);
  return {cap * t, q, -2 * t * q / cap};
}

#define PROOF_TRUTH(name)                        \
  struct name {                                  \
    static Triple at(double x, const double* p); \
  };                                             \
  inline Triple name::at([[maybe_unused]] double x, [[maybe_unused]] const double* p)

PROOF_TRUTH(identity) { return line(x); }
PROOF_TRUTH(relu) { return choose(x > 0, line(x), constant(0)); }
PROOF_TRUTH(relu6) { return clip(x, 0, 6); }
PROOF_TRUTH(leaky_relu) { return choose(x > 0, line(x), line(x, p[0])); }
PROOF_TRUTH(elu_) { return elu(x, p[0], 1, 1); }
PROOF_TRUTH(celu) { return elu(x, p[0], 1, p[0]); }
PROOF_TRUTH(selu) { return elu(x, 1.6732632423543772848, 1.0507009873554804935, 1); }
PROOF_TRUTH(gelu) {
  // x^2 is exact in double for a float x. Beyond 25 the tail is below 1e-130: 0 for float, times any float.
  const double z = above(below(x, gelu_ends), -gelu_ends), cdf = erfc(-z * 0.70710678118654752440) / 2;
  const double pdf = exp(-z * z / 2) * 0.39894228040143267794;
  return {x * cdf, cdf + z * pdf, (2 - z * z) * pdf};
}
PROOF_TRUTH(gelu_tanh) {
  const double k = 1.59576912160573071176, z = above(below(x, 1e4), -1e4), y = z * z;
  return times_logistic(x, k * (z + 0.044715 * z * y), k * (1 + 3 * 0.044715 * y), k * 6 * 0.044715 * z);
}
PROOF_TRUTH(quick_gelu) { return times_logistic(x, 1.702 * x, 1.702, 0); }
PROOF_TRUTH(silu) { return times_logistic(x, x, 1, 0); }
PROOF_TRUTH(swish) { return times_logistic(x, p[0] * x, p[0], 0); }
PROOF_TRUTH(mish) {
  // With w = e^-|x|, tanh(softplus x) is w (2 + w) / (2 + 2 w + w^2) on the left, (1 + 2 w) / (1 + 2 w + 2 w^2) on the right.
  const double w = exp(-below(std::fabs(x), furthest)), l = w * (w + 2), r = 1 + 2 * w;
  const bool left = x < 0;
  const double den = left ? l + 2 : r + 2 * w * w, t = (left ? l : r) / den;
  const double root = (left ? 1 : w) / den, sech = 4 * (1 + w) * (1 + w) * root * root;
  const auto [s, c] = logistic(x);
  const double q = s * sech;
  return choose(x > 290, line(x),
                choose(x < -290, Triple{-0.0, -0.0, -0.0}, {x * t, t + x * q, q * (2 + x * (c - 2 * t * s))}));
}
PROOF_TRUTH(softplus) {
  const double t = p[0] * x;
  const auto [s, c] = logistic(t);
  return choose(t > p[1], line(x), {softplus_of(t) / p[0], s, p[0] * s * c});
}
PROOF_TRUTH(sigmoid) {
  const auto [s, c] = logistic(x);
  return {s, s * c, -s * c * tanh(x / 2)};  // 1 - 2 s, without its cancellation at 0
}
PROOF_TRUTH(logsigmoid) {
  const auto [s, c] = logistic(x);
  return {-softplus_of(-x), c, -s * c};
}
PROOF_TRUTH(tanh_) { return softcap(x, 1); }
PROOF_TRUTH(tanhshrink) {
  // Below 0.05 the series: its next term is 929569 / 638512875 x^15, 1e-19 of the first there. Above, x - tanh x loses at most 11
  // bits of 53.
  const double t = tanh(x), z = below(std::fabs(x), 0.06), y = z * z;
  const double near =
      x * y *
      (1. / 3 + y * (-2. / 15 + y * (17. / 315 + y * (-62. / 2835 + y * (1382. / 155925 + y * (-21844. / 6081075))))));
  return {std::fabs(x) < 0.05 ? near : x - t, t * t, 2 * t * sech2(x)};
}
PROOF_TRUTH(softsign) {
  const double r = 1 / (1 + std::fabs(x));
  return {x * r, r * r, (x > 0 ? -2 : x < 0 ? 2 : 0) * r * r * r};
}
PROOF_TRUTH(clip_) { return clip(x, p[0], p[1]); }
PROOF_TRUTH(hardsigmoid) { return choose(x > -3, choose(x < 3, {(x + 3) / 6, 1. / 6, 0}, constant(1)), constant(0)); }
PROOF_TRUTH(hardswish) {
  return choose(x > -3, choose(x < 3, {x * (x + 3) / 6, (2 * x + 3) / 6, 1. / 3}, line(x)), constant(0));
}
PROOF_TRUTH(hardshrink) { return choose(std::fabs(x) > p[0], line(x), constant(0)); }
PROOF_TRUTH(softshrink) {
  return choose(x > p[0], line(x, 1, -p[0]), choose(x < -p[0], line(x, 1, p[0]), constant(0)));
}
PROOF_TRUTH(threshold) { return choose(x > p[0], line(x), constant(p[1])); }
PROOF_TRUTH(fatrelu) { return choose(x > p[0], line(x), constant(0)); }
PROOF_TRUTH(squared_relu) { return choose(x > 0, {x * x, 2 * x, 2}, constant(0)); }
PROOF_TRUTH(hard_mish) { return choose(x > -2, choose(x < 0, {x * (x + 2) / 2, x + 1, 1}, line(x)), constant(0)); }
PROOF_TRUTH(softcap_) { return softcap(x, p[0]); }
PROOF_TRUTH(situ) {
  const double b = p[0], t = tanh(x / b), q = sech2(x / b);
  const auto [s, c] = logistic(x);
  return {b * t * s, q * s + b * t * s * c, s * (-2 * t * q / b + 2 * q * c + b * t * c * (c - s))};
}
PROOF_TRUTH(elup1) {
  const double e = exp(above(below(x, 0), -furthest));
  return choose(x > 0, line(x, 1, 1), {e, e, e});
}
PROOF_TRUTH(square) { return {x * x, 2 * x, 2}; }
PROOF_TRUTH(signed_sqrt) {
  const double r = std::sqrt(std::fabs(x)), sign = x > 0 ? 1 : -1;
  return {sign * r, 0.5 / r, -0.25 * sign / (r * std::fabs(x))};
}
// Scalar libm: libmvec's sine is for moderate arguments.
PROOF_TRUTH(cos_) {
  const double s = std::sin(x), c = std::cos(x);
  return {c, -s, -c};
}
PROOF_TRUTH(sin_) {
  const double s = std::sin(x), c = std::cos(x);
  return {s, c, -s};
}
#undef PROOF_TRUTH

}  // namespace truth

template <class T>
void fill(const double* x, int count, const double* p, double* f, double* d, double* s) {
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const Triple t = T::at(x[i], p);
    f[i] = t.f;
    d[i] = t.d;
    s[i] = t.s;
  }
}

}  // namespace proof
