// The epilogue's operators as functions, and what its files share. Knows nothing of how a back end computes.
#pragma once

#include "../checks.h"
#include "kernels.h"

namespace fusedact::epilogue {

// What dropout multiplies by, 0 or about 1 / (1 - p), for each element of a contiguous tensor of shape `size`; of shape
// [*seed.shape, *size], each seed with a mask of its own.
Tensor dropout_mask(const Tensor& seed, c10::SymIntArrayRef size, double p, at::ScalarType dtype);

// The derivative of the identity is constant, and needs nothing of the input.
inline bool needs_input(const Call& call, bool grad_scale) {
  return call.activation != "identity" || call.clamped() || grad_scale;
}

Plan check_epilogue(const Tensor& input, const Beside&, const OptTensor& residual, const Call&, double dropout_p);

std::vector<NodeType> node_types();

// ---- kernels of the dispatcher: from its flat argument lists --------------------------------------------------------

template <auto kernel>
struct Flat;

template <Tensor (*kernel)(const Tensor&, const Beside&, const OptTensor&, const Call&, double)>
struct Flat<kernel> {
  static Tensor call(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const OptTensor& scale,
                     const OptTensor& residual, const OptTensor& seed, std::string_view activation,
                     at::ArrayRef<double> params, int64_t dim, double gain, std::optional<double> clamp_min,
                     std::optional<double> clamp_max, double dropout_p) {
    return kernel(input, {bias, weight, scale, seed}, residual,
                  {activation, params, dim, gain, clamp_min, clamp_max, "input"}, dropout_p);
  }
};

template <EpilogueGradients (*kernel)(const Tensor&, const OptTensor&, const Beside&, const Call&, double,
                                      const Asked&)>
struct Flat<kernel> {
  static EpilogueGradients call(const Tensor& grad, const OptTensor& input, const OptTensor& bias,
                                const OptTensor& weight, const OptTensor& scale, const OptTensor& seed,
                                std::string_view activation, at::ArrayRef<double> params, int64_t dim, double gain,
                                std::optional<double> clamp_min, std::optional<double> clamp_max, double dropout_p,
                                bool grad_bias, bool grad_weight, bool grad_scale) {
    return kernel(grad, input, {bias, weight, scale, seed},
                  {activation, params, dim, gain, clamp_min, clamp_max, "input"}, dropout_p,
                  {grad_bias, grad_weight, grad_scale});
  }
};

}  // namespace fusedact::epilogue
