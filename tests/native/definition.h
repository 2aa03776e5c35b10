// The definitions, as papers and torch.nn print them, in 1280 bits of MPFR with their derivatives by the chain rule: the
// judge of truth.h and of float64 results. Slow, and indifferent to cancellation: 1 - tanh^2 keeps 200 bits where double's last
// subnormal lies. Where an exponential overflows even here (|x| beyond 10^18) a derivative may be NaN: no judgement.
#pragma once

#include <mpfr.h>

#include <cmath>
#include <utility>
#include <vector>

namespace proof {

inline thread_local mpfr_prec_t precision = 1280;

class Real {
 public:
  Real(double x = 0) {
    mpfr_init2(v, precision);
    mpfr_set_d(v, x, MPFR_RNDN);
  }
  explicit Real(const char* decimal) {
    mpfr_init2(v, precision);
    mpfr_set_str(v, decimal, 10, MPFR_RNDN);
  }
  Real(const Real& o) {
    mpfr_init2(v, precision);
    mpfr_set(v, o.v, MPFR_RNDN);
  }
  Real(Real&& o) noexcept {
    mpfr_init2(v, precision);
    mpfr_swap(v, o.v);
  }
  Real& operator=(Real o) noexcept {
    mpfr_swap(v, o.v);
    return *this;
  }
  ~Real() { mpfr_clear(v); }

  double to_double() const { return mpfr_get_d(v, MPFR_RNDN); }
  bool finite() const { return mpfr_number_p(v); }

