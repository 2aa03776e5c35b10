// The epilogue's operators: schema, checks, allocation, kernels for the CPU, CUDA and Meta. No maths and no loops over elements.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>

#include "../device.h"

namespace fusedact::epilogue {
namespace {

// ---- checks ---------------------------------------------------------------------------------------------------------

void check_dropout(Reasons& reasons, const OptTensor& seed, double p, const Tensor& x) {
  if (!(p >= 0 && p <= 1)) reasons.add("dropout_p is ", p, ", but it must be in [0, 1]");
  if (!seed) return;
  if (seed->scalar_type() != at::kLong || seed->dim() != 0)
    reasons.add_dtype("seed is ", name_of(seed->scalar_type()), " of shape ", seed->sym_sizes(),
                      ", but it must be int64 without dims");
  if (seed->device() != x.device())
    reasons.add("seed is on ", seed->device(), ", but x is on ", x.device(), ": move one with .to()");
}

Plan check(Reasons& reasons, const Tensor& x, const Beside& beside, const Call& call, double p) {
  Plan plan = fusedact::check(reasons, x, beside.bias, beside.weight, call);
  if (beside.scale && plan.dim >= 0 && plan.dim < std::max<int64_t>(x.dim(), 1))
    check_channels(reasons, "scale", *beside.scale, x, plan.dim);
  check_dropout(reasons, beside.seed, p, x);
  return plan;
}

Plan check_backward(const Tensor& grad, const OptTensor& input, const Beside& beside, const Call& call, double p,
                    const Asked& asked) {
  Reasons reasons;
  Plan plan = check(reasons, grad, beside, call, p);
  if (input && input->scalar_type() != grad.scalar_type())
    reasons.add_dtype("grad is ", name_of(grad.scalar_type()), ", but the saved input is ",
                      name_of(input->scalar_type()));
  if (input && input->sym_sizes() != grad.sym_sizes())
    reasons.add("grad has shape ", grad.sym_sizes(), ", but the saved input has ", input->sym_sizes());
  if (!input && needs_input(call, asked.scale)) reasons.add("the gradient needs the input, but it is absent");
  if (asked.bias && !beside.bias) reasons.add("a gradient for the bias is asked for, but there is no bias");
  if (asked.scale && !beside.scale) reasons.add("a gradient for the scale is asked for, but there is no scale");
  if (asked.weight && (!beside.weight || plan.weight == Extent::full))
    reasons.add("a gradient for the weight is asked for, but there is none, or it is a noise");
  reasons.raise_if_any(call.activation);
  return plan;
}

// ---- from tensors to the contract -----------------------------------------------------------------------------------

Shape shape_of(const Tensor& x, const Plan& plan, bool channels) {
  return plan.channels || channels ? fusedact::shape_of(x, plan.dim) : Shape{1, 1, x.numel()};
}

Scalars scalars_of(const Call& call) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return {call.params.data(), call.gain, call.clamp_min.value_or(-infinity), call.clamp_max.value_or(infinity),
          call.clamped()};
}

// On a device the kernels read the seed themselves: nothing waits for it.
void set_seed(Dropout& dropout, const Tensor& seeds, int64_t i) {
  const int64_t* at = seeds.const_data_ptr<int64_t>() + i;
  if (seeds.is_cpu())
    dropout.seed = static_cast<uint64_t>(*at);
  else
    dropout.seed_at = at;
}

// The vectors as the kernels read them, kept alive.
struct Held {
  OptTensor bias, weight, scale, mask;
  Dropout dropout;

