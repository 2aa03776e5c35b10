// Every other dispatch key of the operators for recurrent cells: derivatives, autocast, vmap. First derivatives are fused;
// tangents and the derivatives of backward are compositions of differentiable operators. No loops.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/result_type.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros_like.h>
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

OptTensor optional(const Tensor& x) { return x.defined() ? OptTensor(x) : OptTensor(); }
SavedVariable saved(const OptTensor& x) { return x ? SavedVariable(*x, false) : SavedVariable(); }

// ---- compositions: the formulas of kernels.h over differentiable tensors --------------------------------------------

Tensor to_compute(const Tensor& x) { return x.to(compute_dtype(x.scalar_type())); }
Tensor with_bias(const Tensor& gates, const OptTensor& bias) {
  Tensor v = to_compute(gates);
  return bias ? v + bias->to(v.scalar_type()) : v;
}
Tensor plus(const Tensor& a, const Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }
Tensor slope_of_sigmoid(const Tensor& s) { return s * (1 - s); }
Tensor slope_of_tanh(const Tensor& t) { return 1 - t * t; }
Tensor empty_sum(const Tensor& like) { return at::empty({0}, like.options()); }
// The gradient of a bias, from that of its gates [..., n].
Tensor bias_sum(const Tensor& grad, const OptTensor& bias) {
  return composite::sum_along(grad, grad.dim() - 1).to(bias->scalar_type());
}

struct Lstm {
  Tensor i, f, g, o, c, seen;  // seen = tanh(c_new)
  Lstm(const Tensor& gates, const Tensor& c, const OptTensor& bias) : c(to_compute(c)) {
    std::vector<Tensor> v = with_bias(gates, bias).chunk(4, -1);
    i = v[0].sigmoid(), f = v[1].sigmoid(), g = v[2].tanh(), o = v[3].sigmoid();
    seen = (f * this->c + i * g).tanh();
  }
};

LstmGradients composite_backward(const OptTensor& grad_h, const OptTensor& grad_c_new, const Tensor& gates,
                                 const Tensor& c, const OptTensor& bias, bool grad_bias) {
  Lstm p(gates, c, bias);
  Tensor gh = grad_h ? to_compute(*grad_h) : at::zeros_like(p.c);
  Tensor gc = gh * p.o * slope_of_tanh(p.seen);
  if (grad_c_new) gc = gc + to_compute(*grad_c_new);
  Tensor grad_gates = at::cat({gc * p.g * slope_of_sigmoid(p.i), gc * p.c * slope_of_sigmoid(p.f),
                               gc * p.i * slope_of_tanh(p.g), gh * p.seen * slope_of_sigmoid(p.o)},
                              -1);
  Tensor sum = grad_bias ? bias_sum(grad_gates, bias) : empty_sum(gates);
  return {grad_gates.to(gates.scalar_type()), (gc * p.f).to(c.scalar_type()), sum};
}

// How h and c_new move.
LstmState lstm_tangent(const Tensor& gates, const Tensor& c, const OptTensor& bias) {
  Lstm p(primal_of(gates), primal_of(c), primal_of(bias));
  Tensor dv = tangent_of(gates), db = tangent_of(bias), dc = tangent_of(c), moved_c, moved_h;
  if (dv.defined()) dv = to_compute(dv);
  if (db.defined()) dv = plus(dv, db.to(p.c.scalar_type()).expand_symint(gates.sym_sizes()));
  if (dc.defined()) moved_c = p.f * to_compute(dc);
  if (dv.defined()) {
    std::vector<Tensor> d = dv.chunk(4, -1);
    moved_c = plus(moved_c, p.g * slope_of_sigmoid(p.i) * d[0] + p.c * slope_of_sigmoid(p.f) * d[1] +
                                p.i * slope_of_tanh(p.g) * d[2]);
    moved_h = p.seen * slope_of_sigmoid(p.o) * d[3];
  }
  moved_h = plus(moved_h, p.o * slope_of_tanh(p.seen) * moved_c);
  return {moved_h.to(c.scalar_type()), moved_c.to(c.scalar_type())};
}

