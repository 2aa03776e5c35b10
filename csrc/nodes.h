// What the autograd kernels of all operators share: what a Node keeps beside saved tensors, and what may learn.
#pragma once

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "checks.h"
#include "forward_mode.h"

namespace fusedact {

inline std::string_view name_of(Saved saved) {
  return saved == Saved::input ? "input" : saved == Saved::output ? "output" : "mask";
}

// A Call that outlives the caller's strings and lists.
class KeptCall {
 public:
  void keep(const Call& call, const Plan& plan) {
    call_ = call;
    params_.assign(call.params.begin(), call.params.end());
    call_.activation = plan.activation.name;
    call_.dim = plan.dim;
    call_.save = name_of(plan.save);
  }
  Call get() const {
    Call call = call_;
    call.params = params_;
    return call;
  }

 private:
  Call call_;
  c10::SmallVector<double, 2> params_;
};

// The bias: v = x + bias is recomputed where the input is saved. Elsewhere only its length and dtype matter, and a
// change of its values between forward and backward does no harm, so its version is not watched.
class KeptBias {
 public:
  void keep(const OptTensor& bias, bool values) {
    if (!bias) return;
    if (values)
      saved_ = torch::autograd::SavedVariable(*bias, false);
    else
      like_ = *bias;
  }
  OptTensor get() const {
    Tensor bias = like_.defined() ? like_ : saved_.unpack();
    return bias.defined() ? OptTensor(bias) : OptTensor();
  }
  void reset() {
    saved_.reset_data();
    like_.reset();
  }

 private:
  torch::autograd::SavedVariable saved_;
  Tensor like_;
};

inline OptTensor unpack_optional(const torch::autograd::SavedVariable& saved) {
  Tensor tensor = saved.unpack();
  return tensor.defined() ? OptTensor(tensor) : OptTensor();
}

// That a weight which learns is one whose gradient backward can compute.
inline void check_weight_learns(const OptTensor& weight, const Plan& plan) {
  if (!weight || !(torch::autograd::compute_requires_grad(*weight) || is_dual(*weight))) return;
  TORCH_CHECK_VALUE(plan.weight != Extent::full, "fusedact (", plan.activation.name,
                    "): weight has one element for each of x (a noise) and has no gradient; pass weight.detach()");
  TORCH_CHECK_VALUE(plan.save == Saved::input, "fusedact (", plan.activation.name, "): save='", name_of(plan.save),
                    "': the gradient of the weight needs the input; use save='input', or pass weight.detach()");
}

}  // namespace fusedact
