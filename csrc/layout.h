// From torch tensors to the plain shapes and pointers of kernels.h, and the memory of results. What every operator needs;
// knows none.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels.h"

namespace fusedact {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

// ---- results --------------------------------------------------------------------------------------------------------

// The strides that at::empty_like(x) has: x's own if it is dense, else dense ones in the same order.
c10::SymDimVector dense_strides(const Tensor& x);

// New memory from the library's own allocator.
Tensor empty_cpu(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype);
Tensor empty_like_cpu(const Tensor& x);
// The same on x's device: other devices' memory is their allocator's.
Tensor empty_on(const Tensor& x, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype);
Tensor empty_as(const Tensor& x);
// The same for x's gradient, from memory that was a gradient before.
Tensor gradient_as(const Tensor& x);
// The same for a Meta kernel.
Tensor empty_like_meta(const Tensor& x);

// As torch's own out=: an empty `out` takes the result's shape and strides, another wrong shape does so with a warning.
void resize_out(const Tensor& input, const Tensor& out);

// Where a summed gradient goes: like the vector that it is for, or empty where it is not asked for.
Tensor sum_like(const OptTensor& vector, bool asked, const Tensor& x);
Sum sum_of(const Tensor& tensor, bool asked);

// ---- arguments ------------------------------------------------------------------------------------------------------

// x itself if it is dense, else a dense copy.
Tensor dense(const Tensor& x);

// Whether two tensors of one shape lie alike in memory: strides of dims with one element say nothing.
bool same_layout(const Tensor& a, const Tensor& b);

// x with the layout of `like`: itself if it has it.
Tensor laid_out_as(const Tensor& x, const Tensor& like);

OptTensor contiguous(const OptTensor& vector);

// A dense tensor in the order of its memory, with its channels in `dim`: the dims with a longer stride lie outside.
Shape shape_of(const Tensor& x, int64_t dim);

DType to_dtype(at::ScalarType dtype);
Vector vector_of(const OptTensor& tensor, Extent extent);

// Blocks of `grain` elements, shared out by torch's own thread pool.
extern const Parallel parallel;

}  // namespace fusedact
