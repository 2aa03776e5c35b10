// The operators for recurrent cells as functions: each call goes through the dispatcher, from the top. And their checks.
#pragma once

#include <array>
#include <tuple>

#include "../ops.h"

namespace fusedact {

std::vector<NodeType> cell_node_types();

}  // namespace fusedact
