// linear_act: schema, checks, the choice between tiles and torch's own product, CPU and Meta kernels, and the operators as
// compositions.
//
// The product is torch's: matrices here, tiles of them in the back end. No maths, no loops over elements.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <limits>

#include "kernels.h"
#include "linear.h"

namespace fusedact::linear {

// ---- checks ---------------------------------------------------------------------------------------------------------

namespace {

c10::SymDimVector output_sizes(const Tensor& input, const Tensor& weight) {
  c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
  sizes.back() = weight.sym_size(0);
  return sizes;
}

// Input and weight alone; true if the output's shape follows from them.
bool check_matrices(Reasons& reasons, const Tensor& x, const Tensor& weight) {
  if (weight.scalar_type() != x.scalar_type())
    reasons.add_dtype("weight is ", name_of(weight.scalar_type()), ", but x is ", name_of(x.scalar_type()),
                      ": they must be the same; cast one with .to()");
  if (weight.device() != x.device())
    reasons.add("weight is on ", weight.device(), ", but x is on ", x.device(), ": move one with .to()");
  if (weight.dim() != 2)
    reasons.add("weight has shape ", weight.sym_sizes(), ", but it must be [out_features, in_features]");
  if (x.dim() == 0) reasons.add("x is a scalar, but its last dim must hold the features: use x.reshape(1)");
  if (weight.dim() != 2 || x.dim() == 0) return false;
  if (x.sym_size(-1) != weight.sym_size(1)) {
    bool turned = x.sym_size(-1) == weight.sym_size(0);
    reasons.add("x has ", x.sym_size(-1), " features in its last dim (shape ", x.sym_sizes(), "), but weight takes ",
                weight.sym_size(1), " (shape ", weight.sym_sizes(), ", [out_features, in_features])",
                turned ? ": use weight.t()" : "");
  }
  return true;
}

// Every reason at once; `output` has the output's shape, dtype and device.
Plan check_linear(Reasons& reasons, const Tensor& output, const Tensor& weight, const OptTensor& bias,
                  const OptTensor& param, const Call& call) {
  bool fits = !bias || (bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0));
  if (!fits)
    reasons.add("bias has shape ", bias->sym_sizes(), ", but weight has ", weight.sym_size(0), " rows (shape ",
                weight.sym_sizes(), "): it must be [", weight.sym_size(0), "]");
  Plan plan = check(reasons, output, fits ? bias : OptTensor(), param, call);
  reasons.raise_if_any(call.activation);
  return plan;
}

struct Checked {
  Plan plan;
  Tensor output;  // as `make` made it
};

// Matrices that do not fit never reach `make`, which may multiply them: their output's shape is enough for the other reasons.
template <class Make>
Checked checked(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                const Call& call, Make make) {
  Reasons reasons;
  if (!check_matrices(reasons, input, weight)) reasons.raise_if_any(call.activation);
  Tensor output = reasons.any() ? at::empty_symint(output_sizes(input, weight), input.options()) : make();
  return {check_linear(reasons, output, weight, bias, param, call), output};
}

// ---- the product ----------------------------------------------------------------------------------------------------

// What the product's tiles are cut from: both [.., in_features], both in the compute dtype.
struct Matrices {
  Tensor input, weight;
};

Tensor empty_rows(at::IntArrayRef sizes, at::ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return empty_cpu(sizes, strides, dtype);
}

// In new memory of the library's own, in float32.
Tensor widened(const Tensor& x) { return empty_rows(x.sizes(), at::kFloat).copy_(x); }

// A matrix that BLAS takes as it lies, so that no tile copies it again.
Tensor blas_ready(const Tensor& x) {
  bool rows = x.stride(1) == 1 && x.stride(0) >= std::max<int64_t>(1, x.size(1));
  bool columns = x.stride(0) == 1 && x.stride(1) >= std::max<int64_t>(1, x.size(0));
  return rows || columns ? x : x.contiguous();
}

Tensor as_operand(const Tensor& matrix) { return matrix.element_size() == 2 ? widened(matrix) : blas_ready(matrix); }

void run_product(const void* context, const Tile& t, void* z, int64_t pitch) {
  const auto& m = *static_cast<const Matrices*>(context);
  at::AutoDispatchBelowADInplaceOrView below;  // the threads of a pool know nothing of the caller's
  Tensor out = at::for_blob(z, {t.rows, t.columns}).strides({pitch, 1}).options(m.input.options()).make_tensor();
  at::mm_out(out, m.input.narrow(0, t.row, t.rows), m.weight.narrow(0, t.column, t.columns).t());
}

// Whether the product's own epilogue has the meaning of the pass after it: a bias alone, where backward does not read the
// product without it. Of what cuBLASLt has beside that, RELU makes 0 of NaN, and GELU is 1 + tanh, whose digits are gone in
// the tail (docs/cuda.md).
bool in_product(const Tensor& input, const Tensor& weight, const OptTensor& bias, const Call& call) {
  const bool added = !bias || (bias->scalar_type() == input.scalar_type() && bias->device() == input.device() &&
                               bias->dim() == 1 && bias->size(0) == weight.size(0));
  const bool alone = call.activation == "identity" && call.gain == 1.0 && !call.clamped();
  return added && alone && (call.save == "auto" || call.save == "output");
}

// Without a bias that the pass is to add.
Tensor product_for(const Tensor& input, const Tensor& weight, const OptTensor& bias, const Call& call) {
  return at::linear(input, weight, in_product(input, weight, bias, call) ? bias : OptTensor());
}

Scalars scalars_of(const Call& call) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return {call.params.data(), call.gain, call.clamp_min.value_or(-infinity), call.clamp_max.value_or(infinity),
          call.clamped()};
}

