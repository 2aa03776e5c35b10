// The operators that count: schema, checks, kernels for all devices. No maths, no loops; derivatives are in autograd.cpp.
#include "ops.h"

#include <torch/library.h>

#include "../device.h"
#include "../passes.h"

namespace fusedact {
namespace {

c10::SymInt channels_in(const Tensor& x, int64_t dim) { return x.dim() == 0 ? c10::SymInt(1) : x.sym_size(dim); }

// ---- statistics_ ----------------------------------------------------------------------------------------------------

// `dim` counted from the front.
int64_t check_statistics(const Tensor& sums, const OptTensor& histogram, const OptTensor& input, const OptTensor& bias,
                         const OptTensor& output, int64_t dim, at::ArrayRef<double> zones) {
  Reasons reasons;
  if (!input && !output) reasons.add("neither input nor output is given: there is nothing to count");
  if (bias && !input) reasons.add("there is a bias, but no input that it would be added to");
  for (const auto& [name, x] : {std::pair("input", &input), std::pair("output", &output)})
    if (*x) check_input(reasons, **x, name);
  if (input && output) {
    if (input->sym_sizes() != output->sym_sizes())
      reasons.add("output has shape ", output->sym_sizes(), ", but input has ", input->sym_sizes());
    if (input->scalar_type() != output->scalar_type())
      reasons.add_dtype("output is ", name_of(output->scalar_type()), ", but input is ", name_of(input->scalar_type()));
  }
  reasons.raise_if_any("statistics_");
  const Tensor& x = input ? *input : *output;
  dim = check_dim(reasons, x, dim);
  if (dim >= 0) {
    if (bias) check_channels(reasons, "bias", *bias, x, dim);
    check_counting(reasons, channels_in(x, dim), x.device(), sums, histogram, zones);
  }
  reasons.raise_if_any("statistics_");
  return dim;
}

void statistics_dense(const Tensor& sums, const OptTensor& histogram, const OptTensor& input, const OptTensor& bias,
                      const OptTensor& output, int64_t dim, at::ArrayRef<double> zones) {
  dim = check_statistics(sums, histogram, input, bias, output, dim, zones);
  Tensor like = dense(output ? *output : *input), x;
  if (input) x = output ? laid_out_as(*input, like) : like;
  OptTensor bias_vector = contiguous(bias);
  const StatisticsArgs args{.shape = shape_of(like, dim),
                            .dtype = to_dtype(like.scalar_type()),
                            .x = input ? x.const_data_ptr() : nullptr,
                            .bias = vector_of(bias_vector, Extent::channel),
                            .y = output ? like.const_data_ptr() : nullptr,
                            .counts = counts_of(sums, histogram, zones),
                            .parallel = parallel};
  on_device_of(
      like, [&] { cpu::statistics(args); },
      [&](cuda::Queue& q) { cuda::statistics(args, q.room(cuda::workspace_bytes(args)), q.stream); });
}

void statistics_meta(const Tensor& sums, const OptTensor& histogram, const OptTensor& input, const OptTensor& bias,
                     const OptTensor& output, int64_t dim, at::ArrayRef<double> zones) {
  check_statistics(sums, histogram, input, bias, output, dim, zones);
}

// ---- bias_act_statistics --------------------------------------------------------------------------------------------

Plan check_forward(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                   const Counting& counting, const OptTensor& gradient) {
  Reasons reasons;
  Plan plan = check(reasons, input, bias, weight, call);
  reasons.raise_if_any(call.activation);
  const c10::SymInt channels = channels_in(input, plan.dim);
  check_counting(reasons, channels, input.device(), counting.sums, counting.histogram, counting.zones);
  if (gradient) check_counting(reasons, channels, input.device(), *gradient, {}, {});
  if (plan.save == Saved::mask)
    reasons.add("save is 'mask', whose bytes the units of work would share: use bias_act, and statistics_ after it");
  reasons.raise_if_any(call.activation);
  return plan;
}

Tensor bias_act_statistics_cpu(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                               const Counting& counting, const OptTensor& gradient) {
  Plan plan = check_forward(input, bias, weight, call, counting, gradient);
  Tensor x = dense(input), y = empty_as(x);
  if (x.numel() == 0) return y;
  OptTensor bias_vector = contiguous(bias), weight_vector = weight_beside(x, weight, plan);
  cpu::forward_statistics(plan.activation,
                          {.shape = shape_of(x, plan.dim),
                           .dtype = to_dtype(x.scalar_type()),
                           .x = x.const_data_ptr(),
                           .bias = vector_of(bias_vector, Extent::channel),
                           .weight = vector_of(weight_vector, plan.weight),
                           .scalars = scalars_of(call),
                           .y = y.mutable_data_ptr(),
                           .parallel = parallel},
                          counts_of(counting.sums, counting.histogram, counting.zones));
  return y;
}

Tensor bias_act_statistics_meta(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                                const Counting& counting, const OptTensor& gradient) {
  check_forward(input, bias, weight, call, counting, gradient);
  return empty_like_meta(input);
}

#if defined(FUSEDACT_CUDA)
// A pass more on CUDA: bias_act's kernels know nothing of counting there.
Tensor bias_act_statistics_cuda(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                                const Counting& counting, const OptTensor& gradient) {
  const Plan plan = check_forward(input, bias, weight, call, counting, gradient);
  Tensor y = bias_act(input, bias, weight, call);
  statistics_(counting.sums, counting.histogram, input, bias, y, plan.dim, counting.zones);
  return y;
}
#endif

// ---- bias_act_backward_statistics -----------------------------------------------------------------------------------

Plan check_backward_counting(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                             const Call& call, bool grad_bias, bool grad_weight, const Tensor& sums) {
  Plan plan = check_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
  Reasons reasons;
  check_counting(reasons, channels_in(grad, plan.dim), grad.device(), sums, {}, {});
  reasons.raise_if_any(call.activation);
  return plan;
}

Gradients bias_act_backward_statistics_cpu(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                           const OptTensor& weight, const Call& call, bool grad_bias, bool grad_weight,
                                           const Tensor& sums) {
  Plan plan = check_backward_counting(grad, saved, bias, weight, call, grad_bias, grad_weight, sums);
  // A weight's gradient is summed in an order that rows by channel would change, and a mask's bits lie as they lie: one pass
  // more, over the gradient alone.
  if (plan.save == Saved::mask || (grad_weight && !plan.channels)) {
    Gradients result = bias_act_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
    statistics_(sums, {}, {}, {}, std::get<0>(result), plan.dim, {});
    return result;
  }
  Tensor bias_sum = sum_like(bias, grad_bias, grad), weight_sum = sum_like(weight, grad_weight, grad);
  if (grad.numel() == 0) return {empty_as(saved), bias_sum, weight_sum};
  Tensor x = dense(saved), g = laid_out_as(grad, x), grad_x = gradient_as(x);
  OptTensor bias_vector = contiguous(bias), weight_vector = weight_beside(g, weight, plan);
  cpu::backward_statistics(plan.activation,
                           {.shape = shape_of(g, plan.dim),
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
                            .parallel = parallel},
                           sums.mutable_data_ptr<double>());
  return {std::move(grad_x), std::move(bias_sum), std::move(weight_sum)};
}

#if defined(FUSEDACT_CUDA)
Gradients bias_act_backward_statistics_cuda(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                            const OptTensor& weight, const Call& call, bool grad_bias, bool grad_weight,
                                            const Tensor& sums) {
  const Plan plan = check_backward_counting(grad, saved, bias, weight, call, grad_bias, grad_weight, sums);
  Gradients result = bias_act_backward(grad, saved, bias, weight, call, grad_bias, grad_weight);
  statistics_(sums, {}, {}, {}, std::get<0>(result), plan.dim, {});
  return result;
}
#endif

Gradients bias_act_backward_statistics_meta(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                            const OptTensor& weight, const Call& call, bool grad_bias, bool grad_weight,
                                            const Tensor& sums) {
  Plan plan = check_backward_counting(grad, saved, bias, weight, call, grad_bias, grad_weight, sums);
  return {empty_like_meta(plan.save == Saved::mask ? grad : saved), sum_like(bias, grad_bias, grad),
          sum_like(weight, grad_weight, grad)};
}

}  // namespace

void check_counting(Reasons& reasons, const c10::SymInt& channels, at::Device device, const Tensor& sums,
                    const OptTensor& histogram, at::ArrayRef<double> zones) {
  auto fits = [](const Tensor& t) { return t.is_meta() || (t.scalar_type() == at::kDouble && t.is_contiguous()); };
  auto check_device = [&](const char* name, const Tensor& t) {
    if (!t.is_meta() && !device.is_meta() && t.device() != device)
      reasons.add(name, " is on ", t.device(), ", but x is on ", device, ": move one with .to()");
  };
  check_device("sums", sums);
  if (!fits(sums) || sums.dim() != 2 || sums.sym_size(0) != statistic_count || sums.sym_size(1) != channels)
    reasons.add("sums is ", name_of(sums.scalar_type()), " of shape ", sums.sym_sizes(),
                ", but it must be float64 of shape [", statistic_count, ", ", channels, "], contiguous");
  if (histogram) check_device("histogram", *histogram);
  if (histogram && (!fits(*histogram) || histogram->dim() != 1 || histogram->sym_size(0) != histogram_bins))
    reasons.add("histogram is ", name_of(histogram->scalar_type()), " of shape ", histogram->sym_sizes(),
                ", but it must be float64 of shape [", histogram_bins, "], contiguous");
  if (zones.size() % 2 != 0) reasons.add("zones has ", zones.size(), " numbers, but they must be pairs: low, high");
  if (device.is_cuda() && zones.size() > 2 * most_zones)
    reasons.add("there are ", zones.size() / 2, " zones, but no more than ", most_zones, " are counted on CUDA");
}

Counts counts_of(const Tensor& sums, const OptTensor& histogram, at::ArrayRef<double> zones) {
  return {zones.data(), static_cast<int64_t>(zones.size() / 2), sums.mutable_data_ptr<double>(),
          histogram ? histogram->mutable_data_ptr<double>() : nullptr};
}

// ---- schema ---------------------------------------------------------------------------------------------------------

#define FUSEDACT_SCALARS \
  "str activation, float[] params, int dim, float gain, float? clamp_min, float? clamp_max, str save"

TORCH_LIBRARY_FRAGMENT(fusedact, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};
  m.def(
      "statistics_(Tensor(a!) sums, Tensor(b!)? histogram, Tensor? input, Tensor? bias, Tensor? output, int dim, "
      "float[] zones) -> ()",
      tags);
  m.def("bias_act_statistics(Tensor input, Tensor? bias, Tensor? weight, " FUSEDACT_SCALARS
        ", float[] zones, Tensor(a!) sums, Tensor(b!) histogram, Tensor(c!)? gradient) -> Tensor",
        tags);
  m.def("bias_act_backward_statistics(Tensor grad, Tensor saved, Tensor? bias, Tensor? weight, " FUSEDACT_SCALARS
        ", bool grad_bias, bool grad_weight, Tensor(a!) sums) -> (Tensor grad_input, Tensor grad_bias, Tensor "
        "grad_weight)",
        tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("statistics_", statistics_dense);
  m.impl("bias_act_statistics", FlatStatistics<bias_act_statistics_cpu>::call);
  m.impl("bias_act_backward_statistics", FlatStatistics<bias_act_backward_statistics_cpu>::call);
}

#if defined(FUSEDACT_CUDA)
TORCH_LIBRARY_IMPL(fusedact, CUDA, m) {
  m.impl("statistics_", statistics_dense);
  m.impl("bias_act_statistics", FlatStatistics<bias_act_statistics_cuda>::call);
  m.impl("bias_act_backward_statistics", FlatStatistics<bias_act_backward_statistics_cuda>::call);
}
#endif

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("statistics_", statistics_meta);
  m.impl("bias_act_statistics", FlatStatistics<bias_act_statistics_meta>::call);
  m.impl("bias_act_backward_statistics", FlatStatistics<bias_act_backward_statistics_meta>::call);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"statistics_", "bias_act_statistics", "bias_act_backward_statistics"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<raise_no_kernel>());
}

