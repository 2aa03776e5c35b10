// What the autocast kernels of all operators share.
#pragma once

#include "ops.h"

namespace fusedact {

// The parameter as the kernels take it: x's dtype, or float32 beside 16-bit x; a noise in the compute dtype.
inline OptTensor fitted(const OptTensor& parameter, const Tensor& x) {
  if (!parameter || !at::isFloatingType(x.scalar_type()) || !at::isFloatingType(parameter->scalar_type()))
    return parameter;
  at::ScalarType wide = compute_dtype(x.scalar_type());
  if (parameter->scalar_type() == x.scalar_type() && parameter->dim() <= 1) return parameter;
  return parameter->to(wide);
}

}  // namespace fusedact
