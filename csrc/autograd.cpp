// Derivatives: a Node for each differentiable operator, made in its Autograd kernel, as PyTorch's own operators do.
//
//   bias_act --Node--> bias_act_backward --Node--> bias_act_double_backward --> composite.h, differentiable without end
//
// Every step goes through the dispatcher, so that torch.compile and the transforms of torch.func see operators only.
// Forward mode: the tangent of each operator is the next one, applied to the tangents. No maths, no loops.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "composite.h"
#include "forward_mode.h"
#include "nodes.h"
#include "registry.h"

namespace fusedact {
namespace {

namespace autograd = torch::autograd;
using autograd::SavedVariable;
using autograd::variable_list;

OptTensor if_input(const Call& call, const OptTensor& bias) { return call.save == "input" ? bias : OptTensor(); }

// A gradient of zero that takes no memory, as the gradient of sum() takes none; for nobody who differentiates it.
Tensor no_gradient(const Tensor& like) { return like.new_zeros({}).expand_symint(like.sym_sizes()); }

// ---- the Nodes ------------------------------------------------------------------------------------------------------

struct BiasActBackward0 final : autograd::Node {
  KeptCall call;
  KeptBias bias;
  SavedVariable saved, weight;
  bool saved_is_output = false;
  c10::SymDimVector mask_strides;  // the order of the mask's bits; empty for other kinds

  std::string name() const override { return "BiasActBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    saved.reset_data();
    weight.reset_data();
    bias.reset();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    Tensor grad = std::move(grads[0]);
    if (!grad.defined()) return result;
    if (grad._is_zerotensor()) {
      if (task_should_compute_output(0)) result[0] = no_gradient(grad);
      if (task_should_compute_output(1)) result[1] = at::zeros_like(*bias.get());
      if (task_should_compute_output(2)) result[2] = at::zeros_like(weight.unpack());
      return result;
    }
    Tensor saved_tensor = saved.unpack(saved_is_output ? getptr() : nullptr);
    Call kept = call.get();
    if (kept.save == "mask" && grad.sym_strides() != mask_strides)
      grad = grad.new_empty_strided_symint(grad.sym_sizes(), mask_strides).copy_(grad);
    bool to_bias = task_should_compute_output(1), to_weight = task_should_compute_output(2);
    auto [grad_input, grad_bias, grad_weight] =
        bias_act_backward(grad, saved_tensor, bias.get(), unpack_optional(weight), kept, to_bias, to_weight);
    if (task_should_compute_output(0)) result[0] = std::move(grad_input);
    if (to_bias) result[1] = std::move(grad_bias);
    if (to_weight) result[2] = std::move(grad_weight);
    return result;
  }
};

struct BiasActBackwardBackward0 final : autograd::Node {
  KeptCall call;
  KeptBias bias;
  SavedVariable grad, saved, weight;

  std::string name() const override { return "BiasActBackwardBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    grad.reset_data();
    saved.reset_data();
    weight.reset_data();
    bias.reset();
  }

