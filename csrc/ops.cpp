// The operators: schema, allocation, choice of back end, and the Meta kernels.
//
// No maths and no loops over elements: a tensor becomes [outer, channels, inner] in the order of its memory, and
// goes to the back end through kernels.h.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>

#include "checks.h"

namespace fusedact {
namespace {

// ---- CPU kernels ----------------------------------------------------------------------------------------------------

Shape shape_of(const Tensor& x, const Plan& plan) {
  return plan.channels ? fusedact::shape_of(x, plan.dim) : Shape{1, 1, x.numel()};
}

// The weight as the kernels read it: a noise in x's layout, a vector contiguous.
OptTensor weight_beside(const Tensor& x, const OptTensor& weight, const Plan& plan) {
  return plan.weight == Extent::full ? OptTensor(laid_out_as(*weight, x)) : contiguous(weight);
}

Scalars scalars_of(const Call& call) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return {call.params.data(), call.gain, call.clamp_min.value_or(-infinity), call.clamp_max.value_or(infinity),
          call.clamped()};
}

// x and y are dense and lie alike; they may be the same.
void forward(const Plan& plan, const Tensor& x, const OptTensor& bias, const OptTensor& weight, const Call& call,
             const Tensor& y, uint8_t* mask) {
  if (x.numel() == 0) return;
  OptTensor bias_vector = contiguous(bias), weight_vector = weight_beside(x, weight, plan);
  cpu::forward(plan.activation, {.shape = shape_of(x, plan),
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
Tensor forward_new(const Plan& plan, const Tensor& input, const OptTensor& bias, const OptTensor& weight,
                   const Call& call, uint8_t* mask = nullptr) {
  Tensor y = empty_like_cpu(input);
  bool gapped = !input.is_non_overlapping_and_dense();
  if (gapped) y.copy_(input);
  forward(plan, gapped ? y : input, bias, weight, call, y, mask);
  return y;
}

Tensor bias_act_cpu(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  return forward_new(check(input, bias, weight, call), input, bias, weight, call);
}

void check_overlap(const Tensor& out, const OptTensor& other) {
  if (other) at::assert_no_partial_overlap(out, *other);
}

void bias_act_inplace_cpu(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  Plan plan = check(input, bias, weight, call);
  at::assert_no_internal_overlap(input);
  check_overlap(input, bias);
  check_overlap(input, weight);
  if (input.is_non_overlapping_and_dense())
    forward(plan, input, bias, weight, call, input, nullptr);
  else
    input.copy_(forward_new(plan, input, bias, weight, call));
}

void bias_act_out_cpu(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                      const Tensor& out) {
  Plan plan = check(input, bias, weight, call);
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

Masked bias_act_mask_cpu(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  Plan plan = check(input, bias, weight, call);
  Tensor mask = empty_cpu({mask_bytes(input.numel())}, {1}, at::kByte);
  Tensor y = forward_new(plan, input, bias, weight, call, mask.mutable_data_ptr<uint8_t>());
  return {std::move(y), std::move(mask)};
}

// ---- backward -------------------------------------------------------------------------------------------------------

Gradients bias_act_backward_cpu(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                                const Call& call, bool grad_bias, bool grad_weight) {
  Plan plan = check_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
  Tensor bias_sum = sum_like(bias, grad_bias, grad), weight_sum = sum_like(weight, grad_weight, grad);
  if (grad.numel() == 0) return {empty_like_cpu(plan.save == Saved::mask ? grad : saved), bias_sum, weight_sum};

  Tensor x = plan.save == Saved::mask ? saved.contiguous() : dense(saved);
  Tensor g = plan.save == Saved::mask ? dense(grad) : laid_out_as(grad, x);
  Tensor grad_x = g.is_same(grad) ? empty_like_cpu(g) : g;  // a copy of our own is written over
  OptTensor bias_vector = contiguous(bias), weight_vector = weight_beside(g, weight, plan);
  cpu::backward(plan.activation, {.shape = shape_of(g, plan),
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

DoubleGradients bias_act_double_backward_cpu(const Tensor& u, const Tensor& grad, const Tensor& saved,
                                             const OptTensor& bias, const Call& call, bool grad_bias) {
  Plan plan = check_double_backward(u, grad, saved, bias, call, grad_bias);
  Tensor bias_sum = sum_like(bias, grad_bias, grad);
  if (grad.numel() == 0) return {empty_like_cpu(saved), empty_like_cpu(saved), bias_sum};

  Tensor x = dense(saved), g = laid_out_as(grad, x), w = laid_out_as(u, x);
  Tensor grad_grad = empty_like_cpu(x), grad_x = empty_like_cpu(x);
  OptTensor bias_vector = contiguous(bias);
  cpu::double_backward(plan.activation, {.shape = shape_of(x, plan),
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

// ---- Meta kernels: the checks, and results without memory -----------------------------------------------------------

Tensor bias_act_meta(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  check(input, bias, weight, call);
  return empty_like_meta(input);
}

void bias_act_inplace_meta(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  check(input, bias, weight, call);
  at::assert_no_internal_overlap(input);
}

void bias_act_out_meta(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                       const Tensor& out) {
  check(input, bias, weight, call);
  check_out(input, call, out);
  resize_out(input, out);
}

Masked bias_act_mask_meta(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  check(input, bias, weight, call);
  c10::SymInt bytes = mask_bytes(input.sym_numel());
  return {empty_like_meta(input), at::empty_symint({bytes}, input.options().dtype(at::kByte))};
}

Gradients bias_act_backward_meta(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                 const OptTensor& weight, const Call& call, bool grad_bias, bool grad_weight) {
  Plan plan = check_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
  return {empty_like_meta(plan.save == Saved::mask ? grad : saved), sum_like(bias, grad_bias, grad),
          sum_like(weight, grad_weight, grad)};
}

DoubleGradients bias_act_double_backward_meta(const Tensor& u, const Tensor& grad, const Tensor& saved,
                                              const OptTensor& bias, const Call& call, bool grad_bias) {
  check_double_backward(u, grad, saved, bias, call, grad_bias);
  return {empty_like_meta(saved), empty_like_meta(saved), sum_like(bias, grad_bias, grad)};
}

}  // namespace

// ---- every other device ---------------------------------------------------------------------------------------------

void raise_no_kernel(const c10::OperatorHandle& op, c10::Stack* stack) {
  for (const c10::IValue& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (!argument.isTensor() || !argument.toTensor().defined()) continue;
    const Tensor& x = argument.toTensor();
    TORCH_CHECK_NOT_IMPLEMENTED(x.layout() == at::kStrided, op.schema().name(), ": x is ", x.layout(),
                                ", but it must be a dense (strided) tensor: use x.to_dense()");
    TORCH_CHECK_NOT_IMPLEMENTED(
        x.is_cpu(), op.schema().name(), ": x is on ", x.device(),
        ", but this build has kernels for the CPU only; use x.cpu(), or install a build of fusedact for ",
        x.device().type());
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(), ": no kernel for tensors of this kind");
}

// ---- schema ---------------------------------------------------------------------------------------------------------

#define FUSEDACT_TENSORS "Tensor? bias, Tensor? weight, "
#define FUSEDACT_SCALARS "str activation, float[] params, int dim, float gain, float? clamp_min, float? clamp_max"

TORCH_LIBRARY(fusedact, m) {
  // The mask lies in the order of the input's memory: a compiler must keep the strides that it traced with.
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};
  m.def("bias_act(Tensor input, " FUSEDACT_TENSORS FUSEDACT_SCALARS ", str save) -> Tensor", tags);
  m.def("bias_act_(Tensor(a!) input, " FUSEDACT_TENSORS FUSEDACT_SCALARS ", str save) -> ()", tags);
  m.def("bias_act.out(Tensor input, " FUSEDACT_TENSORS FUSEDACT_SCALARS ", str save, *, Tensor(a!) out) -> ()", tags);
  m.def("bias_act_mask(Tensor input, " FUSEDACT_TENSORS FUSEDACT_SCALARS ") -> (Tensor output, Tensor mask)", tags);
  m.def("bias_act_backward(Tensor grad, Tensor saved, " FUSEDACT_TENSORS FUSEDACT_SCALARS
        ", str save, bool grad_bias, bool grad_weight) -> (Tensor grad_input, Tensor grad_bias, Tensor grad_weight)",
        tags);
  m.def("bias_act_double_backward(Tensor u, Tensor grad, Tensor saved, Tensor? bias, " FUSEDACT_SCALARS
        ", str save, bool grad_bias) -> (Tensor grad_grad, Tensor grad_saved, Tensor grad_bias)",
        tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("bias_act", Flat<bias_act_cpu>::call);
  m.impl("bias_act_", Flat<bias_act_inplace_cpu>::call);
  m.impl("bias_act.out", Flat<bias_act_out_cpu>::call);
  m.impl("bias_act_mask", Flat<bias_act_mask_cpu>::call);
  m.impl("bias_act_backward", Flat<bias_act_backward_cpu>::call);
  m.impl("bias_act_double_backward", Flat<bias_act_double_backward_cpu>::call);
}

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("bias_act", Flat<bias_act_meta>::call);
  m.impl("bias_act_", Flat<bias_act_inplace_meta>::call);
  m.impl("bias_act.out", Flat<bias_act_out_meta>::call);
  m.impl("bias_act_mask", Flat<bias_act_mask_meta>::call);
  m.impl("bias_act_backward", Flat<bias_act_backward_meta>::call);
  m.impl("bias_act_double_backward", Flat<bias_act_double_backward_meta>::call);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op :
       {"bias_act", "bias_act_", "bias_act.out", "bias_act_mask", "bias_act_backward", "bias_act_double_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<raise_no_kernel>());
}

// ---- the operators as functions -------------------------------------------------------------------------------------

namespace {

// The typed handle of an operator, looked up once.
template <auto kernel>
auto handle(const char* name, const char* overload = "") {
  using Signature = std::remove_pointer_t<decltype(&Flat<kernel>::call)>;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

}  // namespace

Tensor bias_act(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& c) {
  static auto op = handle<bias_act_cpu>("fusedact::bias_act");
  return op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save);
}

void bias_act_(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& c) {
  static auto op = handle<bias_act_inplace_cpu>("fusedact::bias_act_");
  op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save);
}

void bias_act_out(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& c,
                  const Tensor& out) {
  static auto op = handle<bias_act_out_cpu>("fusedact::bias_act", "out");
  op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save, out);
}

Masked bias_act_mask(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& c) {
  static auto op = handle<bias_act_mask_cpu>("fusedact::bias_act_mask");
  return op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max);
}

Gradients bias_act_backward(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                            const Call& c, bool grad_bias, bool grad_weight) {
  static auto op = handle<bias_act_backward_cpu>("fusedact::bias_act_backward");
  return op.call(grad, saved, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save,
                 grad_bias, grad_weight);
}

DoubleGradients bias_act_double_backward(const Tensor& u, const Tensor& grad, const Tensor& saved,
                                         const OptTensor& bias, const Call& c, bool grad_bias) {
  static auto op = handle<bias_act_double_backward_cpu>("fusedact::bias_act_double_backward");
  return op.call(u, grad, saved, bias, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save,
                 grad_bias);
}

}  // namespace fusedact
