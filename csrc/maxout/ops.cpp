// The maxout operators: schema, checks, kernels for the CPU, CUDA and Meta. No maths, no loops;
// derivatives are in autograd.cpp.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include "../device.h"
#include "../reasons.h"
#include "kernels.h"

namespace fusedact {
namespace {

void check_pieces(Reasons& reasons, int64_t pieces) {
  if (pieces < 1 || pieces > most_pieces)
    reasons.add("pieces is ", pieces, ", but it must be in [1, ", most_pieces, "]");
}

int64_t check_backward(const Tensor& grad, const Tensor& indices, const OptTensor& bias, int64_t pieces, int64_t dim,
                       bool grad_bias) {
  Reasons reasons;
  check_input(reasons, grad, "grad");
  dim = check_dim(reasons, grad, dim);
  check_pieces(reasons, pieces);
  if (indices.scalar_type() != at::kByte || indices.sym_sizes() != grad.sym_sizes())
    reasons.add("indices is ", name_of(indices.scalar_type()), " of shape ", indices.sym_sizes(),
                ", but it must be uint8 of grad's shape, ", grad.sym_sizes());
  if (grad_bias && !bias) reasons.add("a gradient for the bias is asked for, but there is no bias");
  reasons.raise_if_any("maxout");
  return dim;
}

// ---- layout: the input's order of memory, with fewer or more channels -------------------------------------------------

// Whether dim d of a dense tensor lies outside of `dim` in memory.
template <class Strides, class Sizes>
bool outside(const Strides& strides, const Sizes& sizes, int64_t d, int64_t dim) {
  return d != dim && (sizes[dim] == 1 ? strides[d] >= strides[dim] : strides[d] > strides[dim]);
}

Shape shape_around(const Tensor& x, int64_t dim, int64_t channels) {
  Shape shape{1, channels, 1};
  for (int64_t d = 0; d < x.dim(); ++d)
    if (d != dim && x.size(d) != 1) (outside(x.strides(), x.sizes(), d, dim) ? shape.outer : shape.inner) *= x.size(d);
  return shape;
}

// Sizes and strides of x with `channels` in `dim`.
struct Like {
  c10::SymDimVector sizes, strides;
  Like(const Tensor& x, int64_t dim, const c10::SymInt& channels) {
    c10::SymIntArrayRef old = x.sym_sizes();
    c10::SymDimVector dense = dense_strides(x);
    sizes.assign(old.begin(), old.end());
    sizes[dim] = channels;
    strides = dense;
    c10::SymInt inner = 1, around = 1;
    for (int64_t d = 0; d < x.dim(); ++d) {
      if (d == dim) continue;
      bool out = outside(dense, old, d, dim);
      if (!out) inner = inner * old[d];
      if (out && old[d] != 1) strides[d] = dense[d] / old[dim] * channels;
    }
    strides[dim] = inner;
  }
};

Tensor empty_dense_like(const Tensor& x, int64_t dim, int64_t channels, at::ScalarType dtype) {
  Like like(x, dim, channels);
  return empty_on(x, C10_AS_INTARRAYREF_SLOW(like.sizes), C10_AS_INTARRAYREF_SLOW(like.strides), dtype);
}
Tensor empty_meta_like(const Tensor& x, int64_t dim, const c10::SymInt& channels, at::ScalarType dtype) {
  Like like(x, dim, channels);
  return at::empty_strided_symint(like.sizes, like.strides, x.options().dtype(dtype));
}

// ---- kernels --------------------------------------------------------------------------------------------------------

Maxout maxout_dense(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim) {
  dim = check_maxout(input, bias, pieces, dim);
  Tensor x = dense(input);
  int64_t outputs = x.size(dim) / pieces;
  if (x.numel() == 0) {
    auto sizes = x.sizes().vec();
    sizes[dim] = outputs;
    return {at::empty(sizes, x.options()), at::empty(sizes, x.options().dtype(at::kByte))};
  }
  Tensor y = empty_dense_like(x, dim, outputs, x.scalar_type()), indices = empty_dense_like(x, dim, outputs, at::kByte);
  OptTensor bias_vector = contiguous(bias);
  const MaxoutArgs args{.shape = shape_around(x, dim, x.size(dim)),
                        .pieces = pieces,
                        .dtype = to_dtype(x.scalar_type()),
                        .x = x.const_data_ptr(),
                        .bias = vector_of(bias_vector, Extent::channel),
                        .y = y.mutable_data_ptr(),
                        .indices = indices.mutable_data_ptr<uint8_t>(),
                        .parallel = parallel};
  on_device_of(x, [&] { cpu::maxout(args); }, [&](cuda::Queue& q) { cuda::maxout(args, q.stream); });
  return {std::move(y), std::move(indices)};
}

MaxoutGradients maxout_backward_dense(const Tensor& grad, const Tensor& indices, const OptTensor& bias, int64_t pieces,
                                      int64_t dim, bool grad_bias) {
  dim = check_backward(grad, indices, bias, pieces, dim, grad_bias);
  Tensor bias_sum = sum_like(bias, grad_bias, grad);
  Tensor which = dense(indices), g = laid_out_as(grad, which);
  int64_t channels = grad.size(dim) * pieces;
  if (grad.numel() == 0) {
    auto sizes = grad.sizes().vec();
    sizes[dim] = channels;
    return {at::empty(sizes, grad.options()), bias_sum};
  }
  Tensor grad_x = empty_dense_like(which, dim, channels, grad.scalar_type());
  const MaxoutBackwardArgs args{.shape = shape_around(which, dim, channels),
                                .pieces = pieces,
                                .dtype = to_dtype(grad.scalar_type()),
                                .grad = g.const_data_ptr(),
                                .indices = which.const_data_ptr<uint8_t>(),
                                .grad_x = grad_x.mutable_data_ptr(),
                                .grad_bias = sum_of(bias_sum, grad_bias),
                                .parallel = parallel};
  on_device_of(
      g, [&] { cpu::maxout_backward(args); },
      [&](cuda::Queue& q) { cuda::maxout_backward(args, q.room(cuda::workspace_bytes(args)), q.stream); });
  return {std::move(grad_x), std::move(bias_sum)};
}

// ---- Meta -----------------------------------------------------------------------------------------------------------

Maxout maxout_meta(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim) {
  dim = check_maxout(input, bias, pieces, dim);
  c10::SymInt outputs = input.sym_size(dim) / pieces;
  if (input.sym_numel() == 0) {
    c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
    sizes[dim] = outputs;
    return {at::empty_symint(sizes, input.options()), at::empty_symint(sizes, input.options().dtype(at::kByte))};
  }
  return {empty_meta_like(input, dim, outputs, input.scalar_type()), empty_meta_like(input, dim, outputs, at::kByte)};
}

MaxoutGradients maxout_backward_meta(const Tensor& grad, const Tensor& indices, const OptTensor& bias, int64_t pieces,
                                     int64_t dim, bool grad_bias) {
  dim = check_backward(grad, indices, bias, pieces, dim, grad_bias);
  c10::SymInt channels = grad.sym_size(dim) * pieces;
  Tensor bias_sum = sum_like(bias, grad_bias, grad);
  if (grad.sym_numel() == 0) {
    c10::SymDimVector sizes(grad.sym_sizes().begin(), grad.sym_sizes().end());
    sizes[dim] = channels;
    return {at::empty_symint(sizes, grad.options()), bias_sum};
  }
  return {empty_meta_like(indices, dim, channels, grad.scalar_type()), bias_sum};
}

}  // namespace

int64_t check_maxout(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim) {
  Reasons reasons;
  check_input(reasons, input);
  if (input.dim() == 0) reasons.add("x is a scalar, but it must have a dim of pieces");
  dim = check_dim(reasons, input, dim);
  check_pieces(reasons, pieces);
  if (dim >= 0 && pieces > 0 && input.dim() > 0 && input.sym_size(dim) % pieces != 0)
    reasons.add(channels_of(input, dim), ", which is no multiple of pieces = ", pieces);
  if (bias && dim >= 0) check_channels(reasons, "bias", *bias, input, dim);
  reasons.raise_if_any("maxout");
  return dim;
}

// ---- schema ---------------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(fusedact, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("maxout(Tensor input, Tensor? bias, int pieces, int dim) -> (Tensor output, Tensor indices)", tags);
  m.def(
      "maxout_backward(Tensor grad, Tensor indices, Tensor? bias, int pieces, int dim, bool grad_bias)"
      " -> (Tensor grad_input, Tensor grad_bias)",
      tags);
}

