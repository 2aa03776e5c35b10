// linear_act under autograd, autocast and vmap.
//
// One Node, for the output and the product that backward saves: that is an output of the Node too, so that a second
// derivative finds its way through it. First order is one operator; whatever asks for more (create_graph, forward mode,
// vmap) gets the compositions, which torch and bias_act differentiate.
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "../autocast.h"
#include "../forward_mode.h"
#include "../nodes.h"
#include "../vmap.h"
#include "linear.h"

namespace fusedact::linear {
namespace {

namespace autograd = torch::autograd;
using autograd::SavedVariable;
using autograd::variable_list;

// ---- the Node -------------------------------------------------------------------------------------------------------

struct LinearActBackward0 : autograd::Node {
  KeptCall call;
  KeptBias bias;
  SavedVariable input, weight, saved, param;
  bool saved_is_ours = false;  // the output or the product, as opposed to a mask

  std::string name() const override { return "LinearActBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* variable : {&input, &weight, &saved, &param}) variable->reset_data();
    bias.reset();
  }

  // The gradients that come in are those of the output and of the product; the latter in second derivatives only.
  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(4);
    Tensor grad = std::move(grads[0]), of_product = grads.size() > 1 ? std::move(grads[1]) : Tensor();
    if (!grad.defined() && !of_product.defined()) return result;
    Wanted wanted{task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2),
                  task_should_compute_output(3)};
    Tensor saved_tensor = saved.unpack(saved_is_ours ? getptr() : nullptr);
    OptTensor x = unpack_optional(input), w = unpack_optional(weight), p = unpack_optional(param);
    bool compose = at::GradMode::is_enabled() || of_product.defined();
    auto [of_input, of_weight, of_bias, of_param] =
        backward(compose, grad, of_product, saved_tensor, x, w, bias.get(), p, call.get(), wanted);
    if (wanted.input) result[0] = std::move(of_input);
    if (wanted.weight) result[1] = std::move(of_weight);
    if (wanted.bias && grad.defined()) result[2] = std::move(of_bias);
    if (wanted.param && grad.defined()) result[3] = std::move(of_param);
    return result;
  }

  virtual Gradients backward(bool compose, const Tensor& grad, const Tensor& of_product, const Tensor& kept,
                             const OptTensor& x, const OptTensor& w, const OptTensor& b, const OptTensor& p,
                             const Call& c, const Wanted& wanted) {
    return compose ? composed_backward(grad, of_product, kept, x, w, b, p, c, wanted)
                   : linear_act_backward(grad, kept, x, w, b, p, c, wanted);
  }
};

// The same, counting the gradient of the pre-activation as it goes by.
struct LinearActStatisticsBackward0 final : LinearActBackward0 {
  Tensor sums;

  std::string name() const override { return "LinearActStatisticsBackward0"; }

  void release_variables() override {
    LinearActBackward0::release_variables();
    std::lock_guard<std::mutex> lock(mutex_);
    sums.reset();
  }

  Gradients backward(bool compose, const Tensor& grad, const Tensor& of_product, const Tensor& kept, const OptTensor& x,
                     const OptTensor& w, const OptTensor& b, const OptTensor& p, const Call& c,
                     const Wanted& wanted) override {
    if (!sums.defined()) return LinearActBackward0::backward(compose, grad, of_product, kept, x, w, b, p, c, wanted);
    return compose ? composed_backward(grad, of_product, kept, x, w, b, p, c, wanted, sums)
                   : linear_act_backward_statistics(grad, kept, x, w, b, p, c, wanted, sums);
  }
};

// ---- autograd -------------------------------------------------------------------------------------------------------

bool any_dual(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param) {
  return is_dual(input) || is_dual(weight) || is_dual(bias) || is_dual(param);
}