  // `x` is dense.
  Held(const Beside& beside, double p, const Tensor& x, const Plan& plan)
      : bias(contiguous(beside.bias)),
        weight(plan.weight == Extent::full ? OptTensor(laid_out_as(*beside.weight, x)) : contiguous(beside.weight)),
        scale(contiguous(beside.scale)) {
    if (!beside.seed) return;
    dropout = dropout_of(p);
    set_seed(dropout, *beside.seed, 0);
    if (x.is_contiguous()) return;
    // The mask is counted in logical order: where x lies in another, it is made first.
    at::ScalarType compute = plan.activation.wide ? at::kDouble : compute_dtype(x.scalar_type());
    mask = laid_out_as(dropout_mask(*beside.seed, x.sym_sizes(), p, compute), x);
    dropout.source = Dropout::Source::mask;
    dropout.mask = mask->const_data_ptr();
  }
};

// ---- kernels --------------------------------------------------------------------------------------------------------

Tensor bias_act_epilogue_dense(const Tensor& input, const Beside& beside, const OptTensor& residual, const Call& call,
                               double p) {
  Plan plan = check_epilogue(input, beside, residual, call, p);
  Tensor y = empty_as(input);
  if (input.numel() == 0) return y;
  Tensor x = dense(input);
  Held held(beside, p, x, plan);
  OptTensor added = residual ? OptTensor(laid_out_as(*residual, x)) : residual;
  const EpilogueArgs args{.shape = shape_of(x, plan, beside.scale.has_value()),
                          .dtype = to_dtype(x.scalar_type()),
                          .x = x.const_data_ptr(),
                          .residual = added ? added->const_data_ptr() : nullptr,
                          .scale = vector_of(held.scale, Extent::channel),
                          .bias = vector_of(held.bias, Extent::channel),
                          .weight = vector_of(held.weight, plan.weight),
                          .scalars = scalars_of(call),
                          .dropout = held.dropout,
                          .y = y.mutable_data_ptr(),
                          .parallel = parallel};
  on_device_of(
      y, [&] { cpu::epilogue(plan.activation, args); },
      [&](cuda::Queue& q) { cuda::epilogue(plan.activation, args, q.stream); });
  return y;
}

EpilogueGradients bias_act_epilogue_backward_dense(const Tensor& grad, const OptTensor& input, const Beside& beside,
                                                   const Call& call, double p, const Asked& asked) {
  Plan plan = check_backward(grad, input, beside, call, p, asked);
  if (asked.weight && asked.scale) {  // rare: the back end has room for two sums
    auto [grad_input, grad_bias, none, grad_scale] =
        bias_act_epilogue_backward_dense(grad, input, beside, call, p, {asked.bias, false, true});
    Tensor grad_weight =
        std::get<2>(bias_act_epilogue_backward_dense(grad, input, beside, call, p, {false, true, false}));
    return {grad_input, grad_bias, grad_weight, grad_scale};
  }
  Tensor bias_sum = sum_like(beside.bias, asked.bias, grad), weight_sum = sum_like(beside.weight, asked.weight, grad),
         scale_sum = sum_like(beside.scale, asked.scale, grad);
  if (grad.numel() == 0) return {empty_as(input.value_or(grad)), bias_sum, weight_sum, scale_sum};

  Tensor x = input ? dense(*input) : Tensor(), g = input ? laid_out_as(grad, x) : dense(grad);
  Tensor grad_x = gradient_as(g);
  Held held(beside, p, g, plan);
  const EpilogueBackwardArgs args{.shape = shape_of(g, plan, beside.scale.has_value()),
                                  .dtype = to_dtype(g.scalar_type()),
                                  .grad = g.const_data_ptr(),
                                  .x = input ? x.const_data_ptr() : nullptr,
                                  .scale = vector_of(held.scale, Extent::channel),
                                  .bias = vector_of(held.bias, Extent::channel),
                                  .weight = vector_of(held.weight, plan.weight),
                                  .center = {},
                                  .slope = {},
                                  .offset = {},
                                  .scalars = scalars_of(call),
                                  .dropout = held.dropout,
                                  .grad_x = grad_x.mutable_data_ptr(),
                                  .raw = false,
                                  .grad_bias = sum_of(bias_sum, asked.bias),
                                  .grad_scale = sum_of(scale_sum, asked.scale),
                                  .grad_weight = sum_of(weight_sum, asked.weight),
                                  .parallel = parallel};
  on_device_of(
      g, [&] { cpu::epilogue_backward(plan.activation, args); },
      [&](cuda::Queue& q) {
        cuda::epilogue_backward(plan.activation, args, q.room(cuda::workspace_bytes(plan.activation, args)), q.stream);
      });
  return {std::move(grad_x), std::move(bias_sum), std::move(weight_sum), std::move(scale_sum)};
}

void check_mask(const Tensor& seed, double p, at::ScalarType dtype) {
  Reasons reasons;
  if (seed.scalar_type() != at::kLong)
    reasons.add_dtype("seed is ", name_of(seed.scalar_type()), ", but it must be int64");
  if (dtype != at::kFloat && dtype != at::kDouble)
    reasons.add_dtype("dtype is ", name_of(dtype), ", but it must be float32 or float64");
  if (!(p >= 0 && p <= 1)) reasons.add("p is ", p, ", but it must be in [0, 1]");
  reasons.raise_if_any("dropout_mask");
}

Tensor dropout_mask_meta(const Tensor& seed, c10::SymIntArrayRef size, double p, at::ScalarType dtype) {
  check_mask(seed, p, dtype);
  c10::SymDimVector sizes(seed.sym_sizes().begin(), seed.sym_sizes().end());
  sizes.insert(sizes.end(), size.begin(), size.end());
  return at::empty_symint(sizes, seed.options().dtype(dtype));
}

Tensor dropout_mask_dense(const Tensor& seed, c10::SymIntArrayRef size, double p, at::ScalarType dtype) {
  Tensor mask = dropout_mask_meta(seed, size, p, dtype), seeds = seed.contiguous();
  if (mask.numel() == 0) return mask;
  const int64_t count = mask.numel() / seeds.numel();
  Dropout dropout = dropout_of(p);
  for (int64_t i = 0; i < seeds.numel(); ++i) {
    set_seed(dropout, seeds, i);
    void* out = static_cast<char*>(mask.mutable_data_ptr()) + i * count * mask.element_size();
    on_device_of(
        mask, [&] { cpu::dropout_mask(dropout, to_dtype(dtype), out, count, parallel); },
        [&](cuda::Queue& q) { cuda::dropout_mask(dropout, to_dtype(dtype), out, count, q.stream); });
  }
  return mask;
}

// ---- Meta kernels ---------------------------------------------------------------------------------------------------

Tensor bias_act_epilogue_meta(const Tensor& input, const Beside& beside, const OptTensor& residual, const Call& call,
                              double p) {
  check_epilogue(input, beside, residual, call, p);
  return empty_like_meta(input);
}

EpilogueGradients bias_act_epilogue_backward_meta(const Tensor& grad, const OptTensor& input, const Beside& beside,
                                                  const Call& call, double p, const Asked& asked) {
  check_backward(grad, input, beside, call, p, asked);
  return {empty_like_meta(input.value_or(grad)), sum_like(beside.bias, asked.bias, grad),
          sum_like(beside.weight, asked.weight, grad), sum_like(beside.scale, asked.scale, grad)};
}

}  // namespace

