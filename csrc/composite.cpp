// See composite.h: the value type, the table from an activation to its formulas, and the compositions.
#include "composite.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>

#include <array>

#include "activations.h"

namespace fusedact {
namespace {

// ---- the value type -------------------------------------------------------------------------------------------------

// A tensor, or a number that has not met one yet.
struct Composite {
  using scalar = double;

  Tensor tensor;  // undefined: a number
  double number = 0;

  explicit Composite(double value) : number(value) {}
  explicit Composite(Tensor value) : tensor(std::move(value)) {}
  bool is_number() const { return !tensor.defined(); }
};

struct Mask {
  Tensor bits;
  at::TensorOptions options;  // of the tensors that were compared
};

#define FUSEDACT_OPERATOR(op)                                                   \
  Composite operator op(const Composite& a, const Composite& b) {               \
    if (a.is_number() && b.is_number()) return Composite(a.number op b.number); \
    if (a.is_number()) return Composite(at::Scalar(a.number) op b.tensor);      \
    if (b.is_number()) return Composite(a.tensor op at::Scalar(b.number));      \
    return Composite(a.tensor op b.tensor);                                     \
  }
FUSEDACT_OPERATOR(+)
FUSEDACT_OPERATOR(-)
FUSEDACT_OPERATOR(*)
FUSEDACT_OPERATOR(/)
#undef FUSEDACT_OPERATOR

[[maybe_unused]] Composite operator-(const Composite& a) {
  return a.is_number() ? Composite(-a.number) : Composite(-a.tensor);
}

// The activations compare their argument, on the left, with a constant or with itself.
#define FUSEDACT_COMPARISON(op, method)                                                                 \
  [[maybe_unused]] Mask operator op(const Composite& a, const Composite& b) {                           \
    return {b.is_number() ? a.tensor.method(b.number) : a.tensor.method(b.tensor), a.tensor.options()}; \
  }
FUSEDACT_COMPARISON(<, lt)
FUSEDACT_COMPARISON(<=, le)
FUSEDACT_COMPARISON(>, gt)
FUSEDACT_COMPARISON(>=, ge)
FUSEDACT_COMPARISON(==, eq)
FUSEDACT_COMPARISON(!=, ne)
#undef FUSEDACT_COMPARISON

Mask operator&(const Mask& a, const Mask& b) { return {a.bits.logical_and(b.bits), a.options}; }
[[maybe_unused]] Mask operator|(const Mask& a, const Mask& b) { return {a.bits.logical_or(b.bits), a.options}; }

// The branch not taken gets a zero gradient, and zero times an infinite slope is NaN: formulas bound their argument.
Composite select(const Mask& mask, const Composite& a, const Composite& b) {
  auto tensor = [&](const Composite& x) {
    return x.is_number() ? at::scalar_tensor(x.number, mask.options) : x.tensor;
  };
  return Composite(at::where(mask.bits, tensor(a), tensor(b)));
}

#define FUSEDACT_FUNCTION(name, expression) \
  Composite name(const Composite& x) { return Composite(expression); }
FUSEDACT_FUNCTION(abs, x.tensor.abs())
FUSEDACT_FUNCTION(sqrt, x.tensor.sqrt())
FUSEDACT_FUNCTION(sin, x.tensor.sin())
FUSEDACT_FUNCTION(cos, x.tensor.cos())
FUSEDACT_FUNCTION(tanh, x.tensor.tanh())
FUSEDACT_FUNCTION(sigmoid, x.tensor.sigmoid())
FUSEDACT_FUNCTION(exp_negative, x.tensor.exp())
#undef FUSEDACT_FUNCTION

Composite fma(const Composite& a, const Composite& b, const Composite& c) { return a * b + c; }
Composite fma_exact(const Composite& a, const Composite& b, const Composite& c) { return a * b + c; }
Composite at_least(const Composite& x, const Composite& low) { return select(x < low, low, x); }
Composite at_most(const Composite& x, const Composite& high) { return select(x > high, high, x); }

// What math.h computes as an unevaluated sum has no second half here.
Two<Composite> two_scaled(const Two<Composite>& c, const Composite& x) { return {c.hi * x, Composite(0)}; }
[[maybe_unused]] Composite softplus(const Two<Composite>& t) {
  return Composite(at::log_sigmoid(t.hi.tensor.neg()).neg());
}
Composite sech_squared(const Composite& x) {
  Composite t = x * Composite(2);  // smooth at 0, and exact in the tails
  return Composite(4) * sigmoid(t) * sigmoid(Composite(0) - t);
}
Composite times_exp(const Two<Composite>& c, const Composite& x, const Composite&) { return c.hi * exp_negative(x); }
Composite times_sigmoid_slope(const Composite& w, const Composite& t) {
  return w * sigmoid(t) * sigmoid(Composite(0) - t);
}
Composite times_sigmoid_slope(const Composite& w, const Composite& t, const Composite&) {
  return times_sigmoid_slope(w, t);
}
Composite sigmoid_second(const Composite& t) {
  Composite s = sigmoid(t), r = sigmoid(Composite(0) - t);
  return s * r * (r - s);
}
Composite times_sigmoid_second(const Two<Composite>& t, const Two<Composite>& w, const Composite& slope,
                               const Composite& bend) {
  Composite s = sigmoid(t.hi), r = sigmoid(Composite(0) - t.hi);
  return s * r * (slope * (Composite(2) + w.hi * (r - s)) + bend);
}
// With s = sigma(x), r = sigma(-x): tanh(softplus x) = s (1 + r) / (1 + r^2), and 1 minus its square 4 r^2 / (1 + r^2)^2.
Composite mish_second(const Composite& x) {
  Composite s = sigmoid(x), r = sigmoid(Composite(0) - x), d = Composite(1) / (r * r + Composite(1));
  Composite t = s * (Composite(1) + r) * d;
  return Composite(4) * s * r * r * d * d * (Composite(2) + x * (r - Composite(2) * s * t));
}
Composite times_normal_pdf(const Composite& w, const Composite& x) {
  return w * exp_negative(x * x * Composite(-0.5)) * Composite(0.3989422804014327);
}
Composite times_sigmoid_derivative(const Composite&, const Two<Composite>& t, const Composite& a, const Composite& b) {
  Composite s = sigmoid(t.hi);
  return s + (t.hi + a * b) * s * sigmoid(Composite(0) - t.hi);
}

// ---- from an activation to its formulas -----------------------------------------------------------------------------

struct Formulas {
  Composite (*second)(const double* params, const Composite& x);
  Composite (*second_from_output)(const double* params, const Composite& y);
  Composite (*gradient)(const double* params, const Composite& weight, const Composite& g, const Composite& x);
  Composite (*weight_derivative)(const double* params, const Composite& weight, const Composite& x);
};

template <template <class> class Activation>
Formulas formulas_of() {
  using A = Activation<Composite>;
  Formulas formulas{};
  formulas.second = [](const double* params, const Composite& x) { return A(params).second(x); };
  if constexpr (requires(A a, Composite y) { a.second_from_output(y); })
    formulas.second_from_output = [](const double* params, const Composite& y) {
      return A(params).second_from_output(y);
    };
  if constexpr (std::is_constructible_v<A, const double*, Composite>) {
    formulas.gradient = [](const double* params, const Composite& weight, const Composite& g, const Composite& x) {
      A activation(params, weight);
      if constexpr (requires { activation.gradient(g, x); })
        return activation.gradient(g, x);
      else
        return g * activation.derivative(x);
    };
    formulas.weight_derivative = [](const double* params, const Composite& weight, const Composite& x) {
      return A(params, weight).weight_derivative(x);
    };
  }
  return formulas;
}

template <template <class> class... Activations>
const Formulas& look_up(int index, TypeList<Activations...>) {
  static const std::array<Formulas, sizeof...(Activations)> table{formulas_of<Activations>()...};
  return table[index];
}

const Formulas& formulas_of(const Activation& activation) { return look_up(activation.index, AllActivations{}); }

// ---- the compositions -----------------------------------------------------------------------------------------------

Tensor to_compute(const Tensor& x) { return x.to(compute_dtype(x.scalar_type())); }

int64_t wrapped(int64_t dim, int64_t rank) { return dim < 0 ? dim + std::max<int64_t>(rank, 1) : dim; }

// The weight, broadcast against v: one element, one per channel, or one per element of v.
Tensor broadcast_weight(const Tensor& weight, const Tensor& v, int64_t dim) {
  Tensor w = weight.to(v.scalar_type());
  if (w.dim() > 1) return w;
  return w.sym_numel() == 1 ? w.reshape({}) : composite::along(w, dim, v.dim());
}

// d output / d act(v) times grad: the gain, and nothing where the clamp holds. The clamp's range is torch.clamp's.
Tensor through_gain_and_clamp(const Tensor& grad, const Tensor& v, const OptTensor& weight, const Call& call) {
  Tensor scaled = call.gain == 1.0 ? grad : grad * call.gain;
  if (!call.clamped()) return scaled;
  Call unclamped = call;
  unclamped.clamp_min = unclamped.clamp_max = std::nullopt;
  unclamped.save = "input";
  OptTensor fixed = weight ? OptTensor(weight->detach().to(v.scalar_type())) : weight;
  Tensor y = bias_act(v.detach(), {}, fixed, unclamped);
  Tensor inside = y == y;
  if (call.clamp_min) inside = inside.logical_and(y >= *call.clamp_min);
  if (call.clamp_max) inside = inside.logical_and(y <= *call.clamp_max);
  return at::where(inside, scaled, at::scalar_tensor(0, scaled.options()));
}

Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

}  // namespace

namespace composite {

Tensor along(const Tensor& vector, int64_t dim, int64_t rank) {
  if (rank == 0) return vector.reshape({});
  std::vector<int64_t> sizes(rank - dim, 1);
  sizes[0] = -1;
  return vector.view(sizes);
}

Tensor sum_along(const Tensor& x, int64_t dim) {
  if (x.dim() == 0) return x.reshape({1});
  if (x.dim() == 1) return x;
  c10::SmallVector<int64_t, 5> others;
  for (int64_t d = 0; d < x.dim(); ++d)
    if (d != dim) others.push_back(d);
  return x.sum(others);
}

Tensor preactivation(const Tensor& input, const OptTensor& bias, int64_t dim) {
  Tensor x = to_compute(input);
  return bias ? x + along(bias->to(x.scalar_type()), dim, x.dim()) : x;
}

Gradients backward(const Tensor& grad, const Tensor& input, const OptTensor& bias, const OptTensor& weight,
                   const Call& call, bool grad_bias, bool grad_weight) {
  const Formulas& formulas = formulas_of(*find_activation(call.activation));
  int64_t dim = wrapped(call.dim, input.dim());
  Tensor v = preactivation(input, bias, dim);
  Composite w(broadcast_weight(*weight, v, dim)), x(v);
  Tensor g = through_gain_and_clamp(to_compute(grad), v, weight, call);

  Tensor grad_x = formulas.gradient(call.params.data(), w, Composite(g), x).tensor;
  Tensor bias_sum = grad_bias ? sum_along(grad_x, dim).to(bias->scalar_type()) : nothing(grad);
  Tensor weight_sum = nothing(grad);
  if (grad_weight) {
    Tensor each = g * formulas.weight_derivative(call.params.data(), w, x).tensor;
    Tensor sum = weight->sym_numel() == 1 ? each.sum() : sum_along(each, dim);
    weight_sum = sum.reshape_symint(weight->sym_sizes()).to(weight->scalar_type());
  }
  return {grad_x.to(grad.scalar_type()), bias_sum, weight_sum};
}

DoubleGradients double_backward(const Tensor& u, const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                const Call& call, bool grad_bias) {
  const Formulas& formulas = formulas_of(*find_activation(call.activation));
  int64_t dim = wrapped(call.dim, saved.dim());
  bool output = call.save == "output";
  Tensor grad_grad = std::get<0>(bias_act_backward(u, saved, bias, {}, call, false, false));

  Tensor v = preactivation(saved, output ? OptTensor() : bias, dim);
  Composite bend = (output ? formulas.second_from_output : formulas.second)(call.params.data(), Composite(v));
  Tensor grad_saved = through_gain_and_clamp(to_compute(u) * to_compute(grad), v, {}, call) * bend.tensor;
  Tensor bias_sum = grad_bias ? sum_along(grad_saved, dim).to(bias->scalar_type()) : nothing(grad);
  return {grad_grad, grad_saved.to(saved.scalar_type()), bias_sum};
}

Tensor weight_tangent(const Tensor& tangent, const Tensor& input, const OptTensor& bias, const Tensor& weight,
                      const Call& call) {
  const Formulas& formulas = formulas_of(*find_activation(call.activation));
  int64_t dim = wrapped(call.dim, input.dim());
  Tensor v = preactivation(input, bias, dim);
  Composite w(broadcast_weight(weight, v, dim)), x(v);
  Tensor each = formulas.weight_derivative(call.params.data(), w, x).tensor * broadcast_weight(tangent, v, dim);
  return through_gain_and_clamp(each, v, weight, call).to(input.scalar_type());
}

}  // namespace composite
}  // namespace fusedact