// `result` is what linear_act_saving gave.
void give_history(const Saving& result, c10::intrusive_ptr<LinearActBackward0> node, const Tensor& input,
                  const Tensor& weight, const OptTensor& bias, const OptTensor& param, const Call& call) {
  const auto& [output, saved] = result;
  Plan plan = check(output, bias, param, call);
  check_weight_learns(param, plan);
  node->set_next_edges(autograd::collect_next_edges(input, weight, bias, param));
  node->call.keep(call, plan);
  node->bias.keep(bias, plan.save == Saved::input);
  autograd::set_history(output, node);
  if (plan.save == Saved::input) autograd::set_history(saved, node);
  // What one needs for the gradient of the other: a frozen weight keeps no input alive.
  if (autograd::compute_requires_grad(weight)) node->input = SavedVariable(input, false);
  if (autograd::compute_requires_grad(input)) node->weight = SavedVariable(weight, false);
  if (param) node->param = SavedVariable(*param, false);
  node->saved_is_ours = plan.save != Saved::mask;
  node->saved = SavedVariable(plan.save == Saved::output ? output : saved, node->saved_is_ours);
}

Saving differentiable(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                      const Call& call) {
  Saving result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = linear_act_saving(input, weight, bias, param, call);
  }
  give_history(result, c10::make_intrusive<LinearActBackward0>(), input, weight, bias, param, call);
  return result;
}

Saving linear_act_statistics_autograd(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                      const OptTensor& param, const Call& call, bool saving, const Counting& counting,
                                      const OptTensor& gradient) {
  TORCH_CHECK_NOT_IMPLEMENTED(!any_dual(input, weight, bias, param),
                              "fusedact (linear_act_statistics): no forward-mode AD; use linear_act");
  const bool learns = autograd::compute_requires_grad(input, weight, bias, param);
  Saving result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = linear_act_statistics(input, weight, bias, param, call, saving || learns, counting, gradient);
  }
  if (!learns) return result;
  auto node = c10::make_intrusive<LinearActStatisticsBackward0>();
  if (gradient) node->sums = *gradient;
  give_history(result, node, input, weight, bias, param, call);
  return result;
}

// Second derivatives are those of the composition.
Gradients linear_act_backward_statistics_autograd(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                                  const OptTensor& weight, const OptTensor& bias,
                                                  const OptTensor& param, const Call& call, const Wanted& wanted,
                                                  const Tensor& sums) {
  if (autograd::compute_requires_grad(grad, saved, input, weight, bias, param))
    return composed_backward(grad, {}, saved, input, weight, bias, param, call, wanted, sums);
  at::AutoDispatchBelowADInplaceOrView below;
  return linear_act_backward_statistics(grad, saved, input, weight, bias, param, call, wanted, sums);
}

Tensor linear_act_autograd(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                           const Call& call) {
  if (any_dual(input, weight, bias, param)) return std::get<0>(composed(input, weight, bias, param, call));
  if (autograd::compute_requires_grad(input, weight, bias, param))
    return std::get<0>(differentiable(input, weight, bias, param, call));
  at::AutoDispatchBelowADInplaceOrView below;
  return linear_act(input, weight, bias, param, call);
}

Saving linear_act_saving_autograd(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                  const OptTensor& param, const Call& call) {
  if (any_dual(input, weight, bias, param)) return composed(input, weight, bias, param, call);
  if (autograd::compute_requires_grad(input, weight, bias, param))
    return differentiable(input, weight, bias, param, call);
  at::AutoDispatchBelowADInplaceOrView below;
  return linear_act_saving(input, weight, bias, param, call);
}

Gradients linear_act_backward_autograd(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                       const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                       const Call& call, const Wanted& wanted) {
  if (autograd::compute_requires_grad(grad, saved, input, weight, bias, param) || is_dual(grad) || is_dual(saved) ||
      is_dual(input) || is_dual(weight) || is_dual(bias) || is_dual(param))
    return composed_backward(grad, {}, saved, input, weight, bias, param, call, wanted);
  at::AutoDispatchBelowADInplaceOrView below;
  return linear_act_backward(grad, saved, input, weight, bias, param, call, wanted);
}

// ---- autocast: input and weight as for torch's linear; a bias in float32 is taken as it is --------------------------