// ---- the product is torch's, and bias_act the pass after it: small matrices, other devices ----------------------------

// Of a product that is there.
Saving activated(const Tensor& product, const OptTensor& bias, const OptTensor& param, const Call& call);

void check_counting(const Tensor& output, const Tensor& sums, const OptTensor& histogram, at::ArrayRef<double> zones,
                    const Call& call) {
  Reasons reasons;
  fusedact::check_counting(reasons, output.sym_size(-1), output.device(), sums, histogram, zones);
  reasons.raise_if_any(call.activation);
}

Checked checked_product(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                        const Call& call) {
  return checked(input, weight, bias, param, call, [&] { return product_for(input, weight, bias, call); });
}

Tensor act_after_product(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                         const Call& call) {
  Tensor z = checked_product(input, weight, bias, param, call).output;
  if (!in_product(input, weight, bias, call)) bias_act_(z, bias, param, call);
  return z;
}

Saving act_after_product_saving(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                const OptTensor& param, const Call& call) {
  auto [plan, z] = checked_product(input, weight, bias, param, call);
  if (plan.save == Saved::mask) return bias_act_mask(z, bias, param, call);
  if (plan.save == Saved::input) return {bias_act(z, bias, param, call), z};
  if (!in_product(input, weight, bias, call)) bias_act_(z, bias, param, call);
  return {z, at::empty({0}, z.options())};
}

Saving act_after_product_statistics(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                    const OptTensor& param, const Call& call, bool, const Counting& counting,
                                    const OptTensor&) {
  // The product without the bias: the pre-activation is counted as their sum.
  Tensor z = checked(input, weight, bias, param, call, [&] { return at::linear(input, weight); }).output;
  check_counting(z, counting.sums, counting.histogram, counting.zones, call);
  Saving result = activated(z, bias, param, call);
  statistics_(counting.sums, counting.histogram, z, bias, std::get<0>(result), -1, counting.zones);
  return result;
}

// ---- CPU kernels ----------------------------------------------------------------------------------------------------

Checked checked_cpu(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                    const Call& call) {
  return checked(input, weight, bias, param, call, [&] {
    c10::SmallVector<int64_t, 5> sizes(input.sizes().begin(), input.sizes().end());
    sizes.back() = weight.size(0);
    return empty_rows(sizes, input.scalar_type());
  });
}

// A vector by a matrix is bound by reading the matrix once: torch reads it in 16 bits, and with all threads. A product that
// stays in the caches until one pass has finished it gains nothing from tiles (512 x 128 -> 512, gelu: 1315 us in tiles, 1180
// without; 4096 x 256 -> 1024: 44 ms and 50).
constexpr int64_t fewest_rows = 8, cached_bytes = 4 << 20;

