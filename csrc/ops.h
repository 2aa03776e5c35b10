// What the files of the torch layer share: the arguments of a call, the operators as functions, and the checks.
//
// Knows nothing of how a back end computes, nor of Python.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <typeinfo>

#include "layout.h"
#include "registry.h"

namespace fusedact {

// The arguments that are not tensors, in the order of the schema.
struct Call {
  std::string_view activation;
  at::ArrayRef<double> params;
  int64_t dim = -1;
  double gain = 1.0;
  std::optional<double> clamp_min, clamp_max;
  std::string_view save = "auto";

  bool clamped() const { return clamp_min || clamp_max; }
};

// ---- the operators: each call goes through the dispatcher, from the top ---------------------------------------------

Tensor bias_act(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&);
void bias_act_(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&);
void bias_act_out(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&, const Tensor& out);

using Masked = std::tuple<Tensor, Tensor>;  // output, mask
Masked bias_act_mask(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&);

using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of input, bias, weight; empty where not asked for
Gradients bias_act_backward(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                            const Call&, bool grad_bias, bool grad_weight);

using DoubleGradients = std::tuple<Tensor, Tensor, Tensor>;  // of grad, saved, bias; the last empty where not asked for
DoubleGradients bias_act_double_backward(const Tensor& u, const Tensor& grad, const Tensor& saved,
                                         const OptTensor& bias, const Call&, bool grad_bias);

// ---- facts -----------------------------------------------------------------------------------------------------------

// The dtype that `dtype` is computed in.
inline at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// ---- autograd -------------------------------------------------------------------------------------------------------

// The Nodes, by the names under which Python shows them as `grad_fn`.
struct NodeType {
  const std::type_info& type;
  const char* name;
};
std::array<NodeType, 2> node_types();

// ---- every other device ----------------------------------------------------------------------------------------------

// The kernel of last resort of every operator. Nothing falls back silently: a tensor that no kernel of this build can take
// says which build could.
void raise_no_kernel(const c10::OperatorHandle&, c10::Stack*);

// ---- kernels of the dispatcher --------------------------------------------------------------------------------------

// The dispatcher wants flat argument lists: Flat<kernel>::call is one, for a kernel that takes a Call.
template <auto kernel>
struct Flat;

template <class R, R (*kernel)(const Tensor&, const OptTensor&, const OptTensor&, const Call&)>
struct Flat<kernel> {
  static R call(const Tensor& input, const OptTensor& bias, const OptTensor& weight, std::string_view activation,
                at::ArrayRef<double> params, int64_t dim, double gain, std::optional<double> clamp_min,
                std::optional<double> clamp_max, std::string_view save) {
    return kernel(input, bias, weight, {activation, params, dim, gain, clamp_min, clamp_max, save});
  }
};

template <void (*kernel)(const Tensor&, const OptTensor&, const OptTensor&, const Call&, const Tensor&)>
struct Flat<kernel> {
  static void call(const Tensor& input, const OptTensor& bias, const OptTensor& weight, std::string_view activation,
                   at::ArrayRef<double> params, int64_t dim, double gain, std::optional<double> clamp_min,
                   std::optional<double> clamp_max, std::string_view save, const Tensor& out) {
    kernel(input, bias, weight, {activation, params, dim, gain, clamp_min, clamp_max, save}, out);
  }
};

template <Masked (*kernel)(const Tensor&, const OptTensor&, const OptTensor&, const Call&)>
struct Flat<kernel> {
  static Masked call(const Tensor& input, const OptTensor& bias, const OptTensor& weight, std::string_view activation,
                     at::ArrayRef<double> params, int64_t dim, double gain, std::optional<double> clamp_min,
                     std::optional<double> clamp_max) {
    return kernel(input, bias, weight, {activation, params, dim, gain, clamp_min, clamp_max, "mask"});
  }
};

template <Gradients (*kernel)(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, const Call&, bool,
                              bool)>
struct Flat<kernel> {
  static Gradients call(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                        std::string_view activation, at::ArrayRef<double> params, int64_t dim, double gain,
                        std::optional<double> clamp_min, std::optional<double> clamp_max, std::string_view save,
                        bool grad_bias, bool grad_weight) {
    return kernel(grad, saved, bias, weight, {activation, params, dim, gain, clamp_min, clamp_max, save}, grad_bias,
                  grad_weight);
  }
};

template <DoubleGradients (*kernel)(const Tensor&, const Tensor&, const Tensor&, const OptTensor&, const Call&, bool)>
struct Flat<kernel> {
  static DoubleGradients call(const Tensor& u, const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                              std::string_view activation, at::ArrayRef<double> params, int64_t dim, double gain,
                              std::optional<double> clamp_min, std::optional<double> clamp_max, std::string_view save,
                              bool grad_bias) {
    return kernel(u, grad, saved, bias, {activation, params, dim, gain, clamp_min, clamp_max, save}, grad_bias);
  }
};

}  // namespace fusedact
