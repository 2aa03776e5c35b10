// act(batch_norm(x)) with the statistics of the batch: the operators as functions, and what their files share.
// (With running statistics it is the epilogue's scale and bias.) The channels are dim 1, as torch's.
#pragma once

#include "../checks.h"

namespace fusedact::batch_norm {

struct Asked {
  bool input, weight, bias, act_weight;
};
using NormGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of input, weight, bias, act_weight
NormGradients batch_norm_act_backward(const Tensor& grad, const Tensor& input, const Affine&, const Tensor& mean,
                                      const Tensor& var, const Settings&, const Asked&);

Plan check_batch_norm(const Tensor& input, const Affine&, const Settings&);

std::vector<NodeType> node_types();

// ---- kernels of the dispatcher: from its flat argument lists --------------------------------------------------------

template <auto kernel>
struct Flat;

template <Normalised (*kernel)(const Tensor&, const Affine&, const Settings&)>
struct Flat<kernel> {
  static Normalised call(const Tensor& input, const OptTensor& weight, const OptTensor& bias,
                         const OptTensor& act_weight, double eps, std::string_view activation,
                         at::ArrayRef<double> params) {
    return kernel(input, {weight, bias, act_weight}, {activation, params, eps});
  }
};

template <NormGradients (*kernel)(const Tensor&, const Tensor&, const Affine&, const Tensor&, const Tensor&,
                                  const Settings&, const Asked&)>
struct Flat<kernel> {
  static NormGradients call(const Tensor& grad, const Tensor& input, const OptTensor& weight, const OptTensor& bias,
                            const OptTensor& act_weight, const Tensor& mean, const Tensor& var, double eps,
                            std::string_view activation, at::ArrayRef<double> params, bool grad_input, bool grad_weight,
                            bool grad_bias, bool grad_act_weight) {
    return kernel(grad, input, {weight, bias, act_weight}, mean, var, {activation, params, eps},
                  {grad_input, grad_weight, grad_bias, grad_act_weight});
  }
};

}  // namespace fusedact::batch_norm
