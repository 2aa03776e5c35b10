// The gated units as functions, for this folder's files and the bindings: each call goes through the dispatcher.
#pragma once

#include "../ops.h"
#include "kernels.h"

namespace fusedact {

// The arguments that are not tensors, in the order of the schema.
struct GatedCall {
  std::string_view activation;
  at::ArrayRef<double> params;
  int64_t dim = -1;
  std::string_view gate = "first";     // or "second": which half, or which of two tensors
  std::string_view layout = "concat";  // or "interleaved": where the halves of one tensor lie
  std::optional<double> limit;
  double alpha = 1.0, offset = 0.0;
};

// What a call that has passed the checks means.
struct GatedPlan {
  const Activation& activation;
  int64_t dim;  // in [0, max(input.dim(), 1))
  bool gate_second, interleaved;
  bool two;  // `other` is the second half
};

// With one tensor, `input` holds both halves along `dim`, and `bias` too; with two, `input` and `bias` are the first.
struct GatedTensors {
  const Tensor& input;
  const OptTensor &other, &bias, &other_bias;
};

// Raises with every reason at once, as in checks.h.
GatedPlan check_gated(const GatedTensors&, const GatedCall&);

// The size of the result and its strides: the input's, dense, with half the dim.
c10::SymDimVector gated_sizes(const Tensor& input, const GatedPlan&);
c10::SymDimVector gated_strides(const Tensor& input, const GatedPlan&);

// ---- the operators --------------------------------------------------------------------------------------------------

Tensor gated_act(const GatedTensors&, const GatedCall&);

// Of input, other, bias, other_bias; empty where there is none or it is not asked for.
using GatedGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
GatedGradients gated_act_backward(const Tensor& grad, const GatedTensors&, const GatedCall&, bool grad_bias,
                                  bool grad_other_bias);

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
