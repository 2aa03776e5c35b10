// Gated units under every other dispatch key: derivatives, vmap, autocast.
//
//   gated_act --Node--> gated_act_backward --> a composition of bias_act and torch's operators, differentiable without end
//
// The tangent of forward mode is gated_act_backward too: what it returns for a gradient of ones are the partial
// derivatives. No maths of an activation, no loops.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/result_type.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
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

// ---- halves as views of a tensor ------------------------------------------------------------------------------------

struct Pair {
  Tensor first, second;
};

Pair split(const Tensor& x, int64_t dim, const GatedPlan& plan) {
  if (plan.interleaved) return {x.slice(dim, 0, std::nullopt, 2), x.slice(dim, 1, std::nullopt, 2)};
  const c10::SymInt half = x.sym_size(dim) / 2;
  return {x.narrow_symint(dim, 0, half), x.narrow_symint(dim, half, half)};
}

Tensor join(const Pair& halves, int64_t dim, const GatedPlan& plan) {
  if (!plan.interleaved) return at::cat({halves.first, halves.second}, dim);
  c10::SymIntArrayRef half = halves.first.sym_sizes();
  c10::SymDimVector sizes(half.begin(), half.end());
  sizes[dim] = sizes[dim] * 2;
  return at::stack({halves.first, halves.second}, dim + 1).reshape_symint(sizes);
}

Tensor to_compute(const Tensor& x) { return x.to(compute_dtype(x.scalar_type())); }

Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

// ---- the gradients, composed ----------------------------------------------------------------------------------------

// gated_act_backward, differentiable in every tensor any number of times.
GatedGradients composed_backward(const Tensor& grad, const GatedTensors& t, const GatedCall& call, bool grad_bias,
                                 bool grad_other_bias) {
  const GatedPlan plan = check_gated(t, call);
  const int64_t dim = plan.dim;
  const Tensor first = composite::preactivation(t.input, t.bias, dim);
  const Pair halves =
      plan.two ? Pair{first, composite::preactivation(*t.other, t.other_bias, dim)} : split(first, dim, plan);
  const Tensor &gate = plan.gate_second ? halves.second : halves.first,
               &value = plan.gate_second ? halves.first : halves.second;
  const Tensor g = to_compute(grad);

  Tensor passes_gate, passes_value, bounded_gate = gate, bounded_value = value;
  if (call.limit) {
    passes_gate = gate <= *call.limit;
    passes_value = (value >= -*call.limit).logical_and(value <= *call.limit);
    bounded_gate = gate.clamp_max(*call.limit);
    bounded_value = value.clamp(-*call.limit, *call.limit);
  }
  Call activation;
  activation.activation = call.activation;
  activation.params = call.params;
  activation.save = "input";
  Tensor argument = call.alpha == 1.0 ? bounded_gate : bounded_gate * call.alpha;
  Tensor of_value = g * (bias_act(argument, {}, {}, activation) / call.alpha);
  Tensor of_gate =
      std::get<0>(bias_act_backward(g * (bounded_value + call.offset), argument, {}, {}, activation, false, false));
  if (call.limit) {
    Tensor zero = at::scalar_tensor(0, of_value.options());
    of_value = at::where(passes_value, of_value, zero);
    of_gate = at::where(passes_gate, of_gate, zero);
  }

  Pair grads = plan.gate_second ? Pair{of_value, of_gate} : Pair{of_gate, of_value};
  Tensor grad_input = plan.two ? grads.first : join(grads, dim, plan);
  auto sum = [&](const Tensor& each, const OptTensor& bias, bool asked) {
    return asked ? composite::sum_along(each, dim).to(bias->scalar_type()) : nothing(grad);
  };
  return {grad_input.to(grad.scalar_type()), plan.two ? grads.second.to(grad.scalar_type()) : nothing(grad),
          sum(grad_input, t.bias, grad_bias), sum(grads.second, t.other_bias, grad_other_bias)};
}

// ---- the Node -------------------------------------------------------------------------------------------------------

