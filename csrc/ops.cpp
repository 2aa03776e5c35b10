// The operators: schema, the CPU kernels, the Meta kernels, and what happens to every other device. The CUDA kernels are in
// cuda/ops.cpp, and what both share in passes.h. No maths and no loops over elements.
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "passes.h"

namespace fusedact {
namespace {

struct Cpu {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  static void forward(const Activation& a, const ForwardArgs& args) { cpu::forward(a, args); }
  static void backward(const Activation& a, const BackwardArgs& args) { cpu::backward(a, args); }
  static void double_backward(const Activation& a, const DoubleBackwardArgs& args) { cpu::double_backward(a, args); }
};

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
#if defined(FUSEDACT_CUDA)
    TORCH_CHECK_NOT_IMPLEMENTED(!x.is_cuda(), op.schema().name(), ": x is on ", x.device(),
                                ", but this operator has no CUDA kernel yet; use x.cpu()");
#endif
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
  // A compiler may lay tensors out as it likes (convolutions, channels last), but where a mask's bits lie in the order of
  // the input's memory: there it must keep the strides that it traced with.
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  const std::vector<at::Tag> strict{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};
  m.def("bias_act(Tensor input, " FUSEDACT_TENSORS FUSEDACT_SCALARS ", str save) -> Tensor", tags);
  m.def("bias_act_(Tensor(a!) input, " FUSEDACT_TENSORS FUSEDACT_SCALARS ", str save) -> ()", strict);
  m.def("bias_act.out(Tensor input, " FUSEDACT_TENSORS FUSEDACT_SCALARS ", str save, *, Tensor(a!) out) -> ()", strict);
  m.def("bias_act_mask(Tensor input, " FUSEDACT_TENSORS FUSEDACT_SCALARS ") -> (Tensor output, Tensor mask)", strict);
#define FUSEDACT_BACKWARD                                          \
  "(Tensor grad, Tensor saved, " FUSEDACT_TENSORS FUSEDACT_SCALARS \
  ", str save, bool grad_bias, bool grad_weight) -> (Tensor grad_input, Tensor grad_bias, Tensor grad_weight)"
  m.def("bias_act_backward" FUSEDACT_BACKWARD, tags);
  m.def("bias_act_backward.mask" FUSEDACT_BACKWARD, strict);  // saved is a mask, save says so
  m.def("bias_act_double_backward(Tensor u, Tensor grad, Tensor saved, Tensor? bias, " FUSEDACT_SCALARS
        ", str save, bool grad_bias) -> (Tensor grad_grad, Tensor grad_saved, Tensor grad_bias)",
        tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) { Passes<Cpu>::implement(m); }

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("bias_act", Flat<bias_act_meta>::call);
  m.impl("bias_act_", Flat<bias_act_inplace_meta>::call);
  m.impl("bias_act.out", Flat<bias_act_out_meta>::call);
  m.impl("bias_act_mask", Flat<bias_act_mask_meta>::call);
  m.impl("bias_act_backward", Flat<bias_act_backward_meta>::call);
  m.impl("bias_act_backward.mask", Flat<bias_act_backward_meta>::call);
  m.impl("bias_act_double_backward", Flat<bias_act_double_backward_meta>::call);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"bias_act", "bias_act_", "bias_act.out", "bias_act_mask", "bias_act_backward",
                         "bias_act_backward.mask", "bias_act_double_backward"})
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
  static auto op = handle<bias_act_meta>("fusedact::bias_act");
  return op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save);
}

void bias_act_(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& c) {
  static auto op = handle<bias_act_inplace_meta>("fusedact::bias_act_");
  op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save);
}

void bias_act_out(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& c,
                  const Tensor& out) {
  static auto op = handle<bias_act_out_meta>("fusedact::bias_act", "out");
  op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save, out);
}

Masked bias_act_mask(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& c) {
  static auto op = handle<bias_act_mask_meta>("fusedact::bias_act_mask");
  return op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max);
}

Gradients bias_act_backward(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                            const Call& c, bool grad_bias, bool grad_weight) {
  static auto plain = handle<bias_act_backward_meta>("fusedact::bias_act_backward");
  static auto of_mask = handle<bias_act_backward_meta>("fusedact::bias_act_backward", "mask");
  const auto& op = c.save == "mask" ? of_mask : plain;
  return op.call(grad, saved, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save,
                 grad_bias, grad_weight);
}

DoubleGradients bias_act_double_backward(const Tensor& u, const Tensor& grad, const Tensor& saved,
                                         const OptTensor& bias, const Call& c, bool grad_bias) {
  static auto op = handle<bias_act_double_backward_meta>("fusedact::bias_act_double_backward");
  return op.call(u, grad, saved, bias, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save,
                 grad_bias);
}

}  // namespace fusedact
