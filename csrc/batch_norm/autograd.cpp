// Derivatives of batch_norm_act, and its other dispatch keys: a Node for the first derivative, composition of
// differentiable operators for all others, for forward mode and for vmap. No kernels and no loops.
#include <ATen/ops/empty.h>
#include <ATen/ops/var_mean.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "../composite.h"
#include "../forward_mode.h"
#include "../nodes.h"
#include "ops.h"

namespace fusedact::batch_norm {
namespace {

namespace autograd = torch::autograd;
using autograd::SavedVariable;
using autograd::variable_list;

// ---- the compositions -----------------------------------------------------------------------------------------------

OptTensor to(const OptTensor& x, at::ScalarType dtype) { return x ? OptTensor(x->to(dtype)) : x; }

// What the normalisation makes of x, in the compute dtype; the statistics are functions of x here.
struct Parts {
  Tensor x, mean, var, invstd, normal, v;
  Tensor weight;  // broadcasts

  Parts(const Tensor& input, const Affine& affine, double eps) : x(input.to(compute_dtype(input.scalar_type()))) {
    c10::SmallVector<int64_t, 5> others;
    for (int64_t d = 0; d < x.dim(); ++d)
      if (d != 1) others.push_back(d);
    std::tie(var, mean) = at::var_mean(x, others, /*correction=*/0);
    invstd = (var + eps).rsqrt();
    normal = (x - along(mean)) * along(invstd);
    v = normal;
    if (affine.weight) {
      weight = along(affine.weight->to(x.scalar_type()));
      v = v * weight;
    }
    if (affine.bias) v = v + along(affine.bias->to(x.scalar_type()));
  }
  Tensor along(const Tensor& vector) const { return composite::along(vector, 1, x.dim()); }
};

Normalised composed(const Tensor& input, const Affine& affine, const Settings& settings) {
  check_batch_norm(input, affine, settings);
  Parts parts(input, affine, settings.eps);
  Tensor y = bias_act(parts.v, {}, to(affine.act_weight, parts.x.scalar_type()), settings.call());
  return {y.to(input.scalar_type()), parts.mean, parts.var};
}

NormGradients composed_backward(const Tensor& grad, const Tensor& input, const Affine& affine, const Tensor&,
                                const Tensor&, const Settings& settings, const Asked& asked) {
  Parts parts(input, affine, settings.eps);
  at::ScalarType dtype = parts.x.scalar_type();
  auto [r, none, act_sum] = bias_act_backward(grad.to(dtype), parts.v, {}, to(affine.act_weight, dtype),
                                              settings.call(), false, asked.act_weight);
  c10::SymInt count = parts.x.sym_numel() / parts.x.sym_size(1);
  Tensor sum = composite::sum_along(r, 1), moment = composite::sum_along(r * parts.normal, 1);
  auto mean_of = [&](const Tensor& sum) { return parts.along(sum).div(at::Scalar(count)); };
  Tensor grad_x = (r - mean_of(sum) - parts.normal * mean_of(moment)) * parts.along(parts.invstd);
  if (parts.weight.defined()) grad_x = grad_x * parts.weight;
  auto given = [&](const Tensor& sum, bool asked, const OptTensor& vector) {
    return asked ? sum.to(vector->scalar_type()) : at::empty({0}, grad.options());
  };
  return {asked.input ? grad_x.to(input.scalar_type()) : at::empty({0}, input.options()),
          given(moment, asked.weight, affine.weight), given(sum, asked.bias, affine.bias),
          given(act_sum, asked.act_weight, affine.act_weight)};
}

// ---- the Node -------------------------------------------------------------------------------------------------------

struct BatchNormActBackward0 final : autograd::Node {
  KeptCall call;
  double eps = 0;
  SavedVariable input, weight, bias, act_weight, mean, var;

  std::string name() const override { return "BatchNormActBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&input, &weight, &bias, &act_weight, &mean, &var}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(4);
    if (!grads[0].defined()) return result;
    Asked asked{task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2),
                task_should_compute_output(3)};
    Call kept = call.get();
    auto [grad_input, grad_weight, grad_bias, grad_act_weight] = batch_norm_act_backward(
        grads[0], input.unpack(), {unpack_optional(weight), unpack_optional(bias), unpack_optional(act_weight)},
        mean.unpack(), var.unpack(), {kept.activation, kept.params, eps}, asked);
    if (asked.input) result[0] = std::move(grad_input);
    if (asked.weight) result[1] = std::move(grad_weight);
    if (asked.bias) result[2] = std::move(grad_bias);
    if (asked.act_weight) result[3] = std::move(grad_act_weight);
    return result;
  }
};

Normalised batch_norm_act_autograd(const Tensor& input, const Affine& affine, const Settings& settings) {
  const auto& [weight, bias, act_weight] = affine;
  if (is_dual(input) || is_dual(weight) || is_dual(bias) || is_dual(act_weight))
    return composed(input, affine, settings);
  bool differentiable = autograd::compute_requires_grad(input, weight, bias, act_weight);
  Normalised result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = batch_norm_act(input, affine, settings);
  }
  if (!differentiable) return result;
  auto& [output, mean, var] = result;
  auto node = c10::make_intrusive<BatchNormActBackward0>();
  node->set_next_edges(autograd::collect_next_edges(input, weight, bias, act_weight));
  node->call.keep(settings.call(), check_batch_norm(input, affine, settings));
  node->eps = settings.eps;
  node->input = SavedVariable(input, false);
  if (weight) node->weight = SavedVariable(*weight, false);
  if (bias) node->bias = SavedVariable(*bias, false);
  if (act_weight) node->act_weight = SavedVariable(*act_weight, false);
  node->mean = SavedVariable(mean, false);
  node->var = SavedVariable(var, false);
  autograd::set_history(output, node);
  return result;
}

NormGradients batch_norm_act_backward_autograd(const Tensor& grad, const Tensor& input, const Affine& affine,
                                               const Tensor& mean, const Tensor& var, const Settings& settings,
                                               const Asked& asked) {
  const auto& [weight, bias, act_weight] = affine;
  if (autograd::compute_requires_grad(grad, input, weight, bias, act_weight) || is_dual(grad) || is_dual(input) ||
      is_dual(weight) || is_dual(bias) || is_dual(act_weight))
    return composed_backward(grad, input, affine, mean, var, settings, asked);
  at::AutoDispatchBelowADInplaceOrView below;
  return batch_norm_act_backward(grad, input, affine, mean, var, settings, asked);
}

}  // namespace

std::vector<NodeType> node_types() { return {{typeid(BatchNormActBackward0), "BatchNormActBackward0"}}; }

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("batch_norm_act", Flat<batch_norm_act_autograd>::call);
  m.impl("batch_norm_act_backward", Flat<batch_norm_act_backward_autograd>::call);
}

TORCH_LIBRARY_IMPL(fusedact, FuncTorchBatched, m) {
  m.impl("batch_norm_act", Flat<composed>::call);
  m.impl("batch_norm_act_backward", Flat<composed_backward>::call);
}

}  // namespace fusedact::batch_norm
