// What the operators ask of their arguments. Each check raises with every reason at once: ValueError, or TypeError if one
// of them is a dtype. Works on symbolic shapes.
#pragma once

#include "ops.h"
#include "reasons.h"

namespace fusedact {

// The activation of that name, or an exception that lists the near ones.
const Activation& activation_named(std::string_view name);

// What a call that has passed the checks means.
struct Plan {
  const Activation& activation;
  int64_t dim;    // in [0, max(input.dim(), 1))
  Saved save;     // never "auto"
  Extent weight;  // how the elements of `weight` lie along the input
  bool channels;  // bias or weight run along `dim`
};

Plan check(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&);
// The same for an operator with more arguments: adds its reasons and raises none, but for an unknown activation. What
// it returns is meaningless if there are reasons.
Plan check(Reasons&, const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&);

// That a result of `input` may be written to `out`.
void check_out(const Tensor& input, const Call&, const Tensor& out);

// The checks of the forward operator, and that grad and saved belong together.
Plan check_backward(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                    const Call&, bool grad_bias, bool grad_weight);
Plan check_double_backward(const Tensor& u, const Tensor& grad, const Tensor& saved, const OptTensor& bias, const Call&,
                           bool grad_bias);

// How many bytes a mask of `numel` elements has.
c10::SymInt mask_bytes(const c10::SymInt& numel);

}  // namespace fusedact
