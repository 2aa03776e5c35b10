// Every other dispatch key of the softmax operators: derivatives, autocast, vmap. First derivatives are fused; those of
// backward, and tangents, are compositions of differentiable operators. No loops.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "../composite.h"
#include "../forward_mode.h"
#include "../vmap.h"
#include "ops.h"

namespace fusedact {
namespace {

namespace autograd = torch::autograd;
using autograd::SavedVariable;
using autograd::variable_list;

struct SoftmaxBackward0 final : autograd::Node {
  SavedVariable output;
  OptTensor bias;  // its length and dtype only
  int64_t dim = 0;
  bool log = false;

  std::string name() const override { return "SoftmaxBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    output.reset_data();
    bias.reset();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(2);
    if (!grads[0].defined()) return result;
    bool to_bias = task_should_compute_output(1);
    auto [grad_input, grad_bias] = softmax_backward(grads[0], output.unpack(getptr()), bias, dim, log, to_bias);
    if (task_should_compute_output(0)) result[0] = std::move(grad_input);
    if (to_bias) result[1] = std::move(grad_bias);
    return result;
  }
};

// How the output y moves with x + bias: y (t - sum(t y)), or t - sum(e^y t).
Tensor moved_output(const Tensor& t, const Tensor& y, int64_t dim, bool log) {
  if (!log) return std::get<0>(softmax_backward(t, y, {}, dim, false, false));
  return t - (y.exp() * t).sum(dim, /*keepdim=*/true);
}

// softmax_backward, differentiable without end.
SoftmaxGradients composite_backward(const Tensor& grad, const Tensor& output, const OptTensor& bias, int64_t dim,
                                    bool log, bool grad_bias) {
  at::ScalarType wide = compute_dtype(grad.scalar_type());
  Tensor g = grad.to(wide), y = output.to(wide);
  Tensor grad_x = log ? g - y.exp() * g.sum(dim, true) : y * (g - (g * y).sum(dim, true));
  Tensor sum = grad_bias ? composite::sum_along(grad_x, dim).to(bias->scalar_type()) : at::empty({0}, grad.options());
  return {grad_x.to(grad.scalar_type()), sum};
}

Tensor softmax_autograd(const Tensor& input, const OptTensor& bias, int64_t dim, bool log) {
  bool differentiable = autograd::compute_requires_grad(input, bias), dual = is_dual(input) || is_dual(bias);
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    output = softmax(input, bias, dim, log);
  }
  if (!differentiable && !dual) return output;
  dim = check_softmax(input, bias, dim, log);
  c10::intrusive_ptr<SoftmaxBackward0> node;
  if (differentiable) {
    node = c10::make_intrusive<SoftmaxBackward0>();
    node->set_next_edges(autograd::collect_next_edges(input, bias));
    node->bias = bias;
    node->dim = dim;
    node->log = log;
    autograd::set_history(output, node);
  }
  if (dual) {
    Tensor y = primal_of(output), t = tangent_of(input), of_bias = tangent_of(bias);
    if (of_bias.defined()) {
      Tensor along = composite::along(of_bias.to(y.scalar_type()), dim, y.dim());
      t = t.defined() ? t + along : along.expand_symint(y.sym_sizes());
    }
    output._set_fw_grad(moved_output(t, y, dim, log), 0, /*is_inplace_op=*/false);
  }
  if (differentiable) node->output = SavedVariable(output, true);
  return output;
}

SoftmaxGradients softmax_backward_autograd(const Tensor& grad, const Tensor& output, const OptTensor& bias, int64_t dim,
                                           bool log, bool grad_bias) {
  if (autograd::compute_requires_grad(grad, output) || is_dual(grad) || is_dual(output))
    return composite_backward(grad, output, bias, check_softmax(grad, bias, dim, log), log, grad_bias);
  at::AutoDispatchBelowADInplaceOrView below;
  return softmax_backward(grad, output, bias, dim, log, grad_bias);
}

// ---- autocast: as torch's own. The input keeps its dtype on the CPU and is computed in float32 on CUDA. ---------------

template <c10::DispatchKey key>
Tensor softmax_autocast(const Tensor& input, const OptTensor& bias, int64_t dim, bool log) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  bool widened = key == c10::DispatchKey::AutocastCUDA && input.is_floating_point() && input.element_size() == 2;
  Tensor x = widened ? input.to(at::kFloat) : input;
  OptTensor b = bias;
  if (b && x.is_floating_point() && b->is_floating_point() && b->scalar_type() != x.scalar_type())
    b = b->to(compute_dtype(x.scalar_type()));
  return softmax(x, b, dim, log);
}

