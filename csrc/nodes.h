// What the Nodes of every operator keep from forward to backward.
#pragma once

#include <torch/csrc/autograd/saved_variable.h>

#include "checks.h"

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

}  // namespace fusedact
