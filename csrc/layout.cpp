// From torch tensors to the plain shapes and pointers of kernels.h, and the memory of results.
#include "layout.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <numeric>

#include "memory.h"

namespace fusedact {

c10::SymDimVector dense_strides(const Tensor& x) {
  c10::SymIntArrayRef strides = x.sym_strides();
  if (x.is_non_overlapping_and_dense()) return {strides.begin(), strides.end()};
  if (!x.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
    std::vector<int64_t> dense = at::infer_dense_strides(x.sizes(), x.strides());
    return {dense.begin(), dense.end()};
  }
  // As at::infer_dense_strides, on symbols: an insertion sort, in which an expanded dim (stride 0) keeps its place.
  c10::SymIntArrayRef sizes = x.sym_sizes();
  c10::SmallVector<int64_t, 5> order(x.dim());
  std::iota(order.rbegin(), order.rend(), 0);
  auto farther = [&](int64_t a, int64_t b) {  // 1: a is outside of b, -1: inside, 0: cannot tell
    if (strides[a] == 0 || strides[b] == 0) return 0;
    if (strides[a] != strides[b]) return strides[a] > strides[b] ? 1 : -1;
    return sizes[a] > sizes[b] ? 1 : 0;
  };
  for (size_t i = 1; i < order.size(); ++i) {
    size_t last = i;
    for (size_t j = i; j-- > 0;) {
      int comparison = farther(order[j], order[last]);
      if (comparison < 0) break;
      if (comparison > 0) std::swap(order[j], order[std::exchange(last, j)]);
    }
  }
  c10::SymDimVector dense(x.dim());
  c10::SymInt next = 1;
  for (int64_t d : order) {
    dense[d] = next;
    next = next * sizes[d];
  }
  return dense;
}

namespace {

Tensor empty_for(memory::Use use, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype) {
  constexpr c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  size_t bytes = at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(dtype));
  return at::Tensor(at::detail::empty_strided_generic(sizes, strides, memory::allocator(bytes, use), cpu, dtype));
}

Tensor dense_for(memory::Use use, const Tensor& x) {
  if (x.is_non_overlapping_and_dense()) return empty_for(use, x.sizes(), x.strides(), x.scalar_type());
  return empty_for(use, x.sizes(), at::infer_dense_strides(x.sizes(), x.strides()), x.scalar_type());
}

}  // namespace

Tensor empty_cpu(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype) {
  return empty_for(memory::Use::value, sizes, strides, dtype);
}

Tensor empty_like_cpu(const Tensor& x) { return dense_for(memory::Use::value, x); }

Tensor empty_on(const Tensor& x, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype) {
  return x.is_cpu() ? empty_cpu(sizes, strides, dtype) : at::empty_strided(sizes, strides, x.options().dtype(dtype));
}

Tensor empty_as(const Tensor& x) {
  if (x.is_non_overlapping_and_dense()) return empty_on(x, x.sizes(), x.strides(), x.scalar_type());
  return empty_on(x, x.sizes(), at::infer_dense_strides(x.sizes(), x.strides()), x.scalar_type());
}

Tensor gradient_as(const Tensor& x) { return x.is_cpu() ? dense_for(memory::Use::gradient, x) : empty_as(x); }

bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.strides() == b.strides() || a.numel() == 0) return true;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

Tensor laid_out_as(const Tensor& x, const Tensor& like) {
  return same_layout(x, like) ? x : empty_on(x, like.sizes(), like.strides(), x.scalar_type()).copy_(x);
}

Tensor dense(const Tensor& x) { return x.is_non_overlapping_and_dense() ? x : empty_as(x).copy_(x); }

DType to_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return DType::float32;
    case at::kDouble: return DType::float64;
    case at::kBFloat16: return DType::bfloat16;
    default: return DType::float16;
  }
}

OptTensor contiguous(const OptTensor& vector) { return vector ? OptTensor(vector->contiguous()) : vector; }

Vector vector_of(const OptTensor& tensor, Extent extent) {
  if (!tensor) return {};
  return {tensor->const_data_ptr(), to_dtype(tensor->scalar_type()), extent};
}

Tensor empty_like_meta(const Tensor& x) {
  return at::empty_strided_symint(x.sym_sizes(), dense_strides(x), x.options());
}

Shape shape_of(const Tensor& x, int64_t dim) {
  if (x.dim() == 0) return {1, 1, 1};
  Shape shape{1, x.size(dim), 1};
  for (int64_t d = 0; d < x.dim(); ++d)
    if (d != dim && x.size(d) != 1) (x.stride(d) > x.stride(dim) ? shape.outer : shape.inner) *= x.size(d);
  return shape;
}

void resize_out(const Tensor& input, const Tensor& out) {
  if (at::native::resize_output_symint(out, input.sym_sizes()))
    out.as_strided__symint(input.sym_sizes(), dense_strides(input));
}

Tensor sum_like(const OptTensor& vector, bool asked, const Tensor& x) {
  if (!asked) return at::empty_symint({0}, x.options());
  return x.sym_numel() == 0 ? at::zeros_symint(vector->sym_sizes(), vector->options())
                            : at::empty_symint(vector->sym_sizes(), vector->options());
}

Sum sum_of(const Tensor& tensor, bool asked) {
  return asked ? Sum{tensor.mutable_data_ptr(), to_dtype(tensor.scalar_type())} : Sum{};
}

namespace {

void run_parallel(int64_t count, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t)) {
  int64_t blocks = (count + grain - 1) / grain;
  at::parallel_for(0, blocks, 1,
                   [&](int64_t begin, int64_t end) { body(context, begin * grain, std::min(end * grain, count)); });
}

}  // namespace

const Parallel parallel{run_parallel};

}  // namespace fusedact