struct Gru {
  Tensor r, z, n, hidden_n, h;
  Gru(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
      const OptTensor& hidden_bias)
      : h(to_compute(h)) {
    std::vector<Tensor> input = with_bias(input_gates, input_bias).chunk(3, -1);
    std::vector<Tensor> hidden = with_bias(hidden_gates, hidden_bias).chunk(3, -1);
    hidden_n = hidden[2];
    r = (input[0] + hidden[0]).sigmoid(), z = (input[1] + hidden[1]).sigmoid();
    n = (input[2] + r * hidden_n).tanh();
  }
};

GruGradients composite_backward(const Tensor& grad, const Tensor& input_gates, const Tensor& hidden_gates,
                                const Tensor& h, const OptTensor& input_bias, const OptTensor& hidden_bias,
                                bool grad_input_bias, bool grad_hidden_bias) {
  Gru p(input_gates, hidden_gates, h, input_bias, hidden_bias);
  Tensor g = to_compute(grad);
  Tensor of_z = g * (p.h - p.n) * slope_of_sigmoid(p.z), of_n = g * (1 - p.z) * slope_of_tanh(p.n);
  Tensor of_r = of_n * p.hidden_n * slope_of_sigmoid(p.r);
  Tensor grad_input = at::cat({of_r, of_z, of_n}, -1), grad_hidden = at::cat({of_r, of_z, of_n * p.r}, -1);
  Tensor input_sum = grad_input_bias ? bias_sum(grad_input, input_bias) : empty_sum(grad);
  Tensor hidden_sum = grad_hidden_bias ? bias_sum(grad_hidden, hidden_bias) : empty_sum(grad);
  at::ScalarType dtype = h.scalar_type();
  return {grad_input.to(dtype), grad_hidden.to(dtype), (g * p.z).to(dtype), input_sum, hidden_sum};
}

Tensor gru_tangent(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
                   const OptTensor& hidden_bias) {
  Gru p(primal_of(input_gates), primal_of(hidden_gates), primal_of(h), primal_of(input_bias), primal_of(hidden_bias));
  auto moved = [&](const Tensor& gates, const OptTensor& bias) -> std::vector<Tensor> {
    Tensor d = tangent_of(gates), db = tangent_of(bias);
    if (d.defined()) d = to_compute(d);
    if (db.defined()) d = plus(d, db.to(p.h.scalar_type()).expand_symint(gates.sym_sizes()));
    return d.defined() ? d.chunk(3, -1) : std::vector<Tensor>(3);
  };
  std::vector<Tensor> input = moved(input_gates, input_bias), hidden = moved(hidden_gates, hidden_bias);
  Tensor result, dr = plus(input[0], hidden[0]), dz = plus(input[1], hidden[1]), dn = input[2], dh = tangent_of(h);
  if (hidden[2].defined()) dn = plus(dn, p.r * hidden[2]);
  if (dr.defined()) dn = plus(dn, p.hidden_n * slope_of_sigmoid(p.r) * dr);
  if (dn.defined()) result = (1 - p.z) * slope_of_tanh(p.n) * dn;
  if (dz.defined()) result = plus(result, (p.h - p.n) * slope_of_sigmoid(p.z) * dz);
  if (dh.defined()) result = plus(result, p.z * to_compute(dh));
  return result.to(h.scalar_type());
}

// ---- Nodes ----------------------------------------------------------------------------------------------------------

struct LstmCellActBackward0 final : autograd::Node {
  SavedVariable gates, c, bias;

  std::string name() const override { return "LstmCellActBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    gates.reset_data();
    c.reset_data();
    bias.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    bool to_bias = task_should_compute_output(2);
    auto [of_gates, of_c, of_bias] = lstm_cell_act_backward(optional(grads[0]), optional(grads[1]), gates.unpack(),
                                                            c.unpack(), optional(bias.unpack()), to_bias);
    if (task_should_compute_output(0)) result[0] = std::move(of_gates);
    if (task_should_compute_output(1)) result[1] = std::move(of_c);
    if (to_bias) result[2] = std::move(of_bias);
    return result;
  }
};

