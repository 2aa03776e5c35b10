// The gated units as functions, for this folder's files and the bindings: each call goes through the dispatcher.
#pragma once

#include "../ops.h"
#include "kernels.h"

namespace fusedact {

// What a call that has passed the checks means.
struct GatedPlan {
  const Activation& activation;
  int64_t dim;  // in [0, max(input.dim(), 1))
  bool gate_second, interleaved;
  bool two;  // `other` is the second half
};

// Raises with every reason at once, as in checks.h.
GatedPlan check_gated(const GatedTensors&, const GatedCall&);

// The size of the result and its strides: the input's, dense, with half the dim.
c10::SymDimVector gated_sizes(const Tensor& input, const GatedPlan&);
c10::SymDimVector gated_strides(const Tensor& input, const GatedPlan&);

std::vector<NodeType> gated_node_types();

// The dispatcher's flat argument lists, for kernels of the two signatures above.
template <auto kernel>
struct FlatGated;

template <Tensor (*kernel)(const GatedTensors&, const GatedCall&)>
struct FlatGated<kernel> {
  static Tensor call(const Tensor& input, const OptTensor& other, const OptTensor& bias, const OptTensor& other_bias,
                     std::string_view activation, at::ArrayRef<double> params, int64_t dim, std::string_view gate,
                     std::string_view layout, std::optional<double> limit, double alpha, double offset) {
    return kernel({input, other, bias, other_bias}, {activation, params, dim, gate, layout, limit, alpha, offset});
  }
};

template <GatedGradients (*kernel)(const Tensor&, const GatedTensors&, const GatedCall&, bool, bool)>
struct FlatGated<kernel> {
  static GatedGradients call(const Tensor& grad, const Tensor& input, const OptTensor& other, const OptTensor& bias,
                             const OptTensor& other_bias, std::string_view activation, at::ArrayRef<double> params,
                             int64_t dim, std::string_view gate, std::string_view layout, std::optional<double> limit,
                             double alpha, double offset, bool grad_bias, bool grad_other_bias) {
    return kernel(grad, {input, other, bias, other_bias}, {activation, params, dim, gate, layout, limit, alpha, offset},
                  grad_bias, grad_other_bias);
  }
};

}  // namespace fusedact
