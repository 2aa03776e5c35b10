// The softmax operators as functions: each call goes through the dispatcher, from the top. And their checks.
#pragma once

#include <tuple>

#include "../ops.h"

namespace fusedact {

// `dim` counted from the front; raises with every reason at once.
int64_t check_softmax(const Tensor& input, const OptTensor& bias, int64_t dim, bool log);

std::vector<NodeType> softmax_node_types();

}  // namespace fusedact