template <c10::DispatchKey key, c10::DeviceType device>
Tensor linear_act_autocast(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                           const Call& call) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  Tensor x = at::autocast::cached_cast(dtype, input, device);
  return linear_act(x, at::autocast::cached_cast(dtype, weight, device), fitted(bias, x), fitted(param, x), call);
}

template <c10::DispatchKey key, c10::DeviceType device>
Saving linear_act_statistics_autocast(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                      const OptTensor& param, const Call& call, bool saving, const Counting& counting,
                                      const OptTensor& gradient) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  Tensor x = at::autocast::cached_cast(dtype, input, device);
  return linear_act_statistics(x, at::autocast::cached_cast(dtype, weight, device), fitted(bias, x), fitted(param, x),
                               call, saving, counting, gradient);
}

// ---- vmap -----------------------------------------------------------------------------------------------------------

// Samples of x alone are more rows of x. Whatever else is batched goes to torch's own rules.
bool batched_input_alone(const Physical& x, const Physical& weight, const Physical& bias, const Physical& param) {
  return x.batched && x.tensor.dim() > 1 && !weight.batched && !bias.batched && !param.batched &&
         !(param.tensor.defined() && param.tensor.dim() > 1);
}

OptTensor optional(const Physical& x) { return x.tensor.defined() ? OptTensor(x.tensor) : OptTensor(); }

Tensor linear_act_batched(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                          const Call& call) {
  {
    Level level{&input, &weight, if_any(bias), if_any(param)};
    Physical x = physical(input, level), w = physical(weight, level), b = physical(bias, level),
             p = physical(param, level);
    if (batched_input_alone(x, w, b, p))
      return at::functorch::makeBatched(linear_act(x.tensor, w.tensor, optional(b), optional(p), call), 0, level.id);
  }
  return std::get<0>(composed(input, weight, bias, param, call));
}

Saving linear_act_saving_batched(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                 const OptTensor& param, const Call& call) {
  return composed(input, weight, bias, param, call);
}

Gradients linear_act_backward_batched(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                      const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                      const Call& call, const Wanted& wanted) {
  return composed_backward(grad, {}, saved, input, weight, bias, param, call, wanted);
}

}  // namespace

std::vector<NodeType> node_types() {
  return {{typeid(LinearActBackward0), "LinearActBackward0"},
          {typeid(LinearActStatisticsBackward0), "LinearActStatisticsBackward0"}};
}

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("linear_act", Flat<linear_act_autograd>::call);
  m.impl("linear_act_saving", Flat<linear_act_saving_autograd>::call);
  m.impl("linear_act_backward", Flat<linear_act_backward_autograd>::call);
  m.impl("linear_act_statistics", Flat<linear_act_statistics_autograd>::call);
  m.impl("linear_act_backward_statistics", Flat<linear_act_backward_statistics_autograd>::call);
}

TORCH_LIBRARY_IMPL(fusedact, AutocastCPU, m) {
  m.impl("linear_act", Flat<linear_act_autocast<c10::DispatchKey::AutocastCPU, at::kCPU>>::call);
  m.impl("linear_act_statistics", Flat<linear_act_statistics_autocast<c10::DispatchKey::AutocastCPU, at::kCPU>>::call);
}
TORCH_LIBRARY_IMPL(fusedact, AutocastCUDA, m) {
  m.impl("linear_act", Flat<linear_act_autocast<c10::DispatchKey::AutocastCUDA, at::kCUDA>>::call);
  m.impl("linear_act_statistics",
         Flat<linear_act_statistics_autocast<c10::DispatchKey::AutocastCUDA, at::kCUDA>>::call);
}

TORCH_LIBRARY_IMPL(fusedact, FuncTorchBatched, m) {
  m.impl("linear_act", Flat<linear_act_batched>::call);
  m.impl("linear_act_saving", Flat<linear_act_saving_batched>::call);
  m.impl("linear_act_backward", Flat<linear_act_backward_batched>::call);
}

}  // namespace fusedact::linear
