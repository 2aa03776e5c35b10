// linear_act and the operators behind it, as functions: each call goes through the dispatcher, from the top.
#pragma once

#include "../checks.h"
#include "../statistics/ops.h"

namespace fusedact::linear {

// The same, with what backward reads beside input and weight: the product input @ weight^T, the mask of the output, or,
// where the output will do, an empty tensor.
using Saving = std::tuple<Tensor, Tensor>;
Saving linear_act_saving(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                         const Call&);

// Which gradients are asked for.
struct Wanted {
  bool input, weight, bias, param;
};

// Gradients of input, weight, bias and param; empty where not asked for. `input` is needed for that of the weight, and
// `weight` for that of the input.
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
Gradients linear_act_backward(const Tensor& grad, const Tensor& saved, const OptTensor& input, const OptTensor& weight,
                              const OptTensor& bias, const OptTensor& param, const Call&, const Wanted&);

// The same two, counting as they compute: of the forward pass, whatever it saves; of the backward pass the gradient of the
// pre-activation, into sums. `gradient` is what backward will count into.
Saving linear_act_statistics(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                             const Call&, bool saving, const Counting&, const OptTensor& gradient);
Gradients linear_act_backward_statistics(const Tensor& grad, const Tensor& saved, const OptTensor& input,
                                         const OptTensor& weight, const OptTensor& bias, const OptTensor& param,
                                         const Call&, const Wanted&, const Tensor& sums);

// The first three from torch's product and bias_act: differentiable any number of times, and in every mode. `moved` is a
// gradient of the product itself, added to the one that comes through the activation; either may be undefined. The one
// through the activation is counted into `sums`, if given.
Saving composed(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param, const Call&);
Gradients composed_backward(const Tensor& grad, const Tensor& moved, const Tensor& saved, const OptTensor& input,
                            const OptTensor& weight, const OptTensor& bias, const OptTensor& param, const Call&,
                            const Wanted&, const OptTensor& sums = {});

// Whether torch's own product of 16-bit matrices is the fast one on this processor. Where it lacks a 16-bit dot product,
// widening, a float32 GEMM and one rounding took 26 ms where the 16-bit GEMM took 149 (512 x 768 -> 3072, Zen 3).
bool has_dot_product(at::ScalarType dtype);

std::vector<NodeType> node_types();

// ---- kernels of the dispatcher --------------------------------------------------------------------------------------

// Flat<kernel>::call has the flat argument list that the dispatcher wants.
template <auto kernel>
struct Flat;

template <class R, R (*kernel)(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, const Call&)>
struct Flat<kernel> {
  static R call(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                std::string_view activation, at::ArrayRef<double> params, double gain, std::optional<double> clamp_min,
                std::optional<double> clamp_max, std::string_view save) {
    return kernel(input, weight, bias, param, {activation, params, -1, gain, clamp_min, clamp_max, save});
  }
};

template <Gradients (*kernel)(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, const OptTensor&,
                              const OptTensor&, const Call&, const Wanted&)>
struct Flat<kernel> {
  static Gradients call(const Tensor& grad, const Tensor& saved, const OptTensor& input, const OptTensor& weight,
                        const OptTensor& bias, const OptTensor& param, std::string_view activation,
                        at::ArrayRef<double> params, double gain, std::optional<double> clamp_min,
                        std::optional<double> clamp_max, std::string_view save, bool grad_input, bool grad_weight,
                        bool grad_bias, bool grad_param) {
    return kernel(grad, saved, input, weight, bias, param, {activation, params, -1, gain, clamp_min, clamp_max, save},
                  {grad_input, grad_weight, grad_bias, grad_param});
  }
};

template <Saving (*kernel)(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, const Call&, bool,
                           const Counting&, const OptTensor&)>
struct Flat<kernel> {
  static Saving call(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                     std::string_view activation, at::ArrayRef<double> params, double gain,
                     std::optional<double> clamp_min, std::optional<double> clamp_max, std::string_view save,
                     bool saving, at::ArrayRef<double> zones, const Tensor& sums, const Tensor& histogram,
                     const OptTensor& gradient) {
    return kernel(input, weight, bias, param, {activation, params, -1, gain, clamp_min, clamp_max, save}, saving,
                  {zones, sums, histogram}, gradient);
  }
};

template <Gradients (*kernel)(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, const OptTensor&,
                              const OptTensor&, const Call&, const Wanted&, const Tensor&)>
struct Flat<kernel> {
  static Gradients call(const Tensor& grad, const Tensor& saved, const OptTensor& input, const OptTensor& weight,
                        const OptTensor& bias, const OptTensor& param, std::string_view activation,
                        at::ArrayRef<double> params, double gain, std::optional<double> clamp_min,
                        std::optional<double> clamp_max, std::string_view save, bool grad_input, bool grad_weight,
                        bool grad_bias, bool grad_param, const Tensor& sums) {
    return kernel(grad, saved, input, weight, bias, param, {activation, params, -1, gain, clamp_min, clamp_max, save},
                  {grad_input, grad_weight, grad_bias, grad_param}, sums);
  }
};

}  // namespace fusedact::linear
