// The softmax operators as functions: each call goes through the dispatcher, from the top. And their checks.
#pragma once

#include <tuple>

#include "../ops.h"

namespace fusedact {

// softmax or log_softmax of input + bias along `dim`.
Tensor softmax(const Tensor& input, const OptTensor& bias, int64_t dim, bool log);

using SoftmaxGradients = std::tuple<Tensor, Tensor>;  // of input and bias; the latter empty where not asked for
SoftmaxGradients softmax_backward(const Tensor& grad, const Tensor& output, const OptTensor& bias, int64_t dim,
                                  bool log, bool grad_bias);

// `dim` counted from the front; raises with every reason at once.
int64_t check_softmax(const Tensor& input, const OptTensor& bias, int64_t dim, bool log);

std::vector<NodeType> softmax_node_types();

}  // namespace fusedact