bool torchs_own(const Tensor& input, const Tensor& weight) {
  if (input.dim() == 0 || weight.dim() != 2) return false;  // refused by the checks
  const int64_t rows = c10::multiply_integers(input.sizes().slice(0, input.dim() - 1));
  if (rows < fewest_rows) return true;
  if (input.element_size() == 2) return has_dot_product(input.scalar_type());
  return rows * weight.size(0) * input.element_size() <= cached_bytes;
}

void forward(const Plan& plan, const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
             const Call& call, const Tensor& y, const Tensor& z, uint8_t* mask, const Counting* counting = nullptr) {
  if (y.numel() == 0) return;
  OptTensor bias_vector = contiguous(bias), given = param;
  if (param) given = plan.weight == Extent::full ? laid_out_as(*param, y) : param->contiguous();
  int64_t rows = y.numel() / y.size(-1);
  Matrices matrices{as_operand(input.reshape({rows, input.size(-1)})), as_operand(weight)};
  const LinearActArgs args{.rows = rows,
                           .columns = y.size(-1),
                           .dtype = to_dtype(y.scalar_type()),
                           .product = {&matrices, run_product},
                           .bias = vector_of(bias_vector, Extent::channel),
                           .param = vector_of(given, plan.weight),
                           .scalars = scalars_of(call),
                           .y = y.mutable_data_ptr(),
                           .z = z.defined() ? z.mutable_data_ptr() : nullptr,
                           .mask = mask,
                           .parallel = parallel,
                           .threads = at::get_num_threads()};
  if (counting)
    cpu::linear_act_statistics(plan.activation, args, counts_of(counting->sums, counting->histogram, counting->zones));
  else
    cpu::linear_act(plan.activation, args);
}

Tensor linear_act_cpu(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                      const Call& call) {
  if (torchs_own(input, weight)) return act_after_product(input, weight, bias, param, call);
  auto [plan, y] = checked_cpu(input, weight, bias, param, call);
  forward(plan, input, weight, bias, param, call, y, {}, nullptr);
  return y;
}

// What backward will read, yet without values.
Tensor to_save(const Plan& plan, const Tensor& y) {
  if (plan.save == Saved::input) return empty_cpu(y.sizes(), y.strides(), y.scalar_type());
  if (plan.save == Saved::mask) return empty_cpu({fusedact::mask_bytes(y.numel())}, {1}, at::kByte);
  return at::empty({0}, y.options());
}

void forward_saving(const Plan& plan, const Tensor& input, const Tensor& weight, const OptTensor& bias,
                    const OptTensor& param, const Call& call, const Tensor& y, const Tensor& saved,
                    const Counting* counting = nullptr) {
  forward(plan, input, weight, bias, param, call, y, plan.save == Saved::input ? saved : Tensor(),
          plan.save == Saved::mask ? saved.mutable_data_ptr<uint8_t>() : nullptr, counting);
}

Saving linear_act_saving_cpu(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                             const Call& call) {
  if (torchs_own(input, weight)) return act_after_product_saving(input, weight, bias, param, call);
  auto [plan, y] = checked_cpu(input, weight, bias, param, call);
  Tensor saved = to_save(plan, y);
  forward_saving(plan, input, weight, bias, param, call, y, saved);
  return {std::move(y), std::move(saved)};
}

Saving linear_act_statistics_cpu(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                 const OptTensor& param, const Call& call, bool saving, const Counting& counting,
                                 const OptTensor& gradient) {
  if (torchs_own(input, weight))
    return act_after_product_statistics(input, weight, bias, param, call, saving, counting, gradient);
  auto [plan, y] = checked_cpu(input, weight, bias, param, call);
  check_counting(y, counting.sums, counting.histogram, counting.zones, call);
  Tensor saved = saving ? to_save(plan, y) : at::empty({0}, y.options());
  if (saving)
    forward_saving(plan, input, weight, bias, param, call, y, saved, &counting);
  else
    forward(plan, input, weight, bias, param, call, y, {}, nullptr, &counting);
  return {std::move(y), std::move(saved)};
}

Tensor nothing(const Tensor& like) { return at::empty_symint({0}, like.options()); }

