// fusedact for C++: the operators as functions. This header is installed; link with fusedact::fusedact.
//
//   y = fusedact::bias_act(x, bias, {}, {.activation = "gelu"});
//
// Names, parameters and their legal ranges are those of the Python package. Errors are c10::Error: got, expected, the fix.
// Every function goes through torch's dispatcher, from the top: autograd, autocast and torch.func apply.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace fusedact {

// The arguments that are not tensors, in the order of the schema. Views: what they point to must outlive the call.
struct Call {
  std::string_view activation;
  at::ArrayRef<double> params;  // all of the activation's scalar parameters, in the registry's order
  int64_t dim = -1;
  double gain = 1.0;
  std::optional<double> clamp_min, clamp_max;
  std::string_view save = "auto";

  bool clamped() const { return clamp_min || clamp_max; }
};

// clamp(gain * activation(input + bias)), the bias along `dim`; `weight` is a parameter that is a tensor (PReLU's weight).
at::Tensor bias_act(const at::Tensor& input, const std::optional<at::Tensor>& bias,
                    const std::optional<at::Tensor>& weight, const Call&);
void bias_act_(const at::Tensor& input, const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& weight,
               const Call&);
void bias_act_out(const at::Tensor& input, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& weight, const Call&, const at::Tensor& out);

using Masked = std::tuple<at::Tensor, at::Tensor>;  // output, mask
Masked bias_act_mask(const at::Tensor& input, const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& weight, const Call&);

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of input, bias, weight; empty where not asked for
Gradients bias_act_backward(const at::Tensor& grad, const at::Tensor& saved, const std::optional<at::Tensor>& bias,
                            const std::optional<at::Tensor>& weight, const Call&, bool grad_bias, bool grad_weight);

using DoubleGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of grad, saved, bias; the last empty where not asked for
DoubleGradients bias_act_double_backward(const at::Tensor& u, const at::Tensor& grad, const at::Tensor& saved,
                                         const std::optional<at::Tensor>& bias, const Call&, bool grad_bias);

}  // namespace fusedact
