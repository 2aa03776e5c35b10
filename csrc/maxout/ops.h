// The maxout operators as functions: each call goes through the dispatcher, from the top. And their checks.
#pragma once

#include <tuple>

#include "../ops.h"

namespace fusedact {

using Maxout = std::tuple<Tensor, Tensor>;  // output, and the winners' indices (uint8, alike)
Maxout maxout(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim);

using MaxoutGradients = std::tuple<Tensor, Tensor>;  // of input and bias; the latter empty where not asked for
MaxoutGradients maxout_backward(const Tensor& grad, const Tensor& indices, const OptTensor& bias, int64_t pieces,
                                int64_t dim, bool grad_bias);

// `dim` counted from the front; raises with every reason at once.
int64_t check_maxout(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim);

std::vector<NodeType> maxout_node_types();

}  // namespace fusedact
