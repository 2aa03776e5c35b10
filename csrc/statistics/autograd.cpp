// The operators that count, under autograd and autocast. What they return is bias_act's, and so are its derivatives; the
// counts are numbers about them, and have none. Forward mode, vmap and masks are bias_act's alone.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "../autocast.h"
#include "../nodes.h"
#include "ops.h"

namespace fusedact {
namespace {

namespace autograd = torch::autograd;
using autograd::SavedVariable;
using autograd::variable_list;

struct BiasActStatisticsBackward0 final : autograd::Node {
  KeptCall call;
  KeptBias bias;
  SavedVariable saved, weight;
  Tensor sums;  // where the gradient is counted; undefined if it is not
  bool saved_is_output = false;

  std::string name() const override { return "BiasActStatisticsBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    saved.reset_data();
    weight.reset_data();
    bias.reset();
    sums.reset();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    const Tensor& grad = grads[0];
    if (!grad.defined()) return result;
    const bool to_bias = task_should_compute_output(1), to_weight = task_should_compute_output(2);
    const Tensor kept = saved.unpack(saved_is_output ? getptr() : nullptr);
    const Call c = call.get();
    const OptTensor b = bias.get(), w = unpack_optional(weight);
    const bool within =
        sums.defined() && !at::GradMode::is_enabled();  // else derivatives are wanted: counted afterwards
    auto [grad_input, grad_bias, grad_weight] =
        within ? bias_act_backward_statistics(grad, kept, b, w, c, to_bias, to_weight, sums)
               : bias_act_backward(grad, kept, b, w, c, to_bias, to_weight);
    if (sums.defined() && !within) statistics_(sums, {}, {}, {}, grad_input.detach(), c.dim, {});
    if (task_should_compute_output(0)) result[0] = std::move(grad_input);
    if (to_bias) result[1] = std::move(grad_bias);
    if (to_weight) result[2] = std::move(grad_weight);
    return result;
  }
};

Tensor bias_act_statistics_autograd(const Tensor& input, const OptTensor& bias, const OptTensor& weight,
                                    const Call& call, const Counting& counting, const OptTensor& gradient) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !is_dual(input) && !is_dual(bias) && !is_dual(weight),
      "fusedact (bias_act_statistics): no forward-mode AD; use bias_act, and statistics_ after it");
  const bool differentiable = autograd::compute_requires_grad(input, bias, weight);
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    output = bias_act_statistics(input, bias, weight, call, counting, gradient);
  }
  if (!differentiable) return output;
  const Plan plan = check(input, bias, weight, call);
  check_weight_learns(weight, plan);
  auto node = c10::make_intrusive<BiasActStatisticsBackward0>();
  node->set_next_edges(autograd::collect_next_edges(input, bias, weight));
  node->call.keep(call, plan);
  node->bias.keep(bias, plan.save == Saved::input);
  if (weight) node->weight = SavedVariable(*weight, false);
  if (gradient) node->sums = *gradient;
  autograd::set_history(output, node);
  node->saved_is_output = plan.save == Saved::output;
  node->saved = SavedVariable(node->saved_is_output ? output : input, node->saved_is_output);
  return output;
}

// Second derivatives are bias_act_backward's.
Gradients bias_act_backward_statistics_autograd(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                                const OptTensor& weight, const Call& call, bool grad_bias,
                                                bool grad_weight, const Tensor& sums) {
  if (autograd::compute_requires_grad(grad, saved, bias, weight)) {
    Gradients result = bias_act_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
    statistics_(sums, {}, {}, {}, std::get<0>(result).detach(), call.dim, {});
    return result;
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return bias_act_backward_statistics(grad, saved, bias, weight, call, grad_bias, grad_weight, sums);
}

void statistics_autograd(const Tensor& sums, const OptTensor& histogram, const OptTensor& input, const OptTensor& bias,
                         const OptTensor& output, int64_t dim, at::ArrayRef<double> zones) {
  at::AutoDispatchBelowADInplaceOrView below;
  statistics_(sums, histogram, input, bias, output, dim, zones);
}

template <c10::DispatchKey key>
Tensor bias_act_statistics_autocast(const Tensor& input, const OptTensor& bias, const OptTensor& weight,
                                    const Call& call, const Counting& counting, const OptTensor& gradient) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  return bias_act_statistics(input, fitted(bias, input), fitted(weight, input), call, counting, gradient);
}

}  // namespace

std::vector<NodeType> statistics_node_types() {
  return {{typeid(BiasActStatisticsBackward0), "BiasActStatisticsBackward0"}};
}

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("statistics_", statistics_autograd);
  m.impl("bias_act_statistics", FlatStatistics<bias_act_statistics_autograd>::call);
  m.impl("bias_act_backward_statistics", FlatStatistics<bias_act_backward_statistics_autograd>::call);
}

TORCH_LIBRARY_IMPL(fusedact, AutocastCPU, m) {
  m.impl("bias_act_statistics", FlatStatistics<bias_act_statistics_autocast<c10::DispatchKey::AutocastCPU>>::call);
}
TORCH_LIBRARY_IMPL(fusedact, AutocastCUDA, m) {
  m.impl("bias_act_statistics", FlatStatistics<bias_act_statistics_autocast<c10::DispatchKey::AutocastCUDA>>::call);
}

}  // namespace fusedact
