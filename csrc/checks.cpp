// Why a call is refused: what the operators ask of their arguments, in the words that a user reads.
//
// Got, expected, how to fix; all reasons at once. Works on symbolic shapes. Knows neither memory nor kernels.
#include "checks.h"

#include <algorithm>
#include <limits>
#include <sstream>

namespace fusedact {

namespace {

// How many letters to insert, drop, replace or swap with their neighbour.
int edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<int>> d(a.size() + 1, std::vector<int>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = static_cast<int>(i);
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j - 1] + (a[i - 1] != b[j - 1]), d[i - 1][j] + 1, d[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

[[noreturn]] void raise_unknown(std::string_view name) {
  std::vector<std::pair<int, std::string_view>> near;
  for (const Activation& known : activations()) {
    int distance = edit_distance(name, known.name);
    bool contains = name.size() > 2 && known.name.find(name) != std::string_view::npos;
    if (distance <= std::max<int>(1, static_cast<int>(name.size()) / 3) || contains)
      near.emplace_back(distance, known.name);
  }
  std::sort(near.begin(), near.end());
  std::ostringstream message;
  message << "fusedact: there is no activation '" << name << "'";
  for (size_t i = 0; i < std::min<size_t>(near.size(), 3); ++i)
    message << (i == 0 ? "; did you mean " : " or ") << "'" << near[i].second << "'";
  message << (near.empty() ? "; " : "? ") << "fusedact.activations() lists all " << activations().size();
  TORCH_CHECK_VALUE(false, message.str());
}

}  // namespace

const Activation& activation_named(std::string_view name) {
  const Activation* activation = find_activation(name);
  if (activation == nullptr) [[unlikely]]
    raise_unknown(name);
  return *activation;
}

namespace {

// One element for all, one per channel, or one per element of x (a noise, given in the compute dtype).
Extent check_weight(Reasons& reasons, const Tensor& weight, const Tensor& x, int64_t dim) {
  if (weight.sym_numel() == 1 && weight.dim() <= 1) {
    check_vector(reasons, "weight", weight, x);
    return Extent::one;
  }
  if (weight.dim() == 1 && x.dim() > 0 && weight.sym_size(0) == x.sym_size(dim)) {
    check_vector(reasons, "weight", weight, x);
    return Extent::channel;
  }
  if (weight.sym_sizes() != x.sym_sizes()) {
    reasons.add("weight has shape ", weight.sym_sizes(),
                ", but it must have 1 element, one for each channel, or x's shape; ", channels_of(x, dim));
    return Extent::full;
  }
  if (weight.scalar_type() != compute_dtype(x.scalar_type()))
    reasons.add_dtype("weight is ", name_of(weight.scalar_type()), " and has one element for each of x, which is ",
                      name_of(x.scalar_type()), ": it must be ", name_of(compute_dtype(x.scalar_type())));
  if (weight.device() != x.device())
    reasons.add("weight is on ", weight.device(), ", but x is on ", x.device(), ": move one with .to()");
  return Extent::full;
}

// What backward will read. "auto" takes the output where that is possible: the next layer keeps it alive anyway.
Saved check_save(Reasons& reasons, const Activation& activation, bool weight, const Call& call) {
  bool scaled = call.gain != 1.0 || call.clamped();
  bool enough = call.params.size() == static_cast<size_t>(activation.params);
  bool output = activation.output && !weight && !scaled && enough && activation.invertible(call.params.data());
  if (call.save == "auto") return output ? Saved::output : Saved::input;
  if (call.save == "input") return Saved::input;
  if (call.save == "output") {
    if (!activation.output)
      reasons.add("save='output': the derivative does not follow from the output; use save='input'");
    else if (weight)
      reasons.add("save='output': not with a tensor parameter, whose gradient needs the input; use save='input'");
    else if (scaled)
      reasons.add("save='output': not with gain or clamp (gain ", call.gain, "); use save='input'");
    else if (!output && enough)
      reasons.add("save='output': not invertible with the parameters ", call.params, "; use save='input'");
    return Saved::output;
  }
  if (call.save == "mask") {
    if (!activation.masked)
      reasons.add("save='mask': not piecewise linear with two slopes; use save='input' or 'auto'");
    else if (call.clamped())
      reasons.add("save='mask': not with clamp, which adds a third slope; use save='input'");
    return Saved::mask;
  }
  reasons.add("save is '", call.save, "', but it must be 'auto', 'input', 'output' or 'mask'");
  return Saved::input;
}

}  // namespace

Plan check(Reasons& reasons, const Tensor& x, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  const Activation* activation = &activation_named(call.activation);
  check_input(reasons, x);
  if (call.params.size() != static_cast<size_t>(activation->params))
    reasons.add("got ", call.params.size(), " parameters, but it has ", activation->params);
  double low = call.clamp_min.value_or(-std::numeric_limits<double>::infinity());
  double high = call.clamp_max.value_or(std::numeric_limits<double>::infinity());
  if (!(low <= high)) reasons.add("clamp is [", low, ", ", high, "], but its minimum must not exceed its maximum");

  int64_t dim = check_dim(reasons, x, call.dim);
  Extent extent = Extent::none;
  if (dim >= 0) {
    if (bias) check_channels(reasons, "bias", *bias, x, dim);
    if (weight && !activation->weight) reasons.add("got a weight, but none of its parameters may be a tensor");
    if (weight && activation->weight) extent = check_weight(reasons, *weight, x, dim);
  }
  Saved save = check_save(reasons, *activation, weight.has_value(), call);
  return {*activation, dim, save, extent, bias.has_value() || extent == Extent::channel};
}

Plan check(const Tensor& x, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  Reasons reasons;
  Plan plan = check(reasons, x, bias, weight, call);
  reasons.raise_if_any(call.activation);
  return plan;
}

void check_out(const Tensor& input, const Call& call, const Tensor& out) {
  Reasons reasons;
  if (out.scalar_type() != input.scalar_type())
    reasons.add_dtype("out is ", name_of(out.scalar_type()), ", but the result is ", name_of(input.scalar_type()));
  if (out.device() != input.device()) reasons.add("out is on ", out.device(), ", but x is on ", input.device());
  reasons.raise_if_any(call.activation);
}

c10::SymInt mask_bytes(const c10::SymInt& numel) { return (numel + 7) / 8; }

Plan check_backward(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                    const Call& call, bool grad_bias, bool grad_weight) {
  Plan plan = check(grad, bias, weight, call);
  Reasons reasons;
  if (call.save == "auto") reasons.add("save is 'auto', but backward must be told what it gets");
  if (plan.save == Saved::mask) {
    if (saved.scalar_type() != at::kByte || saved.dim() != 1 || saved.sym_numel() != mask_bytes(grad.sym_numel()))
      reasons.add("the mask is ", name_of(saved.scalar_type()), " of shape ", saved.sym_sizes(),
                  ", but it must be uint8 of shape [", mask_bytes(grad.sym_numel()), "] for ", grad.sym_numel(),
                  " elements");
  } else {
    if (saved.scalar_type() != grad.scalar_type())
      reasons.add_dtype("grad is ", name_of(grad.scalar_type()), ", but the saved tensor is ",
                        name_of(saved.scalar_type()));
    if (saved.sym_sizes() != grad.sym_sizes())
      reasons.add("grad has shape ", grad.sym_sizes(), ", but the saved tensor has ", saved.sym_sizes());
  }
  if (saved.device() != grad.device())
    reasons.add("grad is on ", grad.device(), ", but the saved tensor is on ", saved.device());
  if (grad_bias && !bias) reasons.add("a gradient for the bias is asked for, but there is no bias");
  if (grad_weight && !weight) reasons.add("a gradient for the weight is asked for, but there is no weight");
  if (grad_weight && plan.weight == Extent::full)
    reasons.add("weight has one element for each of x (a noise): it has no gradient");
  if (grad_weight && plan.save != Saved::input)
    reasons.add("save='", call.save, "': the gradient of the weight needs the input; use save='input'");
  reasons.raise_if_any(call.activation);
  return plan;
}

Plan check_double_backward(const Tensor& u, const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                           const Call& call, bool grad_bias) {
  Plan plan = check_backward(grad, saved, bias, {}, call, grad_bias, false);
  Reasons reasons;
  if (plan.save == Saved::mask) reasons.add("save='mask': a piecewise linear function has no second derivative");
  if (u.scalar_type() != grad.scalar_type())
    reasons.add_dtype("u is ", name_of(u.scalar_type()), ", but grad is ", name_of(grad.scalar_type()));
  if (u.sym_sizes() != grad.sym_sizes())
    reasons.add("u has shape ", u.sym_sizes(), ", but grad has ", grad.sym_sizes());
  reasons.raise_if_any(call.activation);
  return plan;
}

}  // namespace fusedact
