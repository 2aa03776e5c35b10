// Activations as compositions of differentiable torch operators: what autograd falls back on where no kernel is
// differentiable enough (gradients of a tensor parameter a second time, third derivatives and beyond).
//
// Composite is a value type of math.h; the formulas are those of activations.h. Knows no kernel and no autograd Node.
#pragma once

#include <ATen/TensorOperators.h>

#include "ops.h"

namespace fusedact::composite {

// bias_act_backward with save="input", differentiable in every tensor any number of times.
Gradients backward(const Tensor& grad, const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&,
                   bool grad_bias, bool grad_weight);

// bias_act_double_backward, likewise.
DoubleGradients double_backward(const Tensor& u, const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                const Call&, bool grad_bias);

// How the output moves when `weight` moves by `tangent`.
Tensor weight_tangent(const Tensor& tangent, const Tensor& input, const OptTensor& bias, const Tensor& weight,
                      const Call&);

// A vector, viewed so that it broadcasts along dim `dim` of a tensor of `rank` dims.
Tensor along(const Tensor& vector, int64_t dim, int64_t rank);

// The sum over all dims but `dim`: a vector.
Tensor sum_along(const Tensor& x, int64_t dim);

// input + bias, in the compute dtype.
Tensor preactivation(const Tensor& input, const OptTensor& bias, int64_t dim);

}  // namespace fusedact::composite