// In the compute dtype throughout, rounded once at the end.
Gradients backward(const Tensor& grad, const Tensor& saved, const OptTensor& input, const OptTensor& weight,
                   const OptTensor& bias, const OptTensor& param, const Call& call, const Wanted& wanted,
                   const OptTensor& sums) {
  if (grad.element_size() != 2 || has_dot_product(grad.scalar_type()) || grad.numel() == 0)
    return composed_backward(grad, {}, saved, input, weight, bias, param, call, wanted, sums);
  auto wide = [](const OptTensor& x) {
    return x && x->element_size() == 2 ? OptTensor(widened(*x)) : x;  // a mask stays one
  };
  auto [x, w, b, p] =
      composed_backward(widened(grad), {}, *wide(saved), wanted.weight ? wide(input) : input,
                        wanted.input ? wide(weight) : weight, wide(bias), wide(param), call, wanted, sums);
  auto rounded = [&](const Tensor& x, at::ScalarType dtype) { return x.to(dtype); };
  return {rounded(x, grad.scalar_type()), rounded(w, grad.scalar_type()),
          rounded(b, bias ? bias->scalar_type() : grad.scalar_type()),
          rounded(p, param ? param->scalar_type() : grad.scalar_type())};
}

Gradients linear_act_backward_cpu(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                  const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                  const Call& call, const Wanted& wanted) {
  return backward(grad, saved, input, weight, bias, param, call, wanted, {});
}

Gradients linear_act_backward_statistics_cpu(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                             const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                             const Call& call, const Wanted& wanted, const Tensor& sums) {
  check_counting(grad, sums, {}, {}, call);
  return backward(grad, saved, input, weight, bias, param, call, wanted, sums);
}

#if defined(FUSEDACT_CUDA)
Gradients linear_act_backward_cuda(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                   const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                   const Call& call, const Wanted& wanted) {
  return composed_backward(grad, {}, saved, input, weight, bias, param, call, wanted);
}

Gradients linear_act_backward_statistics_cuda(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                              const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                              const Call& call, const Wanted& wanted, const Tensor& sums) {
  check_counting(grad, sums, {}, {}, call);
  return composed_backward(grad, {}, saved, input, weight, bias, param, call, wanted, sums);
}
#endif

// ---- Meta kernels ---------------------------------------------------------------------------------------------------

Checked checked_meta(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                     const Call& call) {
  return checked(input, weight, bias, param, call,
                 [&] { return at::empty_symint(output_sizes(input, weight), input.options()); });
}

Tensor linear_act_meta(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                       const Call& call) {
  return checked_meta(input, weight, bias, param, call).output;
}

Saving linear_act_saving_meta(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                              const Call& call) {
  auto [plan, y] = checked_meta(input, weight, bias, param, call);
  Tensor saved = plan.save == Saved::input ? at::empty_symint(y.sym_sizes(), y.options())
                 : plan.save == Saved::mask
                     ? at::empty_symint({fusedact::mask_bytes(y.sym_numel())}, y.options().dtype(at::kByte))
                     : nothing(y);
  return {y, saved};
}

Gradients linear_act_backward_meta(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                   const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                   const Call& call, const Wanted& wanted) {
  check_backward(grad, saved, bias, param, call, wanted.bias, wanted.param);
  c10::SymDimVector sizes(grad.sym_sizes().begin(), grad.sym_sizes().end());
  if (wanted.input) sizes.back() = weight->sym_size(1);
  return {wanted.input ? at::empty_symint(sizes, grad.options()) : nothing(grad),
          wanted.weight ? at::empty_symint({grad.sym_size(-1), input->sym_size(-1)}, grad.options()) : nothing(grad),
          wanted.bias ? at::empty_symint(bias->sym_sizes(), bias->options()) : nothing(grad),
          wanted.param ? at::empty_symint(param->sym_sizes(), param->options()) : nothing(grad)};
}

Saving linear_act_statistics_meta(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                  const OptTensor& param, const Call& call, bool saving, const Counting& counting,
                                  const OptTensor&) {
  if (saving) {
    auto [y, saved] = linear_act_saving_meta(input, weight, bias, param, call);
    check_counting(y, counting.sums, counting.histogram, counting.zones, call);
    return {y, saved};
  }
  Tensor y = checked_meta(input, weight, bias, param, call).output;
  check_counting(y, counting.sums, counting.histogram, counting.zones, call);
  return {y, nothing(y)};
}