struct GruCellActBackward0 final : autograd::Node {
  SavedVariable input_gates, hidden_gates, h, input_bias, hidden_bias;

  std::string name() const override { return "GruCellActBackward0"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* variable : {&input_gates, &hidden_gates, &h, &input_bias, &hidden_bias}) variable->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(5);
    if (!grads[0].defined()) return result;
    bool to_input_bias = task_should_compute_output(3), to_hidden_bias = task_should_compute_output(4);
    auto [of_input, of_hidden, of_h, of_input_bias, of_hidden_bias] = gru_cell_act_backward(
        grads[0], input_gates.unpack(), hidden_gates.unpack(), h.unpack(), optional(input_bias.unpack()),
        optional(hidden_bias.unpack()), to_input_bias, to_hidden_bias);
    if (task_should_compute_output(0)) result[0] = std::move(of_input);
    if (task_should_compute_output(1)) result[1] = std::move(of_hidden);
    if (task_should_compute_output(2)) result[2] = std::move(of_h);
    if (to_input_bias) result[3] = std::move(of_input_bias);
    if (to_hidden_bias) result[4] = std::move(of_hidden_bias);
    return result;
  }
};

// ---- Autograd -------------------------------------------------------------------------------------------------------

LstmState lstm_autograd(const Tensor& gates, const Tensor& c, const OptTensor& bias) {
  LstmState result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = lstm_cell_act(gates, c, bias);
  }
  auto& [h, c_new] = result;
  if (autograd::compute_requires_grad(gates, c, bias)) {
    auto node = c10::make_intrusive<LstmCellActBackward0>();
    node->set_next_edges(autograd::collect_next_edges(gates, c, bias));
    node->gates = SavedVariable(gates, false);
    node->c = SavedVariable(c, false);
    node->bias = saved(bias);
    autograd::set_history(h, node);
    autograd::set_history(c_new, node);
  }
  if (is_dual(gates) || is_dual(c) || is_dual(bias)) {
    auto [moved_h, moved_c] = lstm_tangent(gates, c, bias);
    h._set_fw_grad(moved_h, 0, /*is_inplace_op=*/false);
    c_new._set_fw_grad(moved_c, 0, /*is_inplace_op=*/false);
  }
  return result;
}

LstmGradients lstm_backward_autograd(const OptTensor& grad_h, const OptTensor& grad_c_new, const Tensor& gates,
                                     const Tensor& c, const OptTensor& bias, bool grad_bias) {
  if (autograd::compute_requires_grad(grad_h, grad_c_new, gates, c, bias) || is_dual(grad_h) || is_dual(grad_c_new) ||
      is_dual(gates) || is_dual(c) || is_dual(bias))
    return composite_backward(grad_h, grad_c_new, gates, c, bias, grad_bias);
  at::AutoDispatchBelowADInplaceOrView below;
  return lstm_cell_act_backward(grad_h, grad_c_new, gates, c, bias, grad_bias);
}

Tensor gru_autograd(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
                    const OptTensor& hidden_bias) {
  Tensor h_new;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    h_new = gru_cell_act(input_gates, hidden_gates, h, input_bias, hidden_bias);
  }
  if (autograd::compute_requires_grad(input_gates, hidden_gates, h, input_bias, hidden_bias)) {
    auto node = c10::make_intrusive<GruCellActBackward0>();
    node->set_next_edges(autograd::collect_next_edges(input_gates, hidden_gates, h, input_bias, hidden_bias));
    node->input_gates = SavedVariable(input_gates, false);
    node->hidden_gates = SavedVariable(hidden_gates, false);
    node->h = SavedVariable(h, false);
    node->input_bias = saved(input_bias);
    node->hidden_bias = saved(hidden_bias);
    autograd::set_history(h_new, node);
  }
  if (is_dual(input_gates) || is_dual(hidden_gates) || is_dual(h) || is_dual(input_bias) || is_dual(hidden_bias))
    h_new._set_fw_grad(gru_tangent(input_gates, hidden_gates, h, input_bias, hidden_bias), 0, /*is_inplace_op=*/false);
  return h_new;
}

