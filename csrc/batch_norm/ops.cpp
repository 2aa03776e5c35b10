// act(batch_norm(x)) with the statistics of the batch: schema, checks, CPU and Meta kernels.
//
// Two passes forward (statistics, then the epilogue's pass) and two backward (sums, then the gradient of x). What is
// computed here has one element per channel, in float64; the passes are those of epilogue/kernels.h.
#include "ops.h"

#include <ATen/TensorOperators.h>
#if defined(FUSEDACT_CUDA)
#include <ATen/ops/batch_norm_update_stats.h>
#include <ATen/ops/native_batch_norm_backward.h>
#endif
#include <ATen/ops/empty.h>
#include <ATen/ops/var_mean.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

#include "../epilogue/kernels.h"
#include "../epilogue/ops.h"

namespace fusedact::batch_norm {
namespace {

// ---- checks ---------------------------------------------------------------------------------------------------------

void check(Reasons& reasons, const Tensor& x, const Affine& affine, const Settings& settings) {
  if (x.dim() < 2) {
    reasons.add("x has shape ", x.sym_sizes(), ", but it must have at least 2 dims, the channels in dim 1");
    return;
  }
  fusedact::check(reasons, x, {}, affine.act_weight, settings.call());
  if (affine.weight) check_channels(reasons, "weight", *affine.weight, x, 1);
  if (affine.bias) check_channels(reasons, "bias", *affine.bias, x, 1);
  if (!(settings.eps >= 0)) reasons.add("eps is ", settings.eps, ", but it must not be negative");
}

Plan check_backward(const Tensor& grad, const Tensor& input, const Affine& affine, const Tensor& mean,
                    const Tensor& var, const Settings& settings, const Asked& asked) {
  Reasons reasons;
  check(reasons, input, affine, settings);
  if (grad.scalar_type() != input.scalar_type())
    reasons.add_dtype("grad is ", name_of(grad.scalar_type()), ", but x is ", name_of(input.scalar_type()));
  if (grad.sym_sizes() != input.sym_sizes())
    reasons.add("grad has shape ", grad.sym_sizes(), ", but x has ", input.sym_sizes());
  for (const Tensor& statistic : {mean, var})
    if (statistic.dim() != 1 || statistic.scalar_type() != compute_dtype(input.scalar_type()) ||
        (input.dim() > 1 && statistic.sym_numel() != input.sym_size(1)))
      reasons.add("a statistic is ", name_of(statistic.scalar_type()), " of shape ", statistic.sym_sizes(),
                  ", but it must be as batch_norm_act returned it");
  if ((asked.weight && !affine.weight) || (asked.bias && !affine.bias) || (asked.act_weight && !affine.act_weight))
    reasons.add("a gradient is asked for something that is absent");
  reasons.raise_if_any(settings.activation);
  return check_batch_norm(input, affine, settings);
}

// ---- one element per channel ----------------------------------------------------------------------------------------

Tensor vector(int64_t channels) { return at::empty({channels}, at::kDouble); }
Tensor vector_beside(const Tensor& x) { return at::empty({x.numel()}, x.options().dtype(at::kDouble)); }
Vector along(const Tensor& x) { return {x.const_data_ptr(), DType::float64, Extent::channel}; }

// A vector of any dtype as float64; `otherwise` where it is absent.
Tensor in_double(const OptTensor& x, const Tensor& like, double otherwise) {
  return x ? x->detach().to(at::kDouble).contiguous() : vector_beside(like).fill_(otherwise);
}

// Mean and biased variance in the compute dtype. float32 and 16-bit elements are read once, and summed about the first
// element of each channel; float64 as torch has it, in two passes.
std::tuple<Tensor, Tensor> statistics(const Tensor& x) {
  int64_t channels = x.size(1);
  if (x.scalar_type() == at::kDouble) {
    c10::SmallVector<int64_t, 5> others;
    for (int64_t d = 0; d < x.dim(); ++d)
      if (d != 1) others.push_back(d);
    auto [var, mean] = at::var_mean(x, others, /*correction=*/0);
    return {mean, var};
  }
  Tensor first = x.select(0, 0);
  while (first.dim() > 1) first = first.select(-1, 0);
  Tensor shift = first.to(at::kDouble).contiguous(), sum = vector(channels), square = vector(channels);
  cpu::moments({.shape = shape_of(x, 1),
                .dtype = to_dtype(x.scalar_type()),
                .x = x.const_data_ptr(),
                .shift = shift.const_data_ptr<double>(),
                .sum = sum.mutable_data_ptr<double>(),
                .square = square.mutable_data_ptr<double>(),
                .parallel = parallel});
  Tensor mean = at::empty({channels}, at::kFloat), var = at::empty({channels}, at::kFloat);
  double count = static_cast<double>(x.numel() / channels);
  for (int64_t c = 0; c < channels; ++c) {
    double moved = sum.const_data_ptr<double>()[c] / count;
    double v = square.const_data_ptr<double>()[c] / count - moved * moved;
    mean.mutable_data_ptr<float>()[c] = static_cast<float>(shift.const_data_ptr<double>()[c] + moved);
    var.mutable_data_ptr<float>()[c] = static_cast<float>(v < 0 ? 0 : v);  // not at_least: NaN stays
  }
  return {mean, var};
}

// batch_norm(x) = x * scale + bias
struct Folded {
  Tensor mean, invstd, scale, bias;  // [channels]
  Folded(const Tensor& batch_mean, const Tensor& var, const Affine& affine, double eps) {
    mean = in_double(batch_mean, batch_mean, 0);
    invstd = (in_double(var, var, 0) + eps).rsqrt();
    scale = affine.weight ? invstd * in_double(affine.weight, var, 1) : invstd;
    bias = in_double(affine.bias, var, 0) - mean * scale;
  }
};

// A noise in x's layout, a vector contiguous.
OptTensor act_weight_beside(const Tensor& x, const Affine& affine, const Plan& plan) {
  return plan.weight == Extent::full ? OptTensor(laid_out_as(*affine.act_weight, x)) : contiguous(affine.act_weight);
}

Scalars scalars_of(const Settings& settings) {
  Scalars scalars;
  scalars.params = settings.params.data();
  return scalars;
}

// ---- CPU kernels ----------------------------------------------------------------------------------------------------

Normalised batch_norm_act_cpu(const Tensor& input, const Affine& affine, const Settings& settings) {
  Plan plan = check_batch_norm(input, affine, settings);
  Tensor y = empty_like_cpu(input);
  at::TensorOptions options = input.options().dtype(compute_dtype(input.scalar_type()));
  if (input.numel() == 0) return {y, at::zeros({input.size(1)}, options), at::zeros({input.size(1)}, options)};
  Tensor x = dense(input);
  auto [mean, var] = statistics(x);
  Folded folded(mean, var, affine, settings.eps);
  OptTensor act_weight = act_weight_beside(x, affine, plan);
  cpu::epilogue(plan.activation, {.shape = shape_of(x, 1),
                                  .dtype = to_dtype(x.scalar_type()),
                                  .x = x.const_data_ptr(),
                                  .residual = nullptr,
                                  .scale = along(folded.scale),
                                  .bias = along(folded.bias),
                                  .weight = vector_of(act_weight, plan.weight),
                                  .scalars = scalars_of(settings),
                                  .dropout = {},
                                  .y = y.mutable_data_ptr(),
                                  .parallel = parallel});
  return {std::move(y), std::move(mean), std::move(var)};
}

// With r = grad * f', n elements per channel and G = sum of r (x - mean):
//   grad_bias = sum of r,  grad_weight = G invstd,
//   grad_x = scale (r - grad_bias / n - (x - mean) invstd^2 G / n).
NormGradients batch_norm_act_backward_cpu(const Tensor& grad, const Tensor& input, const Affine& affine,
                                          const Tensor& mean, const Tensor& var, const Settings& settings,
                                          const Asked& asked) {
  Plan plan = check_backward(grad, input, affine, mean, var, settings, asked);
  Tensor weight_sum = sum_like(affine.weight, asked.weight, grad), bias_sum = sum_like(affine.bias, asked.bias, grad),
         act_sum = sum_like(affine.act_weight, asked.act_weight, grad);
  if (input.numel() == 0) return {empty_like_cpu(input), weight_sum, bias_sum, act_sum};

  int64_t channels = input.size(1);
  Tensor x = dense(input), g = laid_out_as(grad, x);
  Folded folded(mean, var, affine, settings.eps);
  OptTensor act_weight = act_weight_beside(x, affine, plan);
  EpilogueBackwardArgs args{.shape = shape_of(x, 1),
                            .dtype = to_dtype(x.scalar_type()),
                            .grad = g.const_data_ptr(),
                            .x = x.const_data_ptr(),
                            .scale = along(folded.scale),
                            .bias = along(folded.bias),
                            .weight = vector_of(act_weight, plan.weight),
                            .center = along(folded.mean),
                            .slope = {},
                            .offset = {},
                            .scalars = scalars_of(settings),
                            .dropout = {},
                            .grad_x = nullptr,
                            .raw = false,
                            .grad_bias = {},
                            .grad_scale = {},
                            .grad_weight = {},
                            .parallel = parallel};

  EpilogueBackwardArgs sums = args;
  Tensor sum = vector(channels), moment = vector(channels);
  sums.grad_bias = {sum.mutable_data_ptr(), DType::float64};
  sums.grad_scale = {moment.mutable_data_ptr(), DType::float64};
  // What f' costs is not paid twice, where r can be kept as it is: not in 16 bits, which would round it, and not for
  // activations that cost less than a store and a load.
  Tensor grad_x = asked.input ? gradient_as(x) : Tensor();
  const bool kept = asked.input && x.element_size() > 2 && !plan.activation.masked && !plan.activation.wide;
  if (kept) {
    sums.grad_x = grad_x.mutable_data_ptr();
    sums.raw = true;
  }
  cpu::epilogue_backward(plan.activation, sums);
  if (asked.act_weight) {
    EpilogueBackwardArgs third = args;
    third.grad_weight = sum_of(act_sum, true);
    cpu::epilogue_backward(plan.activation, third);
  }
  if (asked.bias) bias_sum.copy_(sum);
  if (asked.weight) weight_sum.copy_(moment * folded.invstd);
  if (!asked.input) return {at::empty({0}, input.options()), weight_sum, bias_sum, act_sum};

  double count = static_cast<double>(x.numel() / channels);
  Tensor slope = folded.scale * folded.invstd.square() * moment * (-1 / count),
         offset = folded.scale * sum * (-1 / count);
  args.slope = along(slope);
  args.offset = along(offset);
  args.grad_x = grad_x.mutable_data_ptr();
  if (kept) {  // r takes the place of grad, and there is no f'
    args.grad = args.grad_x;
    args.bias = args.weight = {};
  }
  cpu::epilogue_backward(kept ? *find_activation("identity") : plan.activation, args);
  return {std::move(grad_x), std::move(weight_sum), std::move(bias_sum), std::move(act_sum)};
}

// ---- CUDA: torch's statistics, and the epilogue's pass; backward as torch has it, with the activation's in front ---------

#if defined(FUSEDACT_CUDA)

// As the epilogue takes vectors: in the compute dtype.
epilogue::Beside beside(const Folded& folded, const Affine& affine, const Tensor& x) {
  const at::ScalarType compute = compute_dtype(x.scalar_type());
  return {folded.bias.to(compute), affine.act_weight, folded.scale.to(compute), {}};
}

Normalised batch_norm_act_cuda(const Tensor& input, const Affine& affine, const Settings& settings) {
  check_batch_norm(input, affine, settings);
  at::TensorOptions options = input.options().dtype(compute_dtype(input.scalar_type()));
  if (input.numel() == 0)
    return {empty_as(input), at::zeros({input.size(1)}, options), at::zeros({input.size(1)}, options)};
  auto [mean, var] = at::batch_norm_update_stats(input, {}, {}, 0.0);
  Folded folded(mean, var, affine, settings.eps);
  return {epilogue::bias_act_epilogue(input, beside(folded, affine, input), {}, settings.call(), 0.0), mean, var};
}

NormGradients batch_norm_act_backward_cuda(const Tensor& grad, const Tensor& input, const Affine& affine,
                                           const Tensor& mean, const Tensor& var, const Settings& settings,
                                           const Asked& asked) {
  check_backward(grad, input, affine, mean, var, settings, asked);
  Tensor none = at::empty({0}, input.options());
  if (input.numel() == 0)
    return {empty_as(input), sum_like(affine.weight, asked.weight, grad), sum_like(affine.bias, asked.bias, grad),
            sum_like(affine.act_weight, asked.act_weight, grad)};
  Folded folded(mean, var, affine, settings.eps);
  epilogue::Beside identity = beside(folded, affine, input);
  identity.weight = {};
  Call plain = settings.call();
  plain.activation = "identity";
  plain.params = {};
  Tensor z = epilogue::bias_act_epilogue(input, identity, {}, plain, 0.0);
  auto [r, of_nothing, act_sum] =
      bias_act_backward(grad, z, {}, affine.act_weight, settings.call(), false, asked.act_weight);
  auto [grad_x, weight_sum, bias_sum] =
      at::native_batch_norm_backward(r, input, affine.weight, {}, {}, mean, folded.invstd.to(mean.scalar_type()),
                                     /*train=*/true, settings.eps, {asked.input, asked.weight, asked.bias});
  auto or_none = [&](const Tensor& x, bool wanted) { return wanted ? x : none; };
  return {or_none(grad_x, asked.input), or_none(weight_sum, asked.weight), or_none(bias_sum, asked.bias),
          or_none(act_sum, asked.act_weight)};
}

#endif

// ---- Meta kernels ---------------------------------------------------------------------------------------------------

Normalised batch_norm_act_meta(const Tensor& input, const Affine& affine, const Settings& settings) {
  check_batch_norm(input, affine, settings);
  at::TensorOptions options = input.options().dtype(compute_dtype(input.scalar_type()));
  return {empty_like_meta(input), at::empty_symint({input.sym_size(1)}, options),
          at::empty_symint({input.sym_size(1)}, options)};
}

NormGradients batch_norm_act_backward_meta(const Tensor& grad, const Tensor& input, const Affine& affine,
                                           const Tensor& mean, const Tensor& var, const Settings& settings,
                                           const Asked& asked) {
  check_backward(grad, input, affine, mean, var, settings, asked);
  return {asked.input ? empty_like_meta(input) : at::empty({0}, input.options()),
          sum_like(affine.weight, asked.weight, grad), sum_like(affine.bias, asked.bias, grad),
          sum_like(affine.act_weight, asked.act_weight, grad)};
}

}  // namespace

Plan check_batch_norm(const Tensor& x, const Affine& affine, const Settings& settings) {
  Reasons reasons;
  check(reasons, x, affine, settings);
  reasons.raise_if_any(settings.activation);
  return fusedact::check(x, {}, affine.act_weight, settings.call());
}

// ---- schema ---------------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fusedact, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  m.def(
      "batch_norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor? act_weight, float eps, str activation, "
      "float[] params) -> (Tensor output, Tensor mean, Tensor var)",
      tags);
  m.def(
      "batch_norm_act_backward(Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor? act_weight, "
      "Tensor mean, Tensor var, float eps, str activation, float[] params, bool grad_input, bool grad_weight, "
      "bool grad_bias, bool grad_act_weight) -> "
      "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_act_weight)",
      tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("batch_norm_act", Flat<batch_norm_act_cpu>::call);
  m.impl("batch_norm_act_backward", Flat<batch_norm_act_backward_cpu>::call);
}
#if defined(FUSEDACT_CUDA)
TORCH_LIBRARY_IMPL(fusedact, CUDA, m) {
  m.impl("batch_norm_act", Flat<batch_norm_act_cuda>::call);
  m.impl("batch_norm_act_backward", Flat<batch_norm_act_backward_cuda>::call);
}
#endif

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("batch_norm_act", Flat<batch_norm_act_meta>::call);
  m.impl("batch_norm_act_backward", Flat<batch_norm_act_backward_meta>::call);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"batch_norm_act", "batch_norm_act_backward"})
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

Normalised batch_norm_act(const Tensor& input, const Affine& a, const Settings& s) {
  static auto op = handle<batch_norm_act_cpu>("fusedact::batch_norm_act");
  return op.call(input, a.weight, a.bias, a.act_weight, s.eps, s.activation, s.params);
}

NormGradients batch_norm_act_backward(const Tensor& grad, const Tensor& input, const Affine& a, const Tensor& mean,
                                      const Tensor& var, const Settings& s, const Asked& asked) {
  static auto op = handle<batch_norm_act_backward_cpu>("fusedact::batch_norm_act_backward");
  return op.call(grad, input, a.weight, a.bias, a.act_weight, mean, var, s.eps, s.activation, s.params, asked.input,
                 asked.weight, asked.bias, asked.act_weight);
}

}  // namespace fusedact::batch_norm
