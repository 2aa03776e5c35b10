// The operators for recurrent cells: schema, checks, kernels for the CPU, CUDA and Meta. No maths, no loops; derivatives are in
// autograd.cpp.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../device.h"
#include "../reasons.h"
#include "kernels.h"

namespace fusedact {
namespace {

// ---- checks ---------------------------------------------------------------------------------------------------------

// Gates of `count` times as many elements in the last dim as the state, and as many rows.
void check_gates(Reasons& reasons, const char* name, const Tensor& gates, int64_t count, const char* state_name,
                 const Tensor& state) {
  if (gates.scalar_type() != state.scalar_type())
    reasons.add_dtype(name, " is ", name_of(gates.scalar_type()), ", but ", state_name, " is ",
                      name_of(state.scalar_type()), ": they must be the same");
  if (gates.device() != state.device())
    reasons.add(name, " is on ", gates.device(), ", but ", state_name, " is on ", state.device(),
                ": move one with .to()");
  bool fits = gates.dim() == state.dim() && state.dim() > 0 && gates.sym_size(-1) == count * state.sym_size(-1);
  for (int64_t d = 0; fits && d + 1 < state.dim(); ++d) fits = gates.sym_size(d) == state.sym_size(d);
  if (!fits)
    reasons.add(name, " has shape ", gates.sym_sizes(), ", but ", state_name, " has ", state.sym_sizes(),
                ": it must be [..., ", count, " * hidden] for a ", state_name, " of [..., hidden]");
}

void check_state(Reasons& reasons, const char* name, const Tensor& state, const Tensor& like) {
  if (state.scalar_type() != like.scalar_type())
    reasons.add_dtype(name, " is ", name_of(state.scalar_type()), ", but it must be ", name_of(like.scalar_type()));
  if (state.sym_sizes() != like.sym_sizes())
    reasons.add(name, " has shape ", state.sym_sizes(), ", but it must have ", like.sym_sizes());
}

void check_optional_bias(Reasons& reasons, const char* name, const OptTensor& bias, const Tensor& gates) {
  if (bias && gates.dim() > 0) check_channels(reasons, name, *bias, gates, gates.dim() - 1);
}

void check_lstm(const Tensor& gates, const Tensor& c, const OptTensor& bias) {
  Reasons reasons;
  check_input(reasons, gates, "gates");
  check_gates(reasons, "gates", gates, 4, "c", c);
  check_optional_bias(reasons, "bias", bias, gates);
  reasons.raise_if_any("lstm_cell_act");
}

void check_lstm_backward(const OptTensor& grad_h, const OptTensor& grad_c_new, const Tensor& gates, const Tensor& c,
                         const OptTensor& bias, bool grad_bias) {
  check_lstm(gates, c, bias);
  Reasons reasons;
  if (grad_h) check_state(reasons, "grad_h", *grad_h, c);
  if (grad_c_new) check_state(reasons, "grad_c_new", *grad_c_new, c);
  if (grad_bias && !bias) reasons.add("a gradient for the bias is asked for, but there is no bias");
  reasons.raise_if_any("lstm_cell_act");
}

void check_gru(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
               const OptTensor& hidden_bias) {
  Reasons reasons;
  check_input(reasons, h, "h");
  check_gates(reasons, "input_gates", input_gates, 3, "h", h);
  check_gates(reasons, "hidden_gates", hidden_gates, 3, "h", h);
  check_optional_bias(reasons, "input_bias", input_bias, input_gates);
  check_optional_bias(reasons, "hidden_bias", hidden_bias, hidden_gates);
  reasons.raise_if_any("gru_cell_act");
}

void check_gru_backward(const Tensor& grad, const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h,
                        const OptTensor& input_bias, const OptTensor& hidden_bias, bool grad_input_bias,
                        bool grad_hidden_bias) {
  check_gru(input_gates, hidden_gates, h, input_bias, hidden_bias);
  Reasons reasons;
  check_state(reasons, "grad", grad, h);
  if ((grad_input_bias && !input_bias) || (grad_hidden_bias && !hidden_bias))
    reasons.add("a gradient for a bias is asked for, but there is no such bias");
  reasons.raise_if_any("gru_cell_act");
}

// ---- kernels --------------------------------------------------------------------------------------------------------

// The last dim is that of the hidden units, all before it are rows.
int64_t hidden_of(const Tensor& state) { return state.size(-1); }
int64_t rows_of(const Tensor& state) { return state.numel() / std::max<int64_t>(1, hidden_of(state)); }

Tensor empty_contiguous(const Tensor& like) {
  std::vector<int64_t> strides(like.dim(), 1);
  for (int64_t d = like.dim() - 2; d >= 0; --d) strides[d] = strides[d + 1] * std::max<int64_t>(1, like.size(d + 1));
  return empty_on(like, like.sizes(), strides, like.scalar_type());
}

const void* data_of(const OptTensor& x) { return x ? x->const_data_ptr() : nullptr; }

LstmState lstm_dense(const Tensor& gates, const Tensor& c, const OptTensor& bias) {
  check_lstm(gates, c, bias);
  Tensor v = gates.contiguous(), before = c.contiguous(), h = empty_contiguous(c), after = empty_contiguous(c);
  OptTensor b = contiguous(bias);
  const LstmArgs args{.rows = rows_of(c),
                      .hidden = hidden_of(c),
                      .dtype = to_dtype(c.scalar_type()),
                      .gates = v.const_data_ptr(),
                      .bias = vector_of(b, Extent::channel),
                      .c = before.const_data_ptr(),
                      .h = h.mutable_data_ptr(),
                      .c_new = after.mutable_data_ptr(),
                      .parallel = parallel};
  on_device_of(c, [&] { cpu::lstm_cell_act(args); }, [&](cuda::Queue& q) { cuda::lstm_cell_act(args, q.stream); });
  return {std::move(h), std::move(after)};
}

LstmGradients lstm_backward_dense(const OptTensor& grad_h, const OptTensor& grad_c_new, const Tensor& gates,
                                  const Tensor& c, const OptTensor& bias, bool grad_bias) {
  check_lstm_backward(grad_h, grad_c_new, gates, c, bias, grad_bias);
  Tensor v = gates.contiguous(), before = c.contiguous(), bias_sum = sum_like(bias, grad_bias, gates);
  OptTensor gh = contiguous(grad_h), gc = contiguous(grad_c_new), b = contiguous(bias);
  Tensor grad_gates = empty_contiguous(gates), grad_c = empty_contiguous(c);
  const LstmBackwardArgs args{.rows = rows_of(c),
                              .hidden = hidden_of(c),
                              .dtype = to_dtype(c.scalar_type()),
                              .grad_h = data_of(gh),
                              .grad_c_new = data_of(gc),
                              .gates = v.const_data_ptr(),
                              .bias = vector_of(b, Extent::channel),
                              .c = before.const_data_ptr(),
                              .grad_gates = grad_gates.mutable_data_ptr(),
                              .grad_c = grad_c.mutable_data_ptr(),
                              .grad_bias = sum_of(bias_sum, grad_bias),
                              .parallel = parallel};
  on_device_of(
      c, [&] { cpu::lstm_cell_act_backward(args); },
      [&](cuda::Queue& q) { cuda::lstm_cell_act_backward(args, q.room(cuda::workspace_bytes(args)), q.stream); });
  return {std::move(grad_gates), std::move(grad_c), std::move(bias_sum)};
}

Tensor gru_dense(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
                 const OptTensor& hidden_bias) {
  check_gru(input_gates, hidden_gates, h, input_bias, hidden_bias);
  Tensor input = input_gates.contiguous(), hidden = hidden_gates.contiguous(), before = h.contiguous();
  Tensor after = empty_contiguous(h);
  OptTensor b_input = contiguous(input_bias), b_hidden = contiguous(hidden_bias);
  const GruArgs args{.rows = rows_of(h),
                     .hidden = hidden_of(h),
                     .dtype = to_dtype(h.scalar_type()),
                     .input_gates = input.const_data_ptr(),
                     .hidden_gates = hidden.const_data_ptr(),
                     .input_bias = vector_of(b_input, Extent::channel),
                     .hidden_bias = vector_of(b_hidden, Extent::channel),
                     .h = before.const_data_ptr(),
                     .h_new = after.mutable_data_ptr(),
                     .parallel = parallel};
  on_device_of(h, [&] { cpu::gru_cell_act(args); }, [&](cuda::Queue& q) { cuda::gru_cell_act(args, q.stream); });
  return after;
}

GruGradients gru_backward_dense(const Tensor& grad, const Tensor& input_gates, const Tensor& hidden_gates,
                                const Tensor& h, const OptTensor& input_bias, const OptTensor& hidden_bias,
                                bool grad_input_bias, bool grad_hidden_bias) {
  check_gru_backward(grad, input_gates, hidden_gates, h, input_bias, hidden_bias, grad_input_bias, grad_hidden_bias);
  Tensor g = grad.contiguous(), input = input_gates.contiguous(), hidden = hidden_gates.contiguous(),
         before = h.contiguous();
  OptTensor b_input = contiguous(input_bias), b_hidden = contiguous(hidden_bias);
  Tensor grad_input = empty_contiguous(input), grad_hidden = empty_contiguous(hidden), grad_h = empty_contiguous(h);
  Tensor input_sum = sum_like(input_bias, grad_input_bias, grad);
  Tensor hidden_sum = sum_like(hidden_bias, grad_hidden_bias, grad);
  const GruBackwardArgs args{.rows = rows_of(h),
                             .hidden = hidden_of(h),
                             .dtype = to_dtype(h.scalar_type()),
                             .grad = g.const_data_ptr(),
                             .input_gates = input.const_data_ptr(),
                             .hidden_gates = hidden.const_data_ptr(),
                             .input_bias = vector_of(b_input, Extent::channel),
                             .hidden_bias = vector_of(b_hidden, Extent::channel),
                             .h = before.const_data_ptr(),
                             .grad_input_gates = grad_input.mutable_data_ptr(),
                             .grad_hidden_gates = grad_hidden.mutable_data_ptr(),
                             .grad_h = grad_h.mutable_data_ptr(),
                             .grad_input_bias = sum_of(input_sum, grad_input_bias),
                             .grad_hidden_bias = sum_of(hidden_sum, grad_hidden_bias),
                             .parallel = parallel};
  on_device_of(
      h, [&] { cpu::gru_cell_act_backward(args); },
      [&](cuda::Queue& q) { cuda::gru_cell_act_backward(args, q.room(cuda::workspace_bytes(args)), q.stream); });
  return {std::move(grad_input), std::move(grad_hidden), std::move(grad_h), std::move(input_sum),
          std::move(hidden_sum)};
}

// ---- Meta -----------------------------------------------------------------------------------------------------------

Tensor empty_contiguous_meta(const Tensor& like) { return at::empty_symint(like.sym_sizes(), like.options()); }

LstmState lstm_meta(const Tensor& gates, const Tensor& c, const OptTensor& bias) {
  check_lstm(gates, c, bias);
  return {empty_contiguous_meta(c), empty_contiguous_meta(c)};
}

LstmGradients lstm_backward_meta(const OptTensor& grad_h, const OptTensor& grad_c_new, const Tensor& gates,
                                 const Tensor& c, const OptTensor& bias, bool grad_bias) {
  check_lstm_backward(grad_h, grad_c_new, gates, c, bias, grad_bias);
  return {empty_contiguous_meta(gates), empty_contiguous_meta(c), sum_like(bias, grad_bias, gates)};
}

Tensor gru_meta(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
                const OptTensor& hidden_bias) {
  check_gru(input_gates, hidden_gates, h, input_bias, hidden_bias);
  return empty_contiguous_meta(h);
}

GruGradients gru_backward_meta(const Tensor& grad, const Tensor& input_gates, const Tensor& hidden_gates,
                               const Tensor& h, const OptTensor& input_bias, const OptTensor& hidden_bias,
                               bool grad_input_bias, bool grad_hidden_bias) {
  check_gru_backward(grad, input_gates, hidden_gates, h, input_bias, hidden_bias, grad_input_bias, grad_hidden_bias);
  return {empty_contiguous_meta(input_gates), empty_contiguous_meta(hidden_gates), empty_contiguous_meta(h),
          sum_like(input_bias, grad_input_bias, grad), sum_like(hidden_bias, grad_hidden_bias, grad)};
}

}  // namespace

// ---- schema ---------------------------------------------------------------------------------------------------------

#define FUSEDACT_GRU "Tensor input_gates, Tensor hidden_gates, Tensor h, Tensor? input_bias, Tensor? hidden_bias"

TORCH_LIBRARY_FRAGMENT(fusedact, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("lstm_cell_act(Tensor gates, Tensor c, Tensor? bias) -> (Tensor h, Tensor c_new)", tags);
  m.def(
      "lstm_cell_act_backward(Tensor? grad_h, Tensor? grad_c_new, Tensor gates, Tensor c, Tensor? bias, bool grad_bias)"
      " -> (Tensor grad_gates, Tensor grad_c, Tensor grad_bias)",
      tags);
  m.def("gru_cell_act(" FUSEDACT_GRU ") -> Tensor", tags);
  m.def("gru_cell_act_backward(Tensor grad, " FUSEDACT_GRU
        ", bool grad_input_bias, bool grad_hidden_bias) -> (Tensor grad_input_gates, Tensor grad_hidden_gates, "
        "Tensor grad_h, Tensor grad_input_bias, Tensor grad_hidden_bias)",
        tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("lstm_cell_act", lstm_dense);
  m.impl("lstm_cell_act_backward", lstm_backward_dense);
  m.impl("gru_cell_act", gru_dense);
  m.impl("gru_cell_act_backward", gru_backward_dense);
}
#if defined(FUSEDACT_CUDA)
TORCH_LIBRARY_IMPL(fusedact, CUDA, m) {
  m.impl("lstm_cell_act", lstm_dense);
  m.impl("lstm_cell_act_backward", lstm_backward_dense);
  m.impl("gru_cell_act", gru_dense);
  m.impl("gru_cell_act_backward", gru_backward_dense);
}
#endif

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("lstm_cell_act", lstm_meta);
  m.impl("lstm_cell_act_backward", lstm_backward_meta);
  m.impl("gru_cell_act", gru_meta);
  m.impl("gru_cell_act_backward", gru_backward_meta);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"lstm_cell_act", "lstm_cell_act_backward", "gru_cell_act", "gru_cell_act_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<raise_no_kernel>());
}

// ---- the operators as functions -------------------------------------------------------------------------------------

namespace {

template <class Signature>
auto handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

LstmState lstm_cell_act(const Tensor& gates, const Tensor& c, const OptTensor& bias) {
  static auto op = handle<decltype(lstm_cell_act)>("fusedact::lstm_cell_act");
  return op.call(gates, c, bias);
}

LstmGradients lstm_cell_act_backward(const OptTensor& grad_h, const OptTensor& grad_c_new, const Tensor& gates,
                                     const Tensor& c, const OptTensor& bias, bool grad_bias) {
  static auto op = handle<decltype(lstm_cell_act_backward)>("fusedact::lstm_cell_act_backward");
  return op.call(grad_h, grad_c_new, gates, c, bias, grad_bias);
}

Tensor gru_cell_act(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
                    const OptTensor& hidden_bias) {
  static auto op = handle<decltype(gru_cell_act)>("fusedact::gru_cell_act");
  return op.call(input_gates, hidden_gates, h, input_bias, hidden_bias);
}

GruGradients gru_cell_act_backward(const Tensor& grad, const Tensor& input_gates, const Tensor& hidden_gates,
                                   const Tensor& h, const OptTensor& input_bias, const OptTensor& hidden_bias,
                                   bool grad_input_bias, bool grad_hidden_bias) {
  static auto op = handle<decltype(gru_cell_act_backward)>("fusedact::gru_cell_act_backward");
  return op.call(grad, input_gates, hidden_gates, h, input_bias, hidden_bias, grad_input_bias, grad_hidden_bias);
}

}  // namespace fusedact