  // The gradients that come in are those of grad_input and of grad_bias. The latter is a sum of the former's elements.
  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    Call kept = call.get();
    Tensor saved_grad = grad.unpack(), saved_tensor = saved.unpack();
    Tensor u = std::move(grads[0]);
    if (grads.size() > 1 && grads[1].defined()) {
      Tensor of_bias = composite::along(grads[1].to(saved_grad.scalar_type()), kept.dim, saved_grad.dim());
      u = u.defined() ? u + of_bias : of_bias.expand_symint(saved_grad.sym_sizes());
    }
    if (!u.defined()) return result;
    bool to_grad = task_should_compute_output(0), to_saved = task_should_compute_output(1),
         to_bias = task_should_compute_output(2);
    bool flat = find_activation(kept.activation)->masked && !at::GradMode::is_enabled();  // f'' = 0
    if (flat || (!to_saved && !to_bias)) {
      if (to_grad)
        result[0] =
            std::get<0>(bias_act_backward(u, saved_tensor, bias.get(), unpack_optional(weight), kept, false, false));
      if (to_saved)  // BiasActBackward0, where an output leads, sees a zero of this kind
        result[1] = kept.save == "output"
                        ? at::_efficientzerotensor_symint(saved_tensor.sym_sizes(), saved_tensor.options())
                        : no_gradient(saved_tensor);
      if (to_bias) result[2] = at::zeros_like(*bias.get());
      return result;
    }
    auto [grad_grad, grad_saved, grad_bias] =
        bias_act_double_backward(u, saved_grad, saved_tensor, bias.get(), kept, to_bias);
    if (to_grad) result[0] = std::move(grad_grad);
    if (to_saved) result[1] = std::move(grad_saved);
    if (to_bias) result[2] = std::move(grad_bias);
    return result;
  }
};

// ---- forward mode ---------------------------------------------------------------------------------------------------

// How x + bias moves, for tangents of x and of bias, either of which may be undefined.
Tensor preactivation_tangent(const Tensor& of_x, const Tensor& of_bias, const Tensor& x, int64_t dim) {
  if (!of_bias.defined()) return of_x;
  Tensor broadcast = composite::along(of_bias.to(x.scalar_type()), dim, x.dim());
  return of_x.defined() ? of_x + broadcast : broadcast.expand_symint(x.sym_sizes());
}

Tensor bias_act_tangent(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                        const Plan& plan) {
  Tensor x = primal_of(input);
  OptTensor b = primal_of(bias), w = primal_of(weight);
  Call of_input = call;
  of_input.save = "input";
  Tensor moved = preactivation_tangent(tangent_of(input), tangent_of(bias), x, plan.dim), result;
  if (moved.defined()) result = std::get<0>(bias_act_backward(moved, x, b, w, of_input, false, false));
  if (is_dual(weight)) {
    Tensor term = composite::weight_tangent(tangent_of(weight), x, b, *w, of_input);
    result = result.defined() ? result + term : term;
  }
  return result;
}

// ---- bias_act -------------------------------------------------------------------------------------------------------

c10::intrusive_ptr<BiasActBackward0> make_node(const Tensor& input, const OptTensor& bias, const OptTensor& weight,
                                               const Call& call, const Plan& plan) {
  auto node = c10::make_intrusive<BiasActBackward0>();
  node->set_next_edges(autograd::collect_next_edges(input, bias, weight));
  node->call.keep(call, plan);
  node->bias.keep(bias, plan.save == Saved::input);
  if (weight) node->weight = SavedVariable(*weight, false);
  return node;
}

// The output, with its Node and its tangent, and the mask if it is saved or asked for.
Masked differentiable_bias_act(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                               bool differentiable, bool dual, bool mask_asked) {
  Plan plan = check(input, bias, weight, call);
  check_weight_learns(weight, plan);
  Tensor output, mask;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    if (mask_asked || (differentiable && plan.save == Saved::mask))
      std::tie(output, mask) = bias_act_mask(input, bias, weight, call);
    else
      output = bias_act(input, bias, weight, call);
  }
  c10::intrusive_ptr<BiasActBackward0> node;
  if (differentiable) {
    node = make_node(input, bias, weight, call, plan);
    autograd::set_history(output, node);
  }
  if (dual) output._set_fw_grad(bias_act_tangent(input, bias, weight, call, plan), 0, /*is_inplace_op=*/false);
  if (differentiable) {  // now that the output has all that must be saved with it
    if (plan.save == Saved::mask) node->mask_strides.assign(output.sym_strides().begin(), output.sym_strides().end());
    node->saved_is_output = plan.save == Saved::output;
    node->saved = plan.save == Saved::output ? SavedVariable(output, true)
                                             : SavedVariable(plan.save == Saved::mask ? mask : input, false);
  }
  return {output, mask};
}