TORCH_LIBRARY_IMPL(fusedact, CPU, m) {
  m.impl("maxout", maxout_dense);
  m.impl("maxout_backward", maxout_backward_dense);
}
#if defined(FUSEDACT_CUDA)
TORCH_LIBRARY_IMPL(fusedact, CUDA, m) {
  m.impl("maxout", maxout_dense);
  m.impl("maxout_backward", maxout_backward_dense);
}
#endif

TORCH_LIBRARY_IMPL(fusedact, Meta, m) {
  m.impl("maxout", maxout_meta);
  m.impl("maxout_backward", maxout_backward_meta);
}

TORCH_LIBRARY_IMPL(fusedact, CompositeExplicitAutograd, m) {
  for (const char* op : {"maxout", "maxout_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<raise_no_kernel>());
}

// ---- the operators as functions -------------------------------------------------------------------------------------

Maxout maxout(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fusedact::maxout", "").typed<decltype(maxout)>();
  return op.call(input, bias, pieces, dim);
}

MaxoutGradients maxout_backward(const Tensor& grad, const Tensor& indices, const OptTensor& bias, int64_t pieces,
                                int64_t dim, bool grad_bias) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fusedact::maxout_backward", "")
                       .typed<decltype(maxout_backward)>();
  return op.call(grad, indices, bias, pieces, dim, grad_bias);
}

}  // namespace fusedact
