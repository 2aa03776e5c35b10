// Every other dispatch key of the maxout operators: derivatives, autocast, vmap. Backward is linear in the gradient, so that
// a composition of differentiable operators serves for all further orders. No loops.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
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

struct MaxoutBackward0 final : autograd::Node {
  SavedVariable indices;
  OptTensor bias;  // its length and dtype only
  int64_t pieces = 1, dim = 0;

  std::string name() const override { return "MaxoutBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    indices.reset_data();
    bias.reset();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(2);
    if (!grads[0].defined()) return result;
    bool to_bias = task_should_compute_output(1);
    auto [grad_input, grad_bias] = maxout_backward(grads[0], indices.unpack(), bias, pieces, dim, to_bias);
    if (task_should_compute_output(0)) result[0] = std::move(grad_input);
    if (to_bias) result[1] = std::move(grad_bias);
    return result;
  }
};

// The winners' elements of t, which is as large as the input.
Tensor winners(const Tensor& t, const Tensor& indices, int64_t pieces, int64_t dim) {
  c10::SymDimVector sizes(t.sym_sizes().begin(), t.sym_sizes().end());
  sizes[dim] = sizes[dim] / pieces;
  sizes.insert(sizes.begin() + dim + 1, pieces);
  Tensor split = t.reshape_symint(sizes);
  return split.gather(dim + 1, indices.unsqueeze(dim + 1).to(at::kLong)).squeeze(dim + 1);
}

// maxout_backward, differentiable without end.
MaxoutGradients composite_backward(const Tensor& grad, const Tensor& indices, const OptTensor& bias, int64_t pieces,
                                   int64_t dim, bool grad_bias) {
  dim = dim < 0 ? dim + grad.dim() : dim;
  c10::SmallVector<int64_t, 5> shape(grad.dim() + 1, 1);
  shape[dim + 1] = pieces;
  Tensor piece = at::arange(pieces, indices.options()).view(shape);
  Tensor zero = at::zeros({}, grad.options());
  Tensor grad_x = at::where(indices.unsqueeze(dim + 1) == piece, grad.unsqueeze(dim + 1), zero).flatten(dim, dim + 1);
  Tensor sum = at::empty({0}, grad.options());
  if (grad_bias) sum = composite::sum_along(grad_x.to(compute_dtype(grad.scalar_type())), dim).to(bias->scalar_type());
  return {grad_x, sum};
}

Maxout maxout_autograd(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim) {
  bool differentiable = autograd::compute_requires_grad(input, bias), dual = is_dual(input) || is_dual(bias);
  Maxout result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = maxout(input, bias, pieces, dim);
  }
  if (!differentiable && !dual) return result;
  auto& [output, indices] = result;
  dim = check_maxout(input, bias, pieces, dim);
  if (differentiable) {
    auto node = c10::make_intrusive<MaxoutBackward0>();
    node->set_next_edges(autograd::collect_next_edges(input, bias));
    node->indices = SavedVariable(indices, false);
    node->bias = bias;
    node->pieces = pieces;
    node->dim = dim;
    autograd::set_history(output, node);
  }
  if (dual) {
    Tensor t = tangent_of(input), of_bias = tangent_of(bias), x = primal_of(input);
    if (of_bias.defined()) {
      Tensor along = composite::along(of_bias.to(x.scalar_type()), dim, x.dim());
      t = t.defined() ? t + along : along.expand_symint(x.sym_sizes());
    }
    output._set_fw_grad(winners(t, indices, pieces, dim), 0, /*is_inplace_op=*/false);
  }
  return result;
}

MaxoutGradients maxout_backward_autograd(const Tensor& grad, const Tensor& indices, const OptTensor& bias,
                                         int64_t pieces, int64_t dim, bool grad_bias) {
  if (autograd::compute_requires_grad(grad) || is_dual(grad))
    return composite_backward(grad, indices, bias, pieces, dim, grad_bias);
  at::AutoDispatchBelowADInplaceOrView below;
  return maxout_backward(grad, indices, bias, pieces, dim, grad_bias);
}