Gradients linear_act_backward_statistics_meta(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                              const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                              const Call& call, const Wanted& wanted, const Tensor& sums) {
  check_counting(grad, sums, {}, {}, call);
  return linear_act_backward_meta(grad, saved, input, weight, bias, param, call, wanted);
}

}  // namespace

bool has_dot_product(at::ScalarType dtype) {
  static const auto known = at::cpu::get_cpu_capabilities();
  auto has = [&](const char* name) {
    auto it = known.find(name);
    return it != known.end() && it->second.isBool() && it->second.toBool();
  };
  static const bool other = !has("sse2");  // not x86: torch has kernels of its own there
  static const bool bfloat16 = other || has("avx512_bf16") || has("amx_bf16");
  static const bool half = other || has("avx512_fp16") || has("amx_fp16");
  return dtype == at::kBFloat16 ? bfloat16 : half;
}

// ---- compositions ---------------------------------------------------------------------------------------------------

namespace {

Saving activated(const Tensor& product, const OptTensor& bias, const OptTensor& param, const Call& call) {
  Plan plan = check(product, bias, param, call);
  if (plan.save == Saved::mask) return bias_act_mask(product, bias, param, call);
  return {bias_act(product, bias, param, call), plan.save == Saved::input ? product : nothing(product)};
}

}  // namespace

Saving composed(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                const Call& call) {
  return activated(at::linear(input, weight), bias, param, call);
}

Gradients composed_backward(const Tensor& grad, const Tensor& moved, const Tensor& saved, const OptTensor& input,
                            const OptTensor& weight, const OptTensor& bias, const OptTensor& param, const Call& call,
                            const Wanted& wanted, const OptTensor& sums) {
  Tensor of_product = moved, of_bias, of_param;
  if (grad.defined()) {
    // A mask's bits lie in the order of the output, which is contiguous.
    Tensor through;
    const Tensor g = call.save == "mask" ? grad.contiguous() : grad;
    std::tie(through, of_bias, of_param) =
        sums ? bias_act_backward_statistics(g, saved, bias, param, call, wanted.bias, wanted.param, *sums)
             : bias_act_backward(g, saved, bias, param, call, wanted.bias, wanted.param);
    of_product = moved.defined() ? moved + through : through;
  }
  auto rows = [](const Tensor& x) {
    c10::SymInt count = 1;
    for (int64_t d = 0; d + 1 < x.dim(); ++d) count *= x.sym_size(d);
    return x.reshape_symint({count, x.sym_size(-1)});
  };
  Tensor none = nothing(of_product);
  return {wanted.input ? at::matmul(of_product, *weight) : none,
          wanted.weight ? at::mm(rows(of_product).t(), rows(*input)) : none, of_bias.defined() ? of_bias : none,
          of_param.defined() ? of_param : none};
}

// ---- schema ---------------------------------------------------------------------------------------------------------

#define FUSEDACT_SCALARS "str activation, float[] params, float gain, float? clamp_min, float? clamp_max, str save"