  mpfr_t v;
};

#define PROOF_BINARY(op, call)                            \
  inline Real operator op(const Real& a, const Real& b) { \
    Real r;                                               \
    call(r.v, a.v, b.v, MPFR_RNDN);                       \
    return r;                                             \
  }
PROOF_BINARY(+, mpfr_add)
PROOF_BINARY(-, mpfr_sub)
PROOF_BINARY(*, mpfr_mul)
PROOF_BINARY(/, mpfr_div)
#undef PROOF_BINARY
#define PROOF_UNARY(name)             \
  inline Real name(const Real& a) {   \
    Real r;                           \
    mpfr_##name(r.v, a.v, MPFR_RNDN); \
    return r;                         \
  }
PROOF_UNARY(exp)
PROOF_UNARY(expm1)
PROOF_UNARY(log1p)
PROOF_UNARY(tanh)
PROOF_UNARY(erfc)
PROOF_UNARY(sqrt)
PROOF_UNARY(sin)
PROOF_UNARY(cos)
PROOF_UNARY(abs)
PROOF_UNARY(neg)
#undef PROOF_UNARY
inline Real operator-(const Real& a) { return neg(a); }
inline Real pi() {
  Real r;
  mpfr_const_pi(r.v, MPFR_RNDN);
  return r;
}

// A function's value, slope and bend at one point.
struct Jet {
  Real f, d, s;
};
inline Jet constant(Real c) { return {std::move(c), 0, 0}; }
inline Jet variable(double x) { return {x, 1, 0}; }
inline Jet operator+(const Jet& a, const Jet& b) { return {a.f + b.f, a.d + b.d, a.s + b.s}; }
inline Jet operator-(const Jet& a, const Jet& b) { return {a.f - b.f, a.d - b.d, a.s - b.s}; }
inline Jet operator-(const Jet& a) { return {-a.f, -a.d, -a.s}; }
inline Jet operator*(const Jet& a, const Jet& b) {
  return {a.f * b.f, a.d * b.f + a.f * b.d, a.s * b.f + 2 * (a.d * b.d) + a.f * b.s};
}
inline Jet operator*(const Real& a, const Jet& b) { return {a * b.f, a * b.d, a * b.s}; }
// g(u), of which the value and two derivatives at u are given.
inline Jet chain(Real g, const Real& g1, const Real& g2, const Jet& u) {
  return {std::move(g), g1 * u.d, g2 * u.d * u.d + g1 * u.s};
}
inline Jet inverse(const Jet& u) {
  Real r = 1 / u.f;
  return chain(r, -(r * r), 2 * (r * r * r), u);
}
inline Jet operator/(const Jet& a, const Jet& b) { return a * inverse(b); }
inline Jet exp(const Jet& u) {
  Real e = exp(u.f);
  return chain(e, e, e, u);
}
inline Jet expm1(const Jet& u) {
  Real e = exp(u.f);
  return chain(expm1(u.f), e, e, u);
}
inline Jet log1p(const Jet& u) {
  Real r = 1 / (1 + u.f);
  return chain(log1p(u.f), r, -(r * r), u);
}
inline Jet tanh(const Jet& u) {
  Real t = tanh(u.f), q = 1 - t * t;
  return chain(t, q, -2 * (t * q), u);
}
inline Jet erfc(const Jet& u) {
  Real slope = -2 * exp(-(u.f * u.f)) / sqrt(pi());
  return chain(erfc(u.f), slope, -2 * (u.f * slope), u);
}
inline Jet sqrt(const Jet& u) {
  Real r = sqrt(u.f);
  return chain(r, Real(0.5) / r, Real(-0.25) / (r * u.f), u);
}
inline Jet sin(const Jet& u) { return chain(sin(u.f), cos(u.f), -sin(u.f), u); }
inline Jet cos(const Jet& u) { return chain(cos(u.f), -sin(u.f), -cos(u.f), u); }

namespace definition {

inline const Jet one = constant(1);
inline Jet line(double x, Real slope = 1, Real offset = 0) { return slope * variable(x) + constant(offset); }
inline Jet zero() { return constant(0); }
inline Jet clip(double x, double low, double high) {
  return x <= low ? constant(low) : x >= high ? constant(high) : variable(x);
}

inline Jet identity(double x, const double*) { return variable(x); }
inline Jet relu(double x, const double*) { return x > 0 ? variable(x) : zero(); }
inline Jet relu6(double x, const double*) { return clip(x, 0, 6); }
inline Jet leaky_relu(double x, const double* p) { return x > 0 ? variable(x) : line(x, p[0]); }
inline Jet elu(double x, const double* p) { return x > 0 ? variable(x) : Real(p[0]) * expm1(variable(x)); }
inline Jet celu(double x, const double* p) {
  return x > 0 ? variable(x) : Real(p[0]) * expm1(variable(x) / constant(p[0]));
}
inline Jet selu(double x, const double*) {
  const Real scale("1.0507009873554804934193349852946"), alpha("1.6732632423543772848170429916717");
  return scale * (x > 0 ? variable(x) : alpha * expm1(variable(x)));
}
inline Jet gelu(double x, const double*) {
  if (std::fabs(x) > 45) return x > 0 ? variable(x) : zero();  // to 2^-1400, and mpfr_erfc takes seconds there
  return Real(0.5) * variable(x) * erfc(-variable(x) * inverse(constant(sqrt(Real(2)))));
}
inline Jet times_logistic(double x, const Jet& t) { return variable(x) / (one + exp(-t)); }
inline Jet gelu_tanh(double x, const double*) {
  const Jet v = variable(x);
  return times_logistic(x, 2 * sqrt(2 / pi()) * (v + Real(0.044715) /* the double, as PyTorch has it */ * (v * v * v)));
}
inline Jet quick_gelu(double x, const double*) { return times_logistic(x, Real("1.702") * variable(x)); }
inline Jet silu(double x, const double*) { return times_logistic(x, variable(x)); }
inline Jet swish(double x, const double* p) { return times_logistic(x, Real(p[0]) * variable(x)); }
inline Jet mish(double x, const double*) { return variable(x) * tanh(log1p(exp(variable(x)))); }
inline Jet softplus(double x, const double* p) {
  return p[0] * x > p[1] ? variable(x) : log1p(exp(Real(p[0]) * variable(x))) / constant(p[0]);
}
inline Jet sigmoid(double x, const double*) { return inverse(one + exp(-variable(x))); }
inline Jet logsigmoid(double x, const double*) {
  if (x < -1e6) return variable(x);  // to 2^-1400000; at -2e18 the square of exp(x) is lost
  return -log1p(exp(-variable(x)));
}
inline Jet tanh_(double x, const double*) { return tanh(variable(x)); }
inline Jet tanhshrink(double x, const double*) { return variable(x) - tanh(variable(x)); }
inline Jet softsign(double x, const double*) {
  if (x == 0) return {0, 1, 0};  // its bend jumps there: by convention 0
  return variable(x) / (one + (x < 0 ? -variable(x) : variable(x)));
}
inline Jet clip_(double x, const double* p) { return clip(x, p[0], p[1]); }
inline Jet hardsigmoid(double x, const double*) {
  return x <= -3 ? zero() : x >= 3 ? constant(1) : (variable(x) + constant(3)) / constant(6);
}
inline Jet hardswish(double x, const double* p) { return variable(x) * hardsigmoid(x, p); }
inline Jet hardshrink(double x, const double* p) { return x > p[0] || x < -p[0] ? variable(x) : zero(); }
inline Jet softshrink(double x, const double* p) {
  return x > p[0] ? line(x, 1, -p[0]) : x < -p[0] ? line(x, 1, p[0]) : zero();
}
inline Jet threshold(double x, const double* p) { return x > p[0] ? variable(x) : constant(p[1]); }
inline Jet fatrelu(double x, const double* p) { return x > p[0] ? variable(x) : zero(); }
inline Jet squared_relu(double x, const double*) { return x > 0 ? variable(x) * variable(x) : zero(); }
inline Jet hard_mish(double x, const double*) {
  return x > 0 ? variable(x) : x < -2 ? zero() : Real(0.5) * (variable(x) * (variable(x) + constant(2)));
}
inline Jet softcap(double x, const double* p) { return Real(p[0]) * tanh(variable(x) / constant(p[0])); }
inline Jet situ(double x, const double* p) { return softcap(x, p) * sigmoid(x, p); }
inline Jet elup1(double x, const double*) { return x > 0 ? variable(x) + one : exp(variable(x)); }
inline Jet square(double x, const double*) { return variable(x) * variable(x); }
inline Jet signed_sqrt(double x, const double*) { return x > 0 ? sqrt(variable(x)) : -sqrt(-variable(x)); }
inline Jet cos_(double x, const double*) { return cos(variable(x)); }
inline Jet sin_(double x, const double*) { return sin(variable(x)); }

}  // namespace definition

// ---- by name, with what the accuracy contract allows ------------------------------------------------------------------

struct Limits {
  double ulp[3];     // of value, first and second derivative
  double near_root;  // absolute, for derivatives within 0.1 of one of their roots that miss their ulp
};
// A row that misses the contract states its own, as registry.py does; a test compares.
inline constexpr Limits contract32{{2, 4, 4}, 2e-7}, contract64{{4, 4, 4}, 2e-15}, contract16{{0.51, 0.51, 0.51}, 2e-7};

struct Definition {
  const char* name;
  Jet (*jet)(double x, const double* p);
  Limits float32 = contract32, float64 = contract64;
  mpfr_prec_t precision = 1280;
};

inline const std::vector<Definition> definitions = {
    {"identity", definition::identity},
    {"relu", definition::relu},
    {"relu6", definition::relu6},
    {"leaky_relu", definition::leaky_relu},
    {"prelu", definition::leaky_relu},
    {"rrelu", definition::leaky_relu},
    {"elu", definition::elu},
    {"celu", definition::celu},
    {"selu", definition::selu},
    {"gelu", definition::gelu, contract32, Limits{{4, 4, 16}, 2e-15}, 256},
    {"gelu_tanh", definition::gelu_tanh, contract32, Limits{{4, 4, 16}, 2e-15}},
    {"quick_gelu", definition::quick_gelu, contract32, Limits{{4, 4, 10}, 2e-15}},
    {"silu", definition::silu, contract32, Limits{{4, 4, 8}, 2e-15}},
    {"swish", definition::swish, contract32, Limits{{4, 4, 8}, 2e-15}},
    {"mish", definition::mish, contract32, Limits{{4, 4, 16}, 2e-15}},
    {"softplus", definition::softplus},
    {"sigmoid", definition::sigmoid},
    {"logsigmoid", definition::logsigmoid},
    {"tanh", definition::tanh_},
    {"tanhshrink", definition::tanhshrink},
    {"softsign", definition::softsign},
    {"hardtanh", definition::clip_},
    {"clamp", definition::clip_},
    {"hardsigmoid", definition::hardsigmoid},
    {"hardswish", definition::hardswish},
    {"hardshrink", definition::hardshrink},
    {"softshrink", definition::softshrink},
    {"threshold", definition::threshold},
    {"fatrelu", definition::fatrelu},
    {"squared_relu", definition::squared_relu},
    {"hard_mish", definition::hard_mish},
    {"softcap", definition::softcap},
    {"situ", definition::situ, contract32, Limits{{4, 12, 16}, 2e-15}},
    {"elup1", definition::elup1},
    {"square", definition::square},
    {"signed_sqrt", definition::signed_sqrt},
    {"cos", definition::cos_},
    {"sin", definition::sin_},
};

}  // namespace proof