// ---- the operators as functions -------------------------------------------------------------------------------------

void statistics_(const Tensor& sums, const OptTensor& histogram, const OptTensor& input, const OptTensor& bias,
                 const OptTensor& output, int64_t dim, at::ArrayRef<double> zones) {
  static auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("fusedact::statistics_", "").typed<decltype(statistics_)>();
  op.call(sums, histogram, input, bias, output, dim, zones);
}

Tensor bias_act_statistics(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& c,
                           const Counting& counting, const OptTensor& gradient) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fusedact::bias_act_statistics", "")
                       .typed<std::remove_pointer_t<decltype(&FlatStatistics<bias_act_statistics_cpu>::call)>>();
  return op.call(input, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save,
                 counting.zones, counting.sums, counting.histogram, gradient);
}

Gradients bias_act_backward_statistics(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                       const OptTensor& weight, const Call& c, bool grad_bias, bool grad_weight,
                                       const Tensor& sums) {
  static auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fusedact::bias_act_backward_statistics", "")
          .typed<std::remove_pointer_t<decltype(&FlatStatistics<bias_act_backward_statistics_cpu>::call)>>();
  return op.call(grad, saved, bias, weight, c.activation, c.params, c.dim, c.gain, c.clamp_min, c.clamp_max, c.save,
                 grad_bias, grad_weight, sums);
}

}  // namespace fusedact
