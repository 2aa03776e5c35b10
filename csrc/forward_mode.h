// Forward-mode AD: the two halves of a dual tensor. A tangent that is absent is an undefined tensor.
#pragma once

#include "layout.h"

namespace fusedact {

inline const Tensor& tangent_of(const Tensor& x) { return x._fw_grad(0); }
inline Tensor tangent_of(const OptTensor& x) { return x ? x->_fw_grad(0) : Tensor(); }
inline Tensor primal_of(const Tensor& x) { return x._fw_primal(0); }
inline OptTensor primal_of(const OptTensor& x) { return x ? OptTensor(x->_fw_primal(0)) : x; }

inline bool is_dual(const Tensor& x) { return tangent_of(x).defined(); }
inline bool is_dual(const OptTensor& x) { return x && is_dual(*x); }

}  // namespace fusedact
