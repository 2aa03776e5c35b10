// The softmax operators: schema, checks, kernels for the CPU, CUDA and Meta. No maths, no loops;
// derivatives are in autograd.cpp.
#include "ops.h"

#include <torch/library.h>

#include "../device.h"
#include "../reasons.h"
#include "kernels.h"

namespace fusedact {
namespace {

const char* name_of(bool log) { return log ? "log_softmax" : "softmax"; }

int64_t check_backward(const Tensor& grad, const Tensor& output, const OptTensor& bias, int64_t dim, bool log,
                       bool grad_bias) {
  int64_t positive = check_softmax(grad, bias, dim, log);
  Reasons reasons;
  if (output.scalar_type() != grad.scalar_type())
    reasons.add_dtype("grad is ", fusedact::name_of(grad.scalar_type()), ", but the output is ",
                      fusedact::name_of(output.scalar_type()));
  if (output.sym_sizes() != grad.sym_sizes())
    reasons.add("grad has shape ", grad.sym_sizes(), ", but the output has ", output.sym_sizes());
  if (output.device() != grad.device())
    reasons.add("grad is on ", grad.device(), ", but the output is on ", output.device());
  if (grad_bias && !bias) reasons.add("a gradient for the bias is asked for, but there is no bias");
  reasons.raise_if_any(name_of(log));
  return positive;
}

// ---- kernels --------------------------------------------------------------------------------------------------------

Tensor softmax_dense(const Tensor& input, const OptTensor& bias, int64_t dim, bool log) {
  dim = check_softmax(input, bias, dim, log);
  Tensor y = empty_as(input);
  if (input.numel() == 0) return y;
  bool gapped = !input.is_non_overlapping_and_dense();
  if (gapped) y.copy_(input);
  OptTensor bias_vector = contiguous(bias);
  const SoftmaxArgs args{.shape = shape_of(y, dim),
                         .dtype = to_dtype(input.scalar_type()),
                         .log = log,
                         .x = (gapped ? y : input).const_data_ptr(),
                         .bias = vector_of(bias_vector, Extent::channel),
                         .y = y.mutable_data_ptr(),
                         .parallel = parallel};
  on_device_of(y, [&] { cpu::softmax(args); }, [&](cuda::Queue& q) { cuda::softmax(args, q.stream); });
  return y;
}

SoftmaxGradients softmax_backward_dense(const Tensor& grad, const Tensor& output, const OptTensor& bias, int64_t dim,
                                        bool log, bool grad_bias) {
  dim = check_backward(grad, output, bias, dim, log, grad_bias);
  Tensor bias_sum = sum_like(bias, grad_bias, grad);
  if (grad.numel() == 0) return {empty_as(output), bias_sum};

  Tensor y = dense(output), g = laid_out_as(grad, y);
  Tensor grad_x = g.is_same(grad) ? gradient_as(y) : g;  // a copy of our own is written over
  const SoftmaxBackwardArgs args{.shape = shape_of(y, dim),
                                 .dtype = to_dtype(y.scalar_type()),
                                 .log = log,
                                 .grad = g.const_data_ptr(),
                                 .y = y.const_data_ptr(),
                                 .grad_x = grad_x.mutable_data_ptr(),
                                 .grad_bias = sum_of(bias_sum, grad_bias),
                                 .parallel = parallel};
  on_device_of(
      y, [&] { cpu::softmax_backward(args); },
      [&](cuda::Queue& q) { cuda::softmax_backward(args, q.room(cuda::workspace_bytes(args)), q.stream); });
  return {std::move(grad_x), std::move(bias_sum)};
}

// ---- Meta -----------------------------------------------------------------------------------------------------------

Tensor softmax_meta(const Tensor& input, const OptTensor& bias, int64_t dim, bool log) {
  check_softmax(input, bias, dim, log);
  return empty_like_meta(input);
}

SoftmaxGradients softmax_backward_meta(const Tensor& grad, const Tensor& output, const OptTensor& bias, int64_t dim,
                                       bool log, bool grad_bias) {
  check_backward(grad, output, bias, dim, log, grad_bias);
  return {empty_like_meta(output), sum_like(bias, grad_bias, grad)};
}

}  // namespace

int64_t check_softmax(const Tensor& input, const OptTensor& bias, int64_t dim, bool log) {
  Reasons reasons;
  check_input(reasons, input);
  dim = check_dim(reasons, input, dim);
  if (bias && dim >= 0) check_channels(reasons, "bias", *bias, input, dim);
  reasons.raise_if_any(name_of(log));
  return dim;
}

// ---- schema ---------------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fusedact, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("softmax(Tensor input, Tensor? bias, int dim, bool log) -> Tensor", tags);
  m.def(
      "softmax_backward(Tensor grad, Tensor output, Tensor? bias, int dim, bool log, bool grad_bias)"
      " -> (Tensor grad_input, Tensor grad_bias)",
      tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("softmax", softmax_dense);
  m.impl("softmax_backward", softmax_backward_dense);
}
#if defined(FUSEDACT_CUDA)
TORCH_LIBRARY_IMPL(fusedact, CUDA, m) {
  m.impl("softmax", softmax_dense);
  m.impl("softmax_backward", softmax_backward_dense);
}
#endif

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("softmax", softmax_meta);
  m.impl("softmax_backward", softmax_backward_meta);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"softmax", "softmax_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<raise_no_kernel>());
}

// ---- the operators as functions -------------------------------------------------------------------------------------

Tensor softmax(const Tensor& input, const OptTensor& bias, int64_t dim, bool log) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusedact::softmax", "").typed<decltype(softmax)>();
  return op.call(input, bias, dim, log);
}

SoftmaxGradients softmax_backward(const Tensor& grad, const Tensor& output, const OptTensor& bias, int64_t dim,
                                  bool log, bool grad_bias) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fusedact::softmax_backward", "")
                       .typed<decltype(softmax_backward)>();
  return op.call(grad, output, bias, dim, log, grad_bias);
}

}  // namespace fusedact
