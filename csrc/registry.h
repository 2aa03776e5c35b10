// From a run-time name to the facts of an activation, and back. Host only; knows nothing of torch or of kernels.
#pragma once

#include <span>

#include "kernels.h"

namespace fusedact {

// Every activation of the type list in activations.h, in its order.
std::span<const Activation> activations();

// nullptr if there is none of that name.
const Activation* find_activation(std::string_view name);

}  // namespace fusedact
