// The epilogue's derivatives, and its other dispatch keys.
//
//   bias_act_epilogue --Node--> bias_act_epilogue_backward --> composition of differentiable operators
//
// Forward mode, vmap and derivatives of derivatives go by composition: bias_act, dropout_mask and torch's own operators
// compute the same values in the same order of roundings. No kernels and no loops.
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "../autocast.h"
#include "../composite.h"
#include "../forward_mode.h"
#include "../nodes.h"
#include "../vmap.h"
#include "ops.h"

namespace fusedact::epilogue {
namespace {

namespace autograd = torch::autograd;
using autograd::SavedVariable;
using autograd::variable_list;

// ---- the compositions -----------------------------------------------------------------------------------------------

OptTensor to(const OptTensor& x, at::ScalarType dtype) { return x ? OptTensor(x->to(dtype)) : x; }

int64_t wrapped(int64_t dim, int64_t rank) { return dim < 0 ? dim + std::max<int64_t>(rank, 1) : dim; }

// Everything in the compute dtype; 16-bit results are rounded once, at the end.
Tensor composed(const Tensor& input, const Beside& beside, const OptTensor& residual, const Call& call, double p) {
  check_epilogue(input, beside, residual, call, p);
  at::ScalarType dtype = compute_dtype(input.scalar_type());
  Tensor v = input.to(dtype);
  if (beside.scale) v = v * composite::along(beside.scale->to(dtype), wrapped(call.dim, v.dim()), v.dim());
  Tensor y = bias_act(v, to(beside.bias, dtype), to(beside.weight, dtype), call);
  if (beside.seed) y = y * dropout_mask(*beside.seed, y.sym_sizes(), p, dtype);
  if (residual) y = y + residual->to(dtype);
  return y.to(input.scalar_type());
}

EpilogueGradients composed_backward(const Tensor& grad, const OptTensor& input, const Beside& beside, const Call& call,
                                    double p, const Asked& asked) {
  at::ScalarType dtype = compute_dtype(grad.scalar_type());
  int64_t rank = grad.dim(), dim = wrapped(call.dim, rank);
  Tensor g = grad.to(dtype), scale, x, grad_x, bias_sum, weight_sum;
  if (beside.scale) scale = composite::along(beside.scale->to(dtype), dim, rank);
  if (beside.seed) g = g * dropout_mask(*beside.seed, g.sym_sizes(), p, dtype);
  if (input) {
    x = input->to(dtype);
    std::tie(grad_x, bias_sum, weight_sum) =
        bias_act_backward(g, scale.defined() ? x * scale : x, to(beside.bias, dtype), to(beside.weight, dtype), call,
                          asked.bias, asked.weight);
  } else {
    grad_x = call.gain == 1.0 ? g : g * call.gain;
    if (asked.bias) bias_sum = composite::sum_along(grad_x, dim);
  }
  auto sum = [&](const Tensor& sum, bool asked, const OptTensor& vector) {
    return asked ? sum.to(vector->scalar_type()) : at::empty({0}, grad.options());
  };
  Tensor scale_sum = asked.scale ? composite::sum_along(grad_x * x, dim) : Tensor();
  if (scale.defined()) grad_x = grad_x * scale;
  return {grad_x.to(grad.scalar_type()), sum(bias_sum, asked.bias, beside.bias),
          sum(weight_sum, asked.weight, beside.weight), sum(scale_sum, asked.scale, beside.scale)};
}

// ---- the Node -------------------------------------------------------------------------------------------------------

struct BiasActEpilogueBackward0 final : autograd::Node {
  KeptCall call;
  KeptBias bias;
  SavedVariable input, weight, scale, seed;
  double dropout_p = 0;