OptTensor unpack(const SavedVariable& saved) {
  Tensor tensor = saved.unpack();
  return tensor.defined() ? OptTensor(tensor) : OptTensor();
}

SavedVariable kept(const OptTensor& x) { return x ? SavedVariable(*x, false) : SavedVariable(); }

struct GatedActBackward0 final : autograd::Node {
  GatedCall call;  // its strings and list are the plan's and this Node's own
  c10::SmallVector<double, 2> params;
  SavedVariable input, other, bias, other_bias;

  std::string name() const override { return "GatedActBackward0"; }

  void keep(const GatedCall& given, const GatedPlan& plan) {
    call = given;
    params.assign(given.params.begin(), given.params.end());
    call.params = params;
    call.activation = plan.activation.name;
    call.dim = plan.dim;
    call.gate = plan.gate_second ? "second" : "first";
    call.layout = plan.interleaved ? "interleaved" : "concat";
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&input, &other, &bias, &other_bias}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(4);
    if (!grads[0].defined()) return result;
    const Tensor x = input.unpack();
    const OptTensor o = unpack(other), b = unpack(bias), ob = unpack(other_bias);
    const bool to_bias = task_should_compute_output(2), to_other_bias = task_should_compute_output(3);
    auto [grad_input, grad_other, grad_bias, grad_other_bias] =
        gated_act_backward(grads[0], {x, o, b, ob}, call, to_bias, to_other_bias);
    if (task_should_compute_output(0)) result[0] = std::move(grad_input);
    if (task_should_compute_output(1)) result[1] = std::move(grad_other);
    if (to_bias) result[2] = std::move(grad_bias);
    if (to_other_bias) result[3] = std::move(grad_other_bias);
    return result;
  }
};

// ---- the operators --------------------------------------------------------------------------------------------------

bool differentiable(const GatedTensors& t) {
  return autograd::compute_requires_grad(t.input, t.other, t.bias, t.other_bias);
}
bool dual(const GatedTensors& t) {
  return is_dual(t.input) || is_dual(t.other) || is_dual(t.bias) || is_dual(t.other_bias);
}

// How a tensor and its bias move together; undefined if neither does.
Tensor moved(const Tensor& x, const OptTensor& bias, int64_t dim) {
  Tensor of_x = tangent_of(x), of_bias = tangent_of(bias);
  if (!of_bias.defined()) return of_x;
  Tensor broadcast = composite::along(of_bias.to(x.scalar_type()), dim, x.dim());
  return of_x.defined() ? of_x + broadcast : broadcast.expand_symint(x.sym_sizes());
}

Tensor tangent(const Tensor& output, const GatedTensors& t, const GatedCall& call, const GatedPlan& plan) {
  const Tensor x = primal_of(t.input);
  const OptTensor o = primal_of(t.other), b = primal_of(t.bias), ob = primal_of(t.other_bias);
  auto [by_input, by_other, none, nor] = gated_act_backward(at::ones_like(output), {x, o, b, ob}, call, false, false);
  Tensor result, of_input = moved(t.input, t.bias, plan.dim);
  if (of_input.defined()) {
    result = by_input * of_input;
    if (!plan.two) {
      Pair halves = split(result, plan.dim, plan);
      result = halves.first + halves.second;
    }
  }
  Tensor of_other = plan.two ? moved(*t.other, t.other_bias, plan.dim) : Tensor();
  if (of_other.defined()) result = result.defined() ? result + by_other * of_other : by_other * of_other;
  return result;
}

Tensor gated_act_autograd(const GatedTensors& t, const GatedCall& call) {
  const bool grad = differentiable(t), moving = dual(t);
  if (!grad && !moving) {
    at::AutoDispatchBelowADInplaceOrView below;
    return gated_act(t, call);
  }
  const GatedPlan plan = check_gated(t, call);
  Tensor output;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    output = gated_act(t, call);
  }
  if (grad) {
    auto node = c10::make_intrusive<GatedActBackward0>();
    node->set_next_edges(autograd::collect_next_edges(t.input, t.other, t.bias, t.other_bias));
    node->keep(call, plan);
    node->input = SavedVariable(t.input, false);
    node->other = kept(t.other);
    node->bias = kept(t.bias);
    node->other_bias = kept(t.other_bias);
    autograd::set_history(output, node);
  }
  if (moving) output._set_fw_grad(tangent(output, t, call, plan), 0, /*is_inplace_op=*/false);
  return output;
}

