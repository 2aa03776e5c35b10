// Gated units as operators: schema, checks, kernels for the CPU, CUDA and Meta. No maths, no loops over elements.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <cmath>

#include "../checks.h"
#include "../device.h"

namespace fusedact {

// ---- checks ---------------------------------------------------------------------------------------------------------

namespace {

// A bias: as long as the channels that it meets; `what` says which those are.
void check_gated_bias(Reasons& reasons, const char* name, const Tensor& bias, const Tensor& x, int64_t dim,
                      const char* what) {
  check_vector(reasons, name, bias, x);
  if (bias.dim() != 1)
    reasons.add(name, " has shape ", bias.sym_sizes(), ", but it must have one dim, as long as the input's dim ", dim);
  else if (bias.sym_size(0) != (x.dim() == 0 ? c10::SymInt(1) : x.sym_size(dim)))
    reasons.add(name, " has ", bias.sym_size(0), " elements, but ", what, " has ",
                x.dim() == 0 ? c10::SymInt(1) : x.sym_size(dim), " in dim ", dim, " (shape ", x.sym_sizes(), ")");
}

void check_two(Reasons& reasons, const Tensor& first, const Tensor& second) {
  if (second.scalar_type() != first.scalar_type())
    reasons.add_dtype("the first tensor is ", name_of(first.scalar_type()), " and the second ",
                      name_of(second.scalar_type()), ": give both in one dtype");
  if (second.sym_sizes() != first.sym_sizes())
    reasons.add("the first tensor has shape ", first.sym_sizes(), " and the second ", second.sym_sizes(),
                ": gate and value must have the same");
  if (second.device() != first.device())
    reasons.add("the first tensor is on ", first.device(), " and the second on ", second.device(),
                ": move one with .to()");
}

bool is_word(Reasons& reasons, const char* name, std::string_view value, std::string_view no, std::string_view yes) {
  if (value != no && value != yes) reasons.add(name, " is '", value, "', but it must be '", no, "' or '", yes, "'");
  return value == yes;
}

}  // namespace

GatedPlan check_gated(const GatedTensors& t, const GatedCall& call) {
  const Activation& activation = activation_named(call.activation);
  const Tensor& x = t.input;
  const bool two = t.other.has_value();
  Reasons reasons;
  if (!supported(x.scalar_type()))
    reasons.add_dtype("the input is ", name_of(x.scalar_type()),
                      ", but it must be float32, float64, bfloat16 or float16");
  if (two) check_two(reasons, x, *t.other);
  if (call.params.size() != static_cast<size_t>(activation.params))
    reasons.add("got ", call.params.size(), " parameters, but it has ", activation.params);
  const bool second = is_word(reasons, "gate", call.gate, "first", "second");
  const bool interleaved = is_word(reasons, "layout", call.layout, "concat", "interleaved");
  if (two && interleaved)
    reasons.add("layout is 'interleaved', but gate and value are two tensors: leave it out, or stack them into one");
  if (!std::isfinite(call.alpha) || call.alpha == 0)
    reasons.add("alpha must be finite and not 0, but got ", call.alpha);
  if (!std::isfinite(call.offset)) reasons.add("offset must be finite, but got ", call.offset);
  if (call.limit && !(*call.limit > 0)) reasons.add("limit must be positive, or None, but got ", *call.limit);

  const int64_t rank = std::max<int64_t>(x.dim(), 1), dim = call.dim < 0 ? call.dim + rank : call.dim;
  if (dim < 0 || dim >= rank) {
    reasons.add("dim is ", call.dim, ", but the input has ", x.dim(), " dims (shape ", x.sym_sizes(),
                "): it must be in [", -rank, ", ", rank - 1, "]");
  } else {
    if (!two && x.dim() == 0)
      reasons.add("the input is a scalar, which has no two halves: give gate and value as two tensors");
    else if (!two && x.sym_size(dim) % 2 != 0)
      reasons.add("the input has ", x.sym_size(dim), " elements in dim ", dim, " (shape ", x.sym_sizes(),
                  "), which is odd: gate and value must have half each");
    if (t.bias)
      check_gated_bias(reasons, "bias", *t.bias, x, dim, two ? "the first tensor" : "the input (gate and value)");
    if (two && t.other_bias)
      check_gated_bias(reasons, "the second bias", *t.other_bias, *t.other, dim, "the second tensor");
  }
  if (!two && t.other_bias)
    reasons.add("got two biases, but one tensor that holds both halves: give one bias, of both halves");
  reasons.raise_if_any(c10::str("gated_act, ", call.activation));
  return {activation, dim, second, interleaved, two};
}

c10::SymDimVector gated_sizes(const Tensor& input, const GatedPlan& plan) {
  c10::SymIntArrayRef sizes = input.sym_sizes();
  c10::SymDimVector half(sizes.begin(), sizes.end());
  if (!plan.two) half[plan.dim] = half[plan.dim] / 2;
  return half;
}

c10::SymDimVector gated_strides(const Tensor& input, const GatedPlan& plan) {
  c10::SymDimVector strides = dense_strides(input);
  if (plan.two) return strides;
  const c10::SymInt own = strides[plan.dim];
  for (c10::SymInt& stride : strides)
    if (stride > own) stride = stride / 2;
  return strides;
}

// ---- kernels --------------------------------------------------------------------------------------------------------

namespace {

// The halves of a call as the kernels want them: dense, and where they lie.
struct Parts {
  Tensor input, other;  // dense, alike
  Shape shape;          // of the result
  Halves halves;
  int64_t second;  // with one tensor, where the second half begins, in elements
  c10::DimVector sizes, strides;
  Tensor bias[2];  // contiguous, first and second; undefined where there is none
};

c10::DimVector plain(const c10::SymDimVector& symbols) {
  c10::DimVector result;
  for (const c10::SymInt& s : symbols) result.push_back(s.guard_int(__FILE__, __LINE__));
  return result;
}

Parts parts_of(const GatedTensors& t, const GatedPlan& plan) {
  Parts p;
  p.input = dense(t.input);
  p.sizes = plain(gated_sizes(p.input, plan));
  p.strides = plain(gated_strides(p.input, plan));
  p.shape = shape_of(p.input, plan.dim);
  p.second = 0;
  if (plan.two) {
    p.other = laid_out_as(*t.other, p.input);
    p.halves = {std::max<int64_t>(p.input.numel(), 1), 0, 1};
    if (t.bias) p.bias[0] = t.bias->contiguous();
    if (t.other_bias) p.bias[1] = t.other_bias->contiguous();
    return p;
  }
  p.shape.channels /= 2;
  const Shape& s = p.shape;
  if (!plan.interleaved) {
    const int64_t row = std::max<int64_t>(s.channels * s.inner, 1);
    p.halves = {row, 2 * row, 1};
    p.second = row;
  } else if (s.inner > 1) {
    p.halves = {s.inner, 2 * s.inner, 1};
    p.second = s.inner;
  } else {
    p.halves = {std::max<int64_t>(s.numel(), 1), 0, 2};
    p.second = 1;
  }
  for (int64_t half = 0; t.bias && half < 2; ++half)
    p.bias[half] = plan.interleaved ? t.bias->view({s.channels, 2}).select(1, half).contiguous()
                                    : t.bias->narrow(0, half * s.channels, s.channels).contiguous();
  return p;
}

// x in the layout that results of this call have.
Tensor laid_out(const Tensor& x, const Parts& p) {
  bool alike = true;
  for (int64_t d = 0; d < x.dim(); ++d) alike = alike && (x.size(d) == 1 || x.stride(d) == p.strides[d]);
  return alike || x.numel() == 0 ? x : empty_on(x, p.sizes, p.strides, x.scalar_type()).copy_(x);
}

GatedScalars scalars_of(const GatedCall& call) {
  return {call.params.data(), call.alpha, call.offset, call.limit.value_or(0), call.limit.has_value()};
}

Vector vector_of(const Tensor& bias) {
  if (!bias.defined()) return {};
  return {bias.const_data_ptr(), to_dtype(bias.scalar_type()), Extent::channel};
}

// The start of each half, in the memory of one tensor or of two.
template <class Pointer>
struct Starts {
  Pointer gate, value;
};
Starts<const char*> read(const Parts& p, const GatedPlan& plan) {
  const char* first = static_cast<const char*>(p.input.const_data_ptr());
  const char* second =
      plan.two ? static_cast<const char*>(p.other.const_data_ptr()) : first + p.second * p.input.element_size();
  return plan.gate_second ? Starts<const char*>{second, first} : Starts<const char*>{first, second};
}

Tensor gated_act_dense(const GatedTensors& t, const GatedCall& call) {
  const GatedPlan plan = check_gated(t, call);
  const Parts p = parts_of(t, plan);
  Tensor y = empty_on(p.input, p.sizes, p.strides, p.input.scalar_type());
  if (y.numel() == 0) return y;
  const auto [gate, value] = read(p, plan);
  const GatedForwardArgs args{.shape = p.shape,
                              .dtype = to_dtype(y.scalar_type()),
                              .halves = p.halves,
                              .gate = gate,
                              .value = value,
                              .gate_bias = vector_of(p.bias[plan.gate_second]),
                              .value_bias = vector_of(p.bias[!plan.gate_second]),
                              .scalars = scalars_of(call),
                              .y = y.mutable_data_ptr(),
                              .parallel = parallel};
  on_device_of(
      y, [&] { cpu::gated_forward(plan.activation, args); },
      [&](cuda::Queue& q) { cuda::gated_forward(plan.activation, args, q.stream); });
  return y;
}

GatedPlan check_backward(const Tensor& grad, const GatedTensors& t, const GatedCall& call, bool grad_bias,
                         bool grad_other_bias) {
  GatedPlan plan = check_gated(t, call);
  Reasons reasons;
  if (grad.scalar_type() != t.input.scalar_type())
    reasons.add_dtype("grad is ", name_of(grad.scalar_type()), ", but the input is ", name_of(t.input.scalar_type()));
  if (grad.sym_sizes() != c10::SymIntArrayRef(gated_sizes(t.input, plan)))
    reasons.add("grad has shape ", grad.sym_sizes(), ", but the result has ",
                c10::SymIntArrayRef(gated_sizes(t.input, plan)));
  if (grad.device() != t.input.device())
    reasons.add("grad is on ", grad.device(), ", but the input is on ", t.input.device());
  if (grad_bias && !t.bias) reasons.add("a gradient for the bias is asked for, but there is no bias");
  if (grad_other_bias && !t.other_bias)
    reasons.add("a gradient for the second bias is asked for, but there is no second bias");
  reasons.raise_if_any(c10::str("gated_act_backward, ", call.activation));
  return plan;
}

GatedGradients gated_act_backward_dense(const Tensor& grad, const GatedTensors& t, const GatedCall& call,
                                        bool grad_bias, bool grad_other_bias) {
  const GatedPlan plan = check_backward(grad, t, call, grad_bias, grad_other_bias);
  const Parts p = parts_of(t, plan);
  Tensor grad_input = gradient_as(p.input);
  Tensor grad_other = plan.two ? gradient_as(p.other) : at::empty({0}, grad.options());
  Tensor bias_sum = sum_like(t.bias, grad_bias, grad), other_sum = sum_like(t.other_bias, grad_other_bias, grad);
  if (grad.numel() == 0) return {grad_input, grad_other, bias_sum, other_sum};

  // Where the sums of the two halves go; those of an interleaved bias alternate once they are there.
  Tensor sums[2];
  if (plan.two) {
    if (grad_bias) sums[0] = bias_sum;
    if (grad_other_bias) sums[1] = other_sum;
  } else if (grad_bias) {
    Tensor halves = plan.interleaved ? at::empty_like(bias_sum) : bias_sum;
    for (int64_t half = 0; half < 2; ++half) sums[half] = halves.narrow(0, half * p.shape.channels, p.shape.channels);
  }
  const auto [gate, value] = read(p, plan);
  char* first = static_cast<char*>(grad_input.mutable_data_ptr());
  char* second =
      plan.two ? static_cast<char*>(grad_other.mutable_data_ptr()) : first + p.second * grad_input.element_size();
  const Tensor g = laid_out(grad, p);
  const Tensor &gate_sum = sums[plan.gate_second], &value_sum = sums[!plan.gate_second];
  const GatedBackwardArgs args{.shape = p.shape,
                               .dtype = to_dtype(grad.scalar_type()),
                               .halves = p.halves,
                               .grad = g.const_data_ptr(),
                               .gate = gate,
                               .value = value,
                               .gate_bias = vector_of(p.bias[plan.gate_second]),
                               .value_bias = vector_of(p.bias[!plan.gate_second]),
                               .scalars = scalars_of(call),
                               .grad_gate = plan.gate_second ? second : first,
                               .grad_value = plan.gate_second ? first : second,
                               .grad_gate_bias = sum_of(gate_sum, gate_sum.defined()),
                               .grad_value_bias = sum_of(value_sum, value_sum.defined()),
                               .parallel = parallel};
  on_device_of(
      g, [&] { cpu::gated_backward(plan.activation, args); },
      [&](cuda::Queue& q) {
        cuda::gated_backward(plan.activation, args, q.room(cuda::workspace_bytes(plan.activation, args)), q.stream);
      });
  if (grad_bias && !plan.two && plan.interleaved)
    for (int64_t half = 0; half < 2; ++half) bias_sum.view({-1, 2}).select(1, half).copy_(sums[half]);
  return {grad_input, grad_other, bias_sum, other_sum};
}

// ---- Meta kernels ---------------------------------------------------------------------------------------------------

Tensor gated_act_meta(const GatedTensors& t, const GatedCall& call) {
  const GatedPlan plan = check_gated(t, call);
  return at::empty_strided_symint(gated_sizes(t.input, plan), gated_strides(t.input, plan), t.input.options());
}

GatedGradients gated_act_backward_meta(const Tensor& grad, const GatedTensors& t, const GatedCall& call, bool grad_bias,
                                       bool grad_other_bias) {
  const GatedPlan plan = check_backward(grad, t, call, grad_bias, grad_other_bias);
  Tensor grad_input = empty_like_meta(t.input);
  // The second tensor's gradient lies as the first's.
  Tensor grad_other = plan.two ? empty_like_meta(t.input) : at::empty_symint({0}, grad.options());
  return {grad_input, grad_other, sum_like(t.bias, grad_bias, grad), sum_like(t.other_bias, grad_other_bias, grad)};
}

}  // namespace

// ---- schema ---------------------------------------------------------------------------------------------------------

#define FUSEDACT_GATED                                                                                       \
  "Tensor input, Tensor? other, Tensor? bias, Tensor? other_bias, str activation, float[] params, int dim, " \
  "str gate, str layout, float? limit, float alpha, float offset"

TORCH_LIBRARY_FRAGMENT(fusedact, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};
  m.def("gated_act(" FUSEDACT_GATED ") -> Tensor", tags);
  m.def("gated_act_backward(Tensor grad, " FUSEDACT_GATED
        ", bool grad_bias, bool grad_other_bias) -> "
        "(Tensor grad_input, Tensor grad_other, Tensor grad_bias, Tensor grad_other_bias)",
        tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("gated_act", FlatGated<gated_act_dense>::call);
  m.impl("gated_act_backward", FlatGated<gated_act_backward_dense>::call);
}
#if defined(FUSEDACT_CUDA)
TORCH_LIBRARY_IMPL(fusedact, CUDA, m) {
  m.impl("gated_act", FlatGated<gated_act_dense>::call);
  m.impl("gated_act_backward", FlatGated<gated_act_backward_dense>::call);
}
#endif

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("gated_act", FlatGated<gated_act_meta>::call);
  m.impl("gated_act_backward", FlatGated<gated_act_backward_meta>::call);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"gated_act", "gated_act_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<raise_no_kernel>());
}

// ---- the operators as functions -------------------------------------------------------------------------------------

namespace {

template <auto kernel>
auto handle(const char* name) {
  using Signature = std::remove_pointer_t<decltype(&FlatGated<kernel>::call)>;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

Tensor gated_act(const GatedTensors& t, const GatedCall& c) {
  static auto op = handle<gated_act_dense>("fusedact::gated_act");
  return op.call(t.input, t.other, t.bias, t.other_bias, c.activation, c.params, c.dim, c.gate, c.layout, c.limit,
                 c.alpha, c.offset);
}

GatedGradients gated_act_backward(const Tensor& grad, const GatedTensors& t, const GatedCall& c, bool grad_bias,
                                  bool grad_other_bias) {
  static auto op = handle<gated_act_backward_dense>("fusedact::gated_act_backward");
  return op.call(grad, t.input, t.other, t.bias, t.other_bias, c.activation, c.params, c.dim, c.gate, c.layout, c.limit,
                 c.alpha, c.offset, grad_bias, grad_other_bias);
}

}  // namespace fusedact