// ---- autocast: the bias follows the input ----------------------------------------------------------------------------

template <c10::DispatchKey key>
Maxout maxout_autocast(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  OptTensor b = bias;
  if (b && input.is_floating_point() && b->is_floating_point() && b->scalar_type() != input.scalar_type())
    b = b->to(compute_dtype(input.scalar_type()));
  return maxout(input, b, pieces, dim);
}

// ---- vmap: the batch dim becomes one more dim of the input, in front --------------------------------------------------

using at::functorch::makeBatched;

int64_t physical_dim(const Tensor& batched, int64_t dim) {
  int64_t rank = batched.dim() - 1;
  TORCH_CHECK_VALUE(dim >= -rank && dim < rank, "fusedact (maxout): dim is ", dim, ", but x has ", rank,
                    " dims under vmap: it must be in [", -rank, ", ", rank - 1, "]");
  return (dim < 0 ? dim + rank : dim) + 1;
}

Maxout maxout_batched(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim) {
  Level level{&input, if_any(bias)};
  Physical b = physical(bias, level);
  Tensor x = with_batch(physical(input, level), level);
  dim = physical_dim(x, dim);
  OptTensor below = bias ? OptTensor(b.tensor) : bias;
  if (b.batched) {  // each sample has its own: added first
    c10::SymDimVector shape(x.dim(), 1);
    shape[0] = b.tensor.sym_size(0);
    shape[dim] = b.tensor.sym_size(1);
    TORCH_CHECK_VALUE(shape[dim] == x.sym_size(dim), "fusedact (maxout): bias has ", shape[dim],
                      " elements under vmap, but x has ", x.sym_size(dim), " channels");
    x = (x + b.tensor.reshape_symint(shape)).to(x.scalar_type());
    below = {};
  }
  auto [y, indices] = maxout(x, below, pieces, dim);
  return {makeBatched(y, 0, level.id), makeBatched(indices, 0, level.id)};
}

MaxoutGradients maxout_backward_batched(const Tensor& grad, const Tensor& indices, const OptTensor& bias,
                                        int64_t pieces, int64_t dim, bool grad_bias) {
  Level level{&grad, &indices, if_any(bias)};
  Tensor g = with_batch(physical(grad, level), level), which = with_batch(physical(indices, level), level);
  dim = physical_dim(g, dim);
  Tensor grad_x = std::get<0>(maxout_backward(g, which, {}, pieces, dim, /*grad_bias=*/false));
  Tensor sum = at::empty({0}, grad_x.options());
  if (grad_bias) {
    c10::SmallVector<int64_t, 5> others;
    for (int64_t d = 1; d < grad_x.dim(); ++d)
      if (d != dim) others.push_back(d);
    sum = grad_x.to(compute_dtype(grad_x.scalar_type()));
    sum = makeBatched((others.empty() ? sum : sum.sum(others)).to(bias->scalar_type()), 0, level.id);
  }
  return {makeBatched(grad_x, 0, level.id), sum};
}

}  // namespace

std::vector<NodeType> maxout_node_types() { return {{typeid(MaxoutBackward0), "MaxoutBackward0"}}; }

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("maxout", maxout_autograd);
  m.impl("maxout_backward", maxout_backward_autograd);
}

TORCH_LIBRARY_IMPL(fusedact, AutocastCPU, m) { m.impl("maxout", maxout_autocast<c10::DispatchKey::AutocastCPU>); }
TORCH_LIBRARY_IMPL(fusedact, AutocastCUDA, m) { m.impl("maxout", maxout_autocast<c10::DispatchKey::AutocastCUDA>); }

TORCH_LIBRARY_IMPL(fusedact, FuncTorchBatched, m) {
  m.impl("maxout", maxout_batched);
  m.impl("maxout_backward", maxout_backward_batched);
}

}  // namespace fusedact