GruGradients gru_backward_autograd(const Tensor& grad, const Tensor& input_gates, const Tensor& hidden_gates,
                                   const Tensor& h, const OptTensor& input_bias, const OptTensor& hidden_bias,
                                   bool grad_input_bias, bool grad_hidden_bias) {
  if (autograd::compute_requires_grad(grad, input_gates, hidden_gates, h, input_bias, hidden_bias) || is_dual(grad) ||
      is_dual(input_gates) || is_dual(hidden_gates) || is_dual(h) || is_dual(input_bias) || is_dual(hidden_bias))
    return composite_backward(grad, input_gates, hidden_gates, h, input_bias, hidden_bias, grad_input_bias,
                              grad_hidden_bias);
  at::AutoDispatchBelowADInplaceOrView below;
  return gru_cell_act_backward(grad, input_gates, hidden_gates, h, input_bias, hidden_bias, grad_input_bias,
                               grad_hidden_bias);
}

// ---- autocast: gates and state meet in the wider of their dtypes, as in torch's formulas -------------------------------

OptTensor fitted(const OptTensor& bias, at::ScalarType dtype) {
  if (!bias || !bias->is_floating_point() || bias->scalar_type() == dtype) return bias;
  return bias->to(compute_dtype(dtype));
}

template <c10::DispatchKey key>
LstmState lstm_autocast(const Tensor& gates, const Tensor& c, const OptTensor& bias) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  at::ScalarType dtype = at::promote_types(gates.scalar_type(), c.scalar_type());
  return lstm_cell_act(gates.to(dtype), c.to(dtype), fitted(bias, dtype));
}

template <c10::DispatchKey key>
Tensor gru_autocast(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
                    const OptTensor& hidden_bias) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  at::ScalarType dtype =
      at::promote_types(at::promote_types(input_gates.scalar_type(), hidden_gates.scalar_type()), h.scalar_type());
  return gru_cell_act(input_gates.to(dtype), hidden_gates.to(dtype), h.to(dtype), fitted(input_bias, dtype),
                      fitted(hidden_bias, dtype));
}

// ---- vmap: the batch dim becomes one more dim of rows, in front ---------------------------------------------------------

using at::functorch::makeBatched;

// A sample's bias beside gates with the batch dim in front: as it is, or, where each sample has its own, added to them.
OptTensor meet_bias(Tensor& gates, const OptTensor& bias, const Level& level) {
  Physical b = physical(bias, level);
  if (!b.batched) return bias ? OptTensor(b.tensor) : bias;
  c10::SymDimVector shape(gates.dim(), 1);
  shape[0] = b.tensor.sym_size(0);
  shape[gates.dim() - 1] = b.tensor.sym_size(1);
  gates = (gates + b.tensor.reshape_symint(shape)).to(gates.scalar_type());
  return {};
}

OptTensor batched_if_any(const OptTensor& x, const Level& level) {
  return x ? OptTensor(with_batch(physical(x, level), level)) : x;
}

// The gradient of each sample's bias, from that of the gates [B, ..., n].
Tensor batched_bias_sum(const Tensor& grad, const OptTensor& bias, bool asked, const Level& level) {
  if (!asked) return empty_sum(grad);
  Tensor wide = to_compute(grad);
  Tensor sum = wide.dim() == 2 ? wide : wide.flatten(1, -2).sum(1);
  return makeBatched(sum.to(bias->scalar_type()), 0, level.id);
}

LstmState lstm_batched(const Tensor& gates, const Tensor& c, const OptTensor& bias) {
  Level level{&gates, &c, if_any(bias)};
  Tensor v = with_batch(physical(gates, level), level);
  OptTensor below = meet_bias(v, bias, level);
  auto [h, c_new] = lstm_cell_act(v, with_batch(physical(c, level), level), below);
  return {makeBatched(h, 0, level.id), makeBatched(c_new, 0, level.id)};
}

