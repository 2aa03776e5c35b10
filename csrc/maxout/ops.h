// The maxout operators as functions: each call goes through the dispatcher, from the top. And their checks.
#pragma once

#include <tuple>

#include "../ops.h"

namespace fusedact {

// `dim` counted from the front; raises with every reason at once.
int64_t check_maxout(const Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim);

std::vector<NodeType> maxout_node_types();

}  // namespace fusedact
