// The operators' kernels for a device whose back end fulfils kernels.h: allocation, layout, and the call. A device says
// what it is to be current (Guard) and how its three passes are called.
//
// No maths and no loops over elements: a tensor becomes [outer, channels, inner] in the order of its memory.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <torch/library.h>

#include <limits>

#include "checks.h"

namespace fusedact {

// ---- from a checked call to the structs of kernels.h ------------------------------------------------------------------

inline Shape shape_of(const Tensor& x, const Plan& plan) {
  return plan.channels ? fusedact::shape_of(x, plan.dim) : Shape{1, 1, x.numel()};
}

// The weight as the kernels read it: a noise in x's layout, a vector contiguous.
inline OptTensor weight_beside(const Tensor& x, const OptTensor& weight, const Plan& plan) {
  return plan.weight == Extent::full ? OptTensor(laid_out_as(*weight, x)) : contiguous(weight);
}

inline Scalars scalars_of(const Call& call) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return {call.params.data(), call.gain, call.clamp_min.value_or(-infinity), call.clamp_max.value_or(infinity),
          call.clamped()};
}

inline void check_overlap(const Tensor& out, const OptTensor& other) {
  if (other) at::assert_no_partial_overlap(out, *other);
}

// ---- the kernels ------------------------------------------------------------------------------------------------------

template <class Device>
struct Passes {
  // x and y are dense and lie alike; they may be the same.
  static void forward(const Plan& plan, const Tensor& x, const OptTensor& bias, const OptTensor& weight,
                      const Call& call, const Tensor& y, uint8_t* mask) {
    if (x.numel() == 0) return;
    OptTensor bias_vector = contiguous(bias), weight_vector = weight_beside(x, weight, plan);
    Device::forward(plan.activation, {.shape = shape_of(x, plan),
                                      .dtype = to_dtype(x.scalar_type()),
                                      .x = x.const_data_ptr(),
                                      .bias = vector_of(bias_vector, Extent::channel),
                                      .weight = vector_of(weight_vector, plan.weight),
                                      .scalars = scalars_of(call),
                                      .y = y.mutable_data_ptr(),
                                      .mask = mask,
                                      .parallel = parallel});
  }

  // The result in a new dense tensor; a gapped input is gathered into it first and then worked on in place.
  static Tensor forward_new(const Plan& plan, const Tensor& input, const OptTensor& bias, const OptTensor& weight,
                            const Call& call, uint8_t* mask = nullptr) {
    Tensor y = empty_as(input);
    bool gapped = !input.is_non_overlapping_and_dense();
    if (gapped) y.copy_(input);
    forward(plan, gapped ? y : input, bias, weight, call, y, mask);
    return y;
  }

  static Tensor bias_act(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
    Plan plan = check(input, bias, weight, call);
    const typename Device::Guard current(input);
    return forward_new(plan, input, bias, weight, call);
  }

  static void bias_act_inplace(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
    Plan plan = check(input, bias, weight, call);
    const typename Device::Guard current(input);
    at::assert_no_internal_overlap(input);
    check_overlap(input, bias);
    check_overlap(input, weight);
    if (input.is_non_overlapping_and_dense())
      forward(plan, input, bias, weight, call, input, nullptr);
    else
      input.copy_(forward_new(plan, input, bias, weight, call));
  }

  static void bias_act_out(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                           const Tensor& out) {
    Plan plan = check(input, bias, weight, call);
    const typename Device::Guard current(input);
    check_out(input, call, out);
    resize_out(input, out);
    at::assert_no_internal_overlap(out);
    at::assert_no_partial_overlap(out, input);
    check_overlap(out, bias);
    check_overlap(out, weight);
    if (input.is_non_overlapping_and_dense() && same_layout(out, input))
      forward(plan, input, bias, weight, call, out, nullptr);
    else
      out.copy_(forward_new(plan, input, bias, weight, call));
  }