Tensor bias_act_autograd(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  bool differentiable = autograd::compute_requires_grad(input, bias, weight);
  bool dual = is_dual(input) || is_dual(bias) || is_dual(weight);
  if (differentiable || dual)
    return std::get<0>(differentiable_bias_act(input, bias, weight, call, differentiable, dual, false));
  at::AutoDispatchBelowADInplaceOrView below;
  return bias_act(input, bias, weight, call);
}

// Below one level of torch.func lies the next, so this one needs derivatives too.
Masked bias_act_mask_autograd(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  bool differentiable = autograd::compute_requires_grad(input, bias, weight);
  bool dual = is_dual(input) || is_dual(bias) || is_dual(weight);
  if (differentiable || dual) return differentiable_bias_act(input, bias, weight, call, differentiable, dual, true);
  at::AutoDispatchBelowADInplaceOrView below;
  return bias_act_mask(input, bias, weight, call);
}

void bias_act_inplace_autograd(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  bool differentiable = autograd::compute_requires_grad(input, bias, weight);
  bool dual = is_dual(input) || is_dual(bias) || is_dual(weight);
  autograd::check_inplace(input, differentiable);
  if (!differentiable && !dual) {
    at::AutoDispatchBelowAutograd below;
    return bias_act_(input, bias, weight, call);
  }

  Plan plan = check(input, bias, weight, call);
  check_weight_learns(weight, plan);
  // What is about to be overwritten, if backward or the tangent needs it: as torch.nn.functional.silu(inplace=True).
  Tensor original = dual || plan.save == Saved::input ? input.clone() : Tensor();
  c10::intrusive_ptr<BiasActBackward0> node;
  if (differentiable) node = make_node(input, bias, weight, call, plan);
  Tensor mask;
  {
    at::AutoDispatchBelowAutograd below;  // the version counter is bumped below
    if (differentiable && plan.save == Saved::mask) {
      Tensor output;
      std::tie(output, mask) = bias_act_mask(input, bias, weight, call);
      node->mask_strides.assign(output.sym_strides().begin(), output.sym_strides().end());
      input.copy_(output);
    } else {
      bias_act_(input, bias, weight, call);
    }
  }
  if (differentiable) autograd::rebase_history(input, node);
  if (dual) {
    Tensor tangent = bias_act_tangent(original, bias, weight, call, plan);
    const Tensor& before = tangent_of(input);
    input._set_fw_grad(before.defined() ? before.copy_(tangent) : tangent, 0, /*is_inplace_op=*/true);
  }
  if (differentiable) {
    node->saved_is_output = plan.save == Saved::output;
    node->saved = plan.save == Saved::output ? SavedVariable(input, true, /*is_inplace_on_view=*/input.is_view())
                                             : SavedVariable(plan.save == Saved::mask ? mask : original, false);
  }
}

void bias_act_out_autograd(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                           const Tensor& out) {
  if (autograd::compute_requires_grad(input, bias, weight, out))
    autograd::throw_error_out_requires_grad("fusedact.bias_act");
  TORCH_CHECK_NOT_IMPLEMENTED(!is_dual(input) && !is_dual(bias) && !is_dual(weight) && !is_dual(out),
                              "fusedact.bias_act(): functions with out=... do not support forward-mode AD; drop out=");
  at::AutoDispatchBelowAutograd below;
  bias_act_out(input, bias, weight, call, out);
}

// ---- bias_act_backward ----------------------------------------------------------------------------------------------