Plan check_epilogue(const Tensor& x, const Beside& beside, const OptTensor& residual, const Call& call, double p) {
  Reasons reasons;
  Plan plan = check(reasons, x, beside, call, p);
  if (residual && residual->sym_sizes() != x.sym_sizes())
    reasons.add("residual has shape ", residual->sym_sizes(), ", but x has shape ", x.sym_sizes(),
                ": they must be the same; use residual.expand_as(x)");
  if (residual && residual->scalar_type() != x.scalar_type())
    reasons.add_dtype("residual is ", name_of(residual->scalar_type()), ", but x is ", name_of(x.scalar_type()),
                      ": they must be the same; convert one with .to()");
  if (residual && residual->device() != x.device())
    reasons.add("residual is on ", residual->device(), ", but x is on ", x.device(), ": move one with .to()");
  reasons.raise_if_any(call.activation);
  return plan;
}

// ---- schema ---------------------------------------------------------------------------------------------------------

#define FUSEDACT_SCALARS \
  "str activation, float[] params, int dim, float gain, float? clamp_min, float? clamp_max, float dropout_p"

TORCH_LIBRARY_FRAGMENT(fusedact, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  m.def(
      "bias_act_epilogue(Tensor input, Tensor? bias, Tensor? weight, Tensor? scale, Tensor? residual, Tensor? "
      "seed, " FUSEDACT_SCALARS ") -> Tensor",
      tags);
  m.def(
      "bias_act_epilogue_backward(Tensor grad, Tensor? input, Tensor? bias, Tensor? weight, Tensor? scale, "
      "Tensor? seed, " FUSEDACT_SCALARS
      ", bool grad_bias, bool grad_weight, bool grad_scale) -> "
      "(Tensor grad_input, Tensor grad_bias, Tensor grad_weight, Tensor grad_scale)",
      tags);
  m.def("dropout_mask(Tensor seed, SymInt[] size, float p, ScalarType dtype) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("bias_act_epilogue", Flat<bias_act_epilogue_dense>::call);
  m.impl("bias_act_epilogue_backward", Flat<bias_act_epilogue_backward_dense>::call);
  m.impl("dropout_mask", dropout_mask_dense);
}
#if defined(FUSEDACT_CUDA)
TORCH_LIBRARY_IMPL(fusedact, CUDA, m) {
  m.impl("bias_act_epilogue", Flat<bias_act_epilogue_dense>::call);
  m.impl("bias_act_epilogue_backward", Flat<bias_act_epilogue_backward_dense>::call);
  m.impl("dropout_mask", dropout_mask_dense);
}
#endif

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("bias_act_epilogue", Flat<bias_act_epilogue_meta>::call);
  m.impl("bias_act_epilogue_backward", Flat<bias_act_epilogue_backward_meta>::call);
  m.impl("dropout_mask", dropout_mask_meta);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"bias_act_epilogue", "bias_act_epilogue_backward", "dropout_mask"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<raise_no_kernel>());
}

// ---- the operators as functions -------------------------------------------------------------------------------------

namespace {

template <auto kernel>
auto handle(const char* name) {
  using Signature = std::remove_pointer_t<decltype(&Flat<kernel>::call)>;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

Tensor bias_act_epilogue(const Tensor& input, const Beside& b, const OptTensor& residual, const Call& c, double p) {
  static auto op = handle<bias_act_epilogue_dense>("fusedact::bias_act_epilogue");
  return op.call(input, b.bias, b.weight, b.scale, residual, b.seed, c.activation, c.params, c.dim, c.gain, c.clamp_min,
                 c.clamp_max, p);
}

EpilogueGradients bias_act_epilogue_backward(const Tensor& grad, const OptTensor& input, const Beside& b, const Call& c,
                                             double p, const Asked& asked) {
  static auto op = handle<bias_act_epilogue_backward_dense>("fusedact::bias_act_epilogue_backward");
  return op.call(grad, input, b.bias, b.weight, b.scale, b.seed, c.activation, c.params, c.dim, c.gain, c.clamp_min,
                 c.clamp_max, p, asked.bias, asked.weight, asked.scale);
}

Tensor dropout_mask(const Tensor& seed, c10::SymIntArrayRef size, double p, at::ScalarType dtype) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fusedact::dropout_mask", "")
                       .typed<decltype(dropout_mask_dense)>();
  return op.call(seed, size, p, dtype);
}

}  // namespace fusedact::epilogue