LstmGradients lstm_backward_batched(const OptTensor& grad_h, const OptTensor& grad_c_new, const Tensor& gates,
                                    const Tensor& c, const OptTensor& bias, bool grad_bias) {
  Level level{if_any(grad_h), if_any(grad_c_new), &gates, &c, if_any(bias)};
  Tensor v = with_batch(physical(gates, level), level);
  OptTensor below = meet_bias(v, bias, level);
  auto [of_gates, of_c, none] =
      lstm_cell_act_backward(batched_if_any(grad_h, level), batched_if_any(grad_c_new, level), v,
                             with_batch(physical(c, level), level), below, /*grad_bias=*/false);
  return {makeBatched(of_gates, 0, level.id), makeBatched(of_c, 0, level.id),
          batched_bias_sum(of_gates, bias, grad_bias, level)};
}

Tensor gru_batched(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
                   const OptTensor& hidden_bias) {
  Level level{&input_gates, &hidden_gates, &h, if_any(input_bias), if_any(hidden_bias)};
  Tensor input = with_batch(physical(input_gates, level), level);
  Tensor hidden = with_batch(physical(hidden_gates, level), level);
  OptTensor b_input = meet_bias(input, input_bias, level), b_hidden = meet_bias(hidden, hidden_bias, level);
  Tensor h_new = gru_cell_act(input, hidden, with_batch(physical(h, level), level), b_input, b_hidden);
  return makeBatched(h_new, 0, level.id);
}

GruGradients gru_backward_batched(const Tensor& grad, const Tensor& input_gates, const Tensor& hidden_gates,
                                  const Tensor& h, const OptTensor& input_bias, const OptTensor& hidden_bias,
                                  bool grad_input_bias, bool grad_hidden_bias) {
  Level level{&grad, &input_gates, &hidden_gates, &h, if_any(input_bias), if_any(hidden_bias)};
  Tensor input = with_batch(physical(input_gates, level), level);
  Tensor hidden = with_batch(physical(hidden_gates, level), level);
  OptTensor b_input = meet_bias(input, input_bias, level), b_hidden = meet_bias(hidden, hidden_bias, level);
  auto [of_input, of_hidden, of_h, none, nor] =
      gru_cell_act_backward(with_batch(physical(grad, level), level), input, hidden,
                            with_batch(physical(h, level), level), b_input, b_hidden, false, false);
  return {makeBatched(of_input, 0, level.id), makeBatched(of_hidden, 0, level.id), makeBatched(of_h, 0, level.id),
          batched_bias_sum(of_input, input_bias, grad_input_bias, level),
          batched_bias_sum(of_hidden, hidden_bias, grad_hidden_bias, level)};
}

template <c10::DispatchKey key>
void implement_autocast(torch::Library& m) {
  m.impl("lstm_cell_act", lstm_autocast<key>);
  m.impl("gru_cell_act", gru_autocast<key>);
}

}  // namespace

std::vector<NodeType> cell_node_types() {
  return {NodeType{typeid(LstmCellActBackward0), "LstmCellActBackward0"},
          NodeType{typeid(GruCellActBackward0), "GruCellActBackward0"}};
}

TORCH_LIBRARY_IMPL(fusedact, Autograd, m) {
  m.impl("lstm_cell_act", lstm_autograd);
  m.impl("lstm_cell_act_backward", lstm_backward_autograd);
  m.impl("gru_cell_act", gru_autograd);
  m.impl("gru_cell_act_backward", gru_backward_autograd);
}

TORCH_LIBRARY_IMPL(fusedact, AutocastCPU, m) { implement_autocast<c10::DispatchKey::AutocastCPU>(m); }
TORCH_LIBRARY_IMPL(fusedact, AutocastCUDA, m) { implement_autocast<c10::DispatchKey::AutocastCUDA>(m); }

TORCH_LIBRARY_IMPL(fusedact, FuncTorchBatched, m) {
  m.impl("lstm_cell_act", lstm_batched);
  m.impl("lstm_cell_act_backward", lstm_backward_batched);
  m.impl("gru_cell_act", gru_batched);
  m.impl("gru_cell_act_backward", gru_backward_batched);
}

}  // namespace fusedact