Gradients bias_act_backward_autograd(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                     const OptTensor& weight, const Call& call, bool grad_bias, bool grad_weight) {
  OptTensor moving_bias = if_input(call, bias);  // where the output is saved, h(y) does not depend on it
  bool differentiable = autograd::compute_requires_grad(grad, saved, moving_bias, weight);
  bool dual = is_dual(grad) || is_dual(saved) || is_dual(moving_bias) || is_dual(weight);
  if (!differentiable && !dual) {
    at::AutoDispatchBelowADInplaceOrView below;
    return bias_act_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
  }

  Plan plan = check(grad, bias, weight, call);
  if (weight && plan.save == Saved::input)
    return composite::backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
  Gradients result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = bias_act_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
  }
  auto& [grad_input, bias_sum, weight_sum] = result;
  if (differentiable) {
    auto node = c10::make_intrusive<BiasActBackwardBackward0>();
    node->set_next_edges(autograd::collect_next_edges(grad, saved, moving_bias));
    node->call.keep(call, plan);
    node->bias.keep(bias, plan.save == Saved::input);
    node->grad = SavedVariable(grad, false);
    node->saved = SavedVariable(saved, false);
    if (weight) node->weight = SavedVariable(*weight, false);
    autograd::set_history(grad_input, node);
    if (grad_bias) autograd::set_history(bias_sum, node);
  }
  if (dual) {
    Tensor g = primal_of(grad), s = primal_of(saved), tangent;
    OptTensor b = primal_of(bias);
    if (is_dual(grad)) tangent = std::get<0>(bias_act_backward(tangent_of(grad), s, b, weight, call, false, false));
    Tensor moved = preactivation_tangent(tangent_of(saved), tangent_of(moving_bias), g, plan.dim);
    if (moved.defined() && plan.save != Saved::mask) {
      Tensor bent = std::get<1>(bias_act_double_backward(moved, g, s, b, call, false));
      tangent = tangent.defined() ? tangent + bent : bent;
    }
    if (tangent.defined()) {
      grad_input._set_fw_grad(tangent, 0, /*is_inplace_op=*/false);
      if (grad_bias)
        bias_sum._set_fw_grad(composite::sum_along(tangent, plan.dim).to(bias_sum.scalar_type()), 0, false);
    }
  }
  return result;
}

// ---- bias_act_double_backward ---------------------------------------------------------------------------------------

DoubleGradients bias_act_double_backward_autograd(const Tensor& u, const Tensor& grad, const Tensor& saved,
                                                  const OptTensor& bias, const Call& call, bool grad_bias) {
  OptTensor moving_bias = if_input(call, bias);
  if (autograd::compute_requires_grad(u, grad, saved, moving_bias) || is_dual(u) || is_dual(grad) || is_dual(saved) ||
      is_dual(moving_bias))
    return composite::double_backward(u, grad, saved, bias, call, grad_bias);
  at::AutoDispatchBelowADInplaceOrView below;
  return bias_act_double_backward(u, grad, saved, bias, call, grad_bias);
}

// ---- version counters -----------------------------------------------------------------------------------------------

void bias_act_inplace_version(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  {
    at::AutoDispatchBelowADInplaceOrView below;
    bias_act_(input, bias, weight, call);
  }
  autograd::increment_version(input);
}

void bias_act_out_version(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                          const Tensor& out) {
  {
    at::AutoDispatchBelowADInplaceOrView below;
    bias_act_out(input, bias, weight, call, out);
  }
  autograd::increment_version(out);
}

}  // namespace

std::vector<NodeType> node_types() {
  return {NodeType{typeid(BiasActBackward0), "BiasActBackward0"},
          NodeType{typeid(BiasActBackwardBackward0), "BiasActBackwardBackward0"}};
}

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("bias_act", Flat<bias_act_autograd>::call);
  m.impl("bias_act_", Flat<bias_act_inplace_autograd>::call);
  m.impl("bias_act.out", Flat<bias_act_out_autograd>::call);
  m.impl("bias_act_mask", Flat<bias_act_mask_autograd>::call);
  m.impl("bias_act_backward", Flat<bias_act_backward_autograd>::call);
  m.impl("bias_act_backward.mask", Flat<bias_act_backward_autograd>::call);
  m.impl("bias_act_double_backward", Flat<bias_act_double_backward_autograd>::call);
}

TORCH_LIBRARY_IMPL(fusedact, ADInplaceOrView, m) {
  m.impl("bias_act_", Flat<bias_act_inplace_version>::call);
  m.impl("bias_act.out", Flat<bias_act_out_version>::call);
}

}  // namespace fusedact