// ---- vmap: the batch dim becomes one more dim of the input, in front --------------------------------------------------

using at::functorch::makeBatched;

// A sample without dims gets one.
Tensor enter(const Tensor& x) { return x.dim() == 1 ? x.unsqueeze(1) : x; }

// `dim` of a sample, counted in the physical tensor.
int64_t physical_dim(const Tensor& batched, int64_t dim) {
  int64_t rank = std::max<int64_t>(batched.dim() - 1, 1);
  TORCH_CHECK_VALUE(dim >= -rank && dim < rank, "fusedact: dim is ", dim, ", but x has ", batched.dim() - 1,
                    " dims under vmap: it must be in [", -rank, ", ", rank - 1, "]");
  return (dim < 0 ? dim + rank : dim) + 1;
}

Tensor softmax_batched(const Tensor& input, const OptTensor& bias, int64_t dim, bool log) {
  Level level{&input, if_any(bias)};
  Physical x = physical(input, level), b = physical(bias, level);
  Tensor batched = with_batch(x, level), entered = enter(batched);
  dim = physical_dim(batched, dim);
  Tensor y;
  if (b.batched) {  // each sample has its own: added first
    c10::SymDimVector shape(entered.dim(), 1);
    shape[0] = b.tensor.sym_size(0);
    shape[dim] = b.tensor.sym_size(1);
    TORCH_CHECK_VALUE(shape[dim] == entered.sym_size(dim), "fusedact (softmax): bias has ", shape[dim],
                      " elements under vmap, but x has ", entered.sym_size(dim), " channels");
    y = softmax((entered + b.tensor.reshape_symint(shape)).to(entered.scalar_type()), {}, dim, log);
  } else {
    y = softmax(entered, bias ? OptTensor(b.tensor) : bias, dim, log);
  }
  return makeBatched(y.view_symint(batched.sym_sizes()), 0, level.id);
}

SoftmaxGradients softmax_backward_batched(const Tensor& grad, const Tensor& output, const OptTensor& bias, int64_t dim,
                                          bool log, bool grad_bias) {
  Level level{&grad, &output, if_any(bias)};
  Physical g = physical(grad, level), y = physical(output, level);
  Tensor batched = with_batch(g, level);
  dim = physical_dim(batched, dim);
  Tensor grad_x =
      std::get<0>(softmax_backward(enter(batched), enter(with_batch(y, level)), {}, dim, log, /*grad_bias=*/false));
  Tensor sum = at::empty({0}, grad_x.options());
  if (grad_bias) {
    c10::SmallVector<int64_t, 5> others;
    for (int64_t d = 1; d < grad_x.dim(); ++d)
      if (d != dim) others.push_back(d);
    sum = grad_x.to(compute_dtype(grad_x.scalar_type()));
    sum = makeBatched((others.empty() ? sum : sum.sum(others)).to(bias->scalar_type()), 0, level.id);
  }
  return {makeBatched(grad_x.view_symint(batched.sym_sizes()), 0, level.id), sum};
}

}  // namespace

std::vector<NodeType> softmax_node_types() { return {{typeid(SoftmaxBackward0), "SoftmaxBackward0"}}; }

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("softmax", softmax_autograd);
  m.impl("softmax_backward", softmax_backward_autograd);
}

TORCH_LIBRARY_IMPL(fusedact, AutocastCPU, m) { m.impl("softmax", softmax_autocast<c10::DispatchKey::AutocastCPU>); }
TORCH_LIBRARY_IMPL(fusedact, AutocastCUDA, m) { m.impl("softmax", softmax_autocast<c10::DispatchKey::AutocastCUDA>); }

TORCH_LIBRARY_IMPL(fusedact, FuncTorchBatched, m) {
  m.impl("softmax", softmax_batched);
  m.impl("softmax_backward", softmax_backward_batched);
}

}  // namespace fusedact