GatedGradients gated_act_backward_autograd(const Tensor& grad, const GatedTensors& t, const GatedCall& call,
                                           bool grad_bias, bool grad_other_bias) {
  if (autograd::compute_requires_grad(grad) || differentiable(t) || is_dual(grad) || dual(t))
    return composed_backward(grad, t, call, grad_bias, grad_other_bias);
  at::AutoDispatchBelowADInplaceOrView below;
  return gated_act_backward(grad, t, call, grad_bias, grad_other_bias);
}

// ---- vmap: the batch dim becomes one more dim of the input, in front ------------------------------------------------

using at::functorch::makeBatched;

OptTensor optional(const Tensor& x) { return x.defined() ? OptTensor(x) : OptTensor(); }

// One call below vmap. A sample without dims gets one. Where a bias belongs to one sample, or its gradient does, it is added
// beforehand, in the compute dtype, so that there is still one rounding.
struct Below {
  int64_t rank;  // of one sample
  GatedCall call;
  Tensor input;
  OptTensor other, bias, other_bias;

  Below(const Physical& x, const Physical& o, const Physical& b, const Physical& ob, const GatedCall& outer,
        const Level& level, bool add)
      : rank(x.tensor.dim() - x.batched), call(outer) {
    const int64_t dims = std::max<int64_t>(rank, 1);
    TORCH_CHECK_VALUE(outer.dim >= -dims && outer.dim < dims, "fusedact (gated_act, ", outer.activation, "): dim is ",
                      outer.dim, ", but the input has ", rank, " dims under vmap: it must be in [", -dims, ", ",
                      dims - 1, "]");
    call.dim = (outer.dim < 0 ? outer.dim + dims : outer.dim) + 1;
    input = enter(with_batch(x, level));
    if (o.tensor.defined()) other = enter(with_batch(o, level));
    if (!add) {
      bias = optional(b.tensor);
      other_bias = optional(ob.tensor);
      return;
    }
    input = with_bias(input, b);
    if (other) other = with_bias(*other, ob);
  }

  Tensor enter(const Tensor& x) const { return rank == 0 ? x.unsqueeze(-1) : x; }
  Tensor leave(const Tensor& x) const { return rank == 0 ? x.squeeze(-1) : x; }
  GatedTensors tensors() const { return {input, other, bias, other_bias}; }

  Tensor with_bias(const Tensor& x, const Physical& b) const {
    Tensor wide = to_compute(x);
    if (!b.tensor.defined()) return wide;
    TORCH_CHECK_VALUE(b.tensor.dim() - b.batched == 1 && b.tensor.sym_size(-1) == x.sym_size(call.dim),
                      "fusedact (gated_act, ", call.activation, "): bias has shape ",
                      b.tensor.sym_sizes().slice(b.batched), " under vmap, but it must have one dim of ",
                      x.sym_size(call.dim));
    c10::SymDimVector shape(x.dim(), 1);
    shape[call.dim] = x.sym_size(call.dim);
    if (b.batched) shape[0] = b.tensor.sym_size(0);
    return wide + b.tensor.to(wide.scalar_type()).reshape_symint(shape);
  }
};

Tensor gated_act_batched(const GatedTensors& t, const GatedCall& call) {
  Level level{&t.input, if_any(t.other), if_any(t.bias), if_any(t.other_bias)};
  const Physical x = physical(t.input, level), o = physical(t.other, level), b = physical(t.bias, level),
                 ob = physical(t.other_bias, level);
  const Below inner(x, o, b, ob, call, level, b.batched || ob.batched);
  Tensor y = gated_act(inner.tensors(), inner.call).to(x.tensor.scalar_type());
  return makeBatched(inner.leave(y), 0, level.id);
}