  static Masked bias_act_mask(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
    Plan plan = check(input, bias, weight, call);
    const typename Device::Guard current(input);
    Tensor mask = empty_on(input, {mask_bytes(input.numel())}, {1}, at::kByte);
    Tensor y = forward_new(plan, input, bias, weight, call, mask.mutable_data_ptr<uint8_t>());
    return {std::move(y), std::move(mask)};
  }

  static Gradients bias_act_backward(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                     const OptTensor& weight, const Call& call, bool grad_bias, bool grad_weight) {
    Plan plan = check_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
    const typename Device::Guard current(grad);
    Tensor bias_sum = sum_like(bias, grad_bias, grad), weight_sum = sum_like(weight, grad_weight, grad);
    if (grad.numel() == 0) return {empty_as(plan.save == Saved::mask ? grad : saved), bias_sum, weight_sum};

    Tensor x = plan.save == Saved::mask ? saved.contiguous() : dense(saved);
    Tensor g = plan.save == Saved::mask ? dense(grad) : laid_out_as(grad, x);
    Tensor grad_x = g.is_same(grad) ? gradient_as(g) : g;  // a copy of our own is written over
    OptTensor bias_vector = contiguous(bias), weight_vector = weight_beside(g, weight, plan);
    Device::backward(plan.activation, {.shape = shape_of(g, plan),
                                       .dtype = to_dtype(g.scalar_type()),
                                       .saved_kind = plan.save,
                                       .grad = g.const_data_ptr(),
                                       .saved = x.const_data_ptr(),
                                       .bias = vector_of(bias_vector, Extent::channel),
                                       .weight = vector_of(weight_vector, plan.weight),
                                       .scalars = scalars_of(call),
                                       .grad_x = grad_x.mutable_data_ptr(),
                                       .grad_bias = sum_of(bias_sum, grad_bias),
                                       .grad_weight = sum_of(weight_sum, grad_weight),
                                       .parallel = parallel});
    return {std::move(grad_x), std::move(bias_sum), std::move(weight_sum)};
  }

  static DoubleGradients bias_act_double_backward(const Tensor& u, const Tensor& grad, const Tensor& saved,
                                                  const OptTensor& bias, const Call& call, bool grad_bias) {
    Plan plan = check_double_backward(u, grad, saved, bias, call, grad_bias);
    const typename Device::Guard current(grad);
    Tensor bias_sum = sum_like(bias, grad_bias, grad);
    if (grad.numel() == 0) return {empty_as(saved), empty_as(saved), bias_sum};

    Tensor x = dense(saved), g = laid_out_as(grad, x), w = laid_out_as(u, x);
    Tensor grad_grad = gradient_as(x), grad_x = gradient_as(x);
    OptTensor bias_vector = contiguous(bias);
    Device::double_backward(plan.activation, {.shape = shape_of(x, plan),
                                              .dtype = to_dtype(x.scalar_type()),
                                              .saved_kind = plan.save,
                                              .u = w.const_data_ptr(),
                                              .grad = g.const_data_ptr(),
                                              .saved = x.const_data_ptr(),
                                              .bias = vector_of(bias_vector, Extent::channel),
                                              .scalars = scalars_of(call),
                                              .grad_grad = grad_grad.mutable_data_ptr(),
                                              .grad_x = grad_x.mutable_data_ptr(),
                                              .grad_bias = sum_of(bias_sum, grad_bias),
                                              .parallel = parallel});
    return {std::move(grad_grad), std::move(grad_x), std::move(bias_sum)};
  }

  static void implement(torch::Library& m) {
    m.impl("bias_act", Flat<bias_act>::call);
    m.impl("bias_act_", Flat<bias_act_inplace>::call);
    m.impl("bias_act.out", Flat<bias_act_out>::call);
    m.impl("bias_act_mask", Flat<bias_act_mask>::call);
    m.impl("bias_act_backward", Flat<bias_act_backward>::call);
    m.impl("bias_act_backward.mask", Flat<bias_act_backward>::call);
    m.impl("bias_act_double_backward", Flat<bias_act_double_backward>::call);
  }
};

}  // namespace fusedact