  std::string name() const override { return "BiasActEpilogueBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&input, &weight, &scale, &seed}) saved->reset_data();
    bias.reset();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(5);
    Tensor grad = std::move(grads[0]);
    if (!grad.defined()) return result;
    if (task_should_compute_output(4)) result[4] = grad;
    Asked asked{task_should_compute_output(1), task_should_compute_output(2), task_should_compute_output(3)};
    if (!task_should_compute_output(0) && !asked.bias && !asked.weight && !asked.scale) return result;
    auto [grad_input, grad_bias, grad_weight, grad_scale] =
        bias_act_epilogue_backward(grad, unpack_optional(input),
                                   {bias.get(), unpack_optional(weight), unpack_optional(scale), unpack_optional(seed)},
                                   call.get(), dropout_p, asked);
    if (task_should_compute_output(0)) result[0] = std::move(grad_input);
    if (asked.bias) result[1] = std::move(grad_bias);
    if (asked.weight) result[2] = std::move(grad_weight);
    if (asked.scale) result[3] = std::move(grad_scale);
    return result;
  }
};

Tensor bias_act_epilogue_autograd(const Tensor& input, const Beside& beside, const OptTensor& residual,
                                  const Call& call, double p) {
  const auto& [bias, weight, scale, seed] = beside;
  if (is_dual(input) || is_dual(bias) || is_dual(weight) || is_dual(scale) || is_dual(residual))
    return composed(input, beside, residual, call, p);
  bool differentiable = autograd::compute_requires_grad(input, bias, weight, scale, residual);
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    output = bias_act_epilogue(input, beside, residual, call, p);
  }
  if (!differentiable) return output;
  Plan plan = check_epilogue(input, beside, residual, call, p);
  auto node = c10::make_intrusive<BiasActEpilogueBackward0>();
  node->set_next_edges(autograd::collect_next_edges(input, bias, weight, scale, residual));
  bool saves = needs_input(call, autograd::compute_requires_grad(scale));
  node->call.keep(call, plan);
  node->bias.keep(bias, saves);
  node->dropout_p = p;
  if (saves) node->input = SavedVariable(input, false);
  if (weight) node->weight = SavedVariable(*weight, false);
  if (scale) node->scale = SavedVariable(*scale, false);
  if (seed) node->seed = SavedVariable(*seed, false);
  autograd::set_history(output, node);
  return output;
}

EpilogueGradients bias_act_epilogue_backward_autograd(const Tensor& grad, const OptTensor& input, const Beside& beside,
                                                      const Call& call, double p, const Asked& asked) {
  const auto& [bias, weight, scale, seed] = beside;
  if (autograd::compute_requires_grad(grad, input, bias, weight, scale) || is_dual(grad) || is_dual(input) ||
      is_dual(bias) || is_dual(weight) || is_dual(scale))
    return composed_backward(grad, input, beside, call, p, asked);
  at::AutoDispatchBelowADInplaceOrView below;
  return bias_act_epilogue_backward(grad, input, beside, call, p, asked);
}

Tensor dropout_mask_autograd(const Tensor& seed, c10::SymIntArrayRef size, double p, at::ScalarType dtype) {
  at::AutoDispatchBelowADInplaceOrView below;
  return dropout_mask(seed, size, p, dtype);
}

// ---- vmap -----------------------------------------------------------------------------------------------------------

Tensor dropout_mask_batched(const Tensor& seed, c10::SymIntArrayRef size, double p, at::ScalarType dtype) {
  Level level{&seed};
  return at::functorch::makeBatched(dropout_mask(physical(seed, level).tensor, size, p, dtype), 0, level.id);
}

// ---- autocast -------------------------------------------------------------------------------------------------------

// Vectors follow the input; input and residual meet in the wider of their dtypes, as in torch's own addition.
template <c10::DispatchKey key>
Tensor bias_act_epilogue_autocast(const Tensor& input, const Beside& beside, const OptTensor& residual,
                                  const Call& call, double p) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  Tensor x = input;
  OptTensor added = residual;
  if (residual && at::isFloatingType(input.scalar_type()) && at::isFloatingType(residual->scalar_type())) {
    at::ScalarType dtype = at::promote_types(input.scalar_type(), residual->scalar_type());
    x = input.to(dtype);
    added = residual->to(dtype);
  }
  return bias_act_epilogue(x, {fitted(beside.bias, x), fitted(beside.weight, x), fitted(beside.scale, x), beside.seed},
                           added, call, p);
}

}  // namespace

std::vector<NodeType> node_types() { return {{typeid(BiasActEpilogueBackward0), "BiasActEpilogueBackward0"}}; }

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("bias_act_epilogue", Flat<bias_act_epilogue_autograd>::call);
  m.impl("bias_act_epilogue_backward", Flat<bias_act_epilogue_backward_autograd>::call);
  m.impl("dropout_mask", dropout_mask_autograd);
}

TORCH_LIBRARY_IMPL(fusedact, FuncTorchBatched, m) {
  m.impl("bias_act_epilogue", Flat<composed>::call);
  m.impl("bias_act_epilogue_backward", Flat<composed_backward>::call);
  m.impl("dropout_mask", dropout_mask_batched);
}

TORCH_LIBRARY_IMPL(fusedact, AutocastCPU, m) {
  m.impl("bias_act_epilogue", Flat<bias_act_epilogue_autocast<c10::DispatchKey::AutocastCPU>>::call);
}
TORCH_LIBRARY_IMPL(fusedact, AutocastCUDA, m) {
  m.impl("bias_act_epilogue", Flat<bias_act_epilogue_autocast<c10::DispatchKey::AutocastCUDA>>::call);
}

}  // namespace fusedact::epilogue