// The sum over all dims but the first and `dim`.
Tensor sum_of_samples(const Tensor& x, int64_t dim) {
  c10::SmallVector<int64_t, 5> others;
  for (int64_t d = 1; d < x.dim(); ++d)
    if (d != dim) others.push_back(d);
  return others.empty() ? x : x.sum(others);
}

GatedGradients gated_act_backward_batched(const Tensor& grad, const GatedTensors& t, const GatedCall& call,
                                          bool grad_bias, bool grad_other_bias) {
  Level level{&grad, &t.input, if_any(t.other), if_any(t.bias), if_any(t.other_bias)};
  const Physical g = physical(grad, level), x = physical(t.input, level), o = physical(t.other, level),
                 b = physical(t.bias, level), ob = physical(t.other_bias, level);
  const bool add = b.batched || ob.batched || grad_bias || grad_other_bias;
  const Below inner(x, o, b, ob, call, level, add);
  Tensor incoming = inner.enter(with_batch(g, level));
  if (add) incoming = to_compute(incoming);
  auto [of_input, of_other, none, nor] = gated_act_backward(incoming, inner.tensors(), inner.call, false, false);
  auto result = [&](const Tensor& each) {
    return makeBatched(inner.leave(each.to(g.tensor.scalar_type())), 0, level.id);
  };
  auto sum = [&](const Tensor& each, const Physical& bias, bool asked) {
    if (!asked) return nothing(incoming);
    return makeBatched(sum_of_samples(each, inner.call.dim).to(bias.tensor.scalar_type()), 0, level.id);
  };
  return {result(of_input), inner.other ? result(of_other) : of_other, sum(of_input, b, grad_bias),
          sum(of_other, ob, grad_other_bias)};
}

// ---- autocast: the biases follow the input, and of two tensors the narrower follows the wider -----------------------

OptTensor fitted(const OptTensor& bias, const Tensor& x) {
  if (!bias || !at::isFloatingType(x.scalar_type()) || !at::isFloatingType(bias->scalar_type()) ||
      bias->scalar_type() == x.scalar_type())
    return bias;
  return bias->to(compute_dtype(x.scalar_type()));
}

template <c10::DispatchKey key>
Tensor gated_act_autocast(const GatedTensors& t, const GatedCall& call) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  Tensor input = t.input;
  OptTensor other = t.other;
  if (other && at::isFloatingType(input.scalar_type()) && at::isFloatingType(other->scalar_type())) {
    const at::ScalarType wide = c10::promoteTypes(input.scalar_type(), other->scalar_type());
    input = input.to(wide);
    other = other->to(wide);
  }
  const OptTensor bias = fitted(t.bias, input), other_bias = fitted(t.other_bias, input);
  return gated_act({input, other, bias, other_bias}, call);
}

}  // namespace

std::vector<NodeType> gated_node_types() { return {{typeid(GatedActBackward0), "GatedActBackward0"}}; }

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("gated_act", FlatGated<gated_act_autograd>::call);
  m.impl("gated_act_backward", FlatGated<gated_act_backward_autograd>::call);
}

TORCH_LIBRARY_IMPL(fusedact, FuncTorchBatched, m) {
  m.impl("gated_act", FlatGated<gated_act_batched>::call);
  m.impl("gated_act_backward", FlatGated<gated_act_backward_batched>::call);
}

TORCH_LIBRARY_IMPL(fusedact, AutocastCPU, m) {
  m.impl("gated_act", FlatGated<gated_act_autocast<c10::DispatchKey::AutocastCPU>>::call);
}
TORCH_LIBRARY_IMPL(fusedact, AutocastCUDA, m) {
  m.impl("gated_act", FlatGated<gated_act_autocast<c10::DispatchKey::AutocastCUDA>>::call);
}

}  // namespace fusedact