TORCH_LIBRARY_FRAGMENT(fusedact, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};
  m.def("linear_act(Tensor input, Tensor weight, Tensor? bias, Tensor? param, " FUSEDACT_SCALARS ") -> Tensor", tags);
  m.def("linear_act_saving(Tensor input, Tensor weight, Tensor? bias, Tensor? param, " FUSEDACT_SCALARS
        ") -> (Tensor output, Tensor saved)",
        tags);
  m.def(
      "linear_act_backward(Tensor grad, Tensor saved, Tensor? input, Tensor? weight, Tensor? bias, Tensor? "
      "param, " FUSEDACT_SCALARS
      ", bool grad_input, bool grad_weight, bool grad_bias, bool grad_param) -> (Tensor grad_input, Tensor "
      "grad_weight, Tensor grad_bias, Tensor grad_param)",
      tags);
  m.def("linear_act_statistics(Tensor input, Tensor weight, Tensor? bias, Tensor? param, " FUSEDACT_SCALARS
        ", bool saving, float[] zones, Tensor(a!) sums, Tensor(b!) histogram, Tensor(c!)? gradient) -> (Tensor output, "
        "Tensor saved)",
        tags);
  m.def(
      "linear_act_backward_statistics(Tensor grad, Tensor saved, Tensor? input, Tensor? weight, Tensor? bias, Tensor? "
      "param, " FUSEDACT_SCALARS
      ", bool grad_input, bool grad_weight, bool grad_bias, bool grad_param, Tensor(a!) sums) -> (Tensor grad_input, "
      "Tensor grad_weight, Tensor grad_bias, Tensor grad_param)",
      tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("linear_act", Flat<linear_act_cpu>::call);
  m.impl("linear_act_saving", Flat<linear_act_saving_cpu>::call);
  m.impl("linear_act_backward", Flat<linear_act_backward_cpu>::call);
  m.impl("linear_act_statistics", Flat<linear_act_statistics_cpu>::call);
  m.impl("linear_act_backward_statistics", Flat<linear_act_backward_statistics_cpu>::call);
}
#if defined(FUSEDACT_CUDA)
TORCH_LIBRARY_IMPL(fusedact, CUDA, m) {
  m.impl("linear_act", Flat<act_after_product>::call);
  m.impl("linear_act_saving", Flat<act_after_product_saving>::call);
  m.impl("linear_act_backward", Flat<linear_act_backward_cuda>::call);
  m.impl("linear_act_statistics", Flat<act_after_product_statistics>::call);
  m.impl("linear_act_backward_statistics", Flat<linear_act_backward_statistics_cuda>::call);
}
#endif

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("linear_act", Flat<linear_act_meta>::call);
  m.impl("linear_act_saving", Flat<linear_act_saving_meta>::call);
  m.impl("linear_act_backward", Flat<linear_act_backward_meta>::call);
  m.impl("linear_act_statistics", Flat<linear_act_statistics_meta>::call);
  m.impl("linear_act_backward_statistics", Flat<linear_act_backward_statistics_meta>::call);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"linear_act", "linear_act_saving", "linear_act_backward", "linear_act_statistics",
                         "linear_act_backward_statistics"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<raise_no_kernel>());
}

// ---- the operators as functions -------------------------------------------------------------------------------------

namespace {

// The typed handle of an operator, looked up once.
template <auto kernel>
auto handle(const char* name) {
  using Signature = std::remove_pointer_t<decltype(&Flat<kernel>::call)>;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

Tensor linear_act(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                  const Call& c) {
  static auto op = handle<linear_act_cpu>("fusedact::linear_act");
  return op.call(input, weight, bias, param, c.activation, c.params, c.gain, c.clamp_min, c.clamp_max, c.save);
}

Saving linear_act_saving(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                         const Call& c) {
  static auto op = handle<linear_act_saving_cpu>("fusedact::linear_act_saving");
  return op.call(input, weight, bias, param, c.activation, c.params, c.gain, c.clamp_min, c.clamp_max, c.save);
}

Gradients linear_act_backward(const Tensor& grad, const Tensor& saved, const OptTensor& input, const OptTensor& weight,
                              const OptTensor& bias, const OptTensor& param, const Call& c, const Wanted& w) {
  static auto op = handle<linear_act_backward_cpu>("fusedact::linear_act_backward");
  return op.call(grad, saved, input, weight, bias, param, c.activation, c.params, c.gain, c.clamp_min, c.clamp_max,
                 c.save, w.input, w.weight, w.bias, w.param);
}

Saving linear_act_statistics(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                             const Call& c, bool saving, const Counting& counting, const OptTensor& gradient) {
  static auto op = handle<linear_act_statistics_cpu>("fusedact::linear_act_statistics");
  return op.call(input, weight, bias, param, c.activation, c.params, c.gain, c.clamp_min, c.clamp_max, c.save, saving,
                 counting.zones, counting.sums, counting.histogram, gradient);
}

Gradients linear_act_backward_statistics(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                         const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                         const Call& c, const Wanted& w, const Tensor& sums) {
  static auto op = handle<linear_act_backward_statistics_cpu>("fusedact::linear_act_backward_statistics");
  return op.call(grad, saved, input, weight, bias, param, c.activation, c.params, c.gain, c.clamp_min, c.clamp_max,
                 c.save, w.input, w.weight, w.bias, w.param, sums);
}

}  // namespace fusedact::linear
