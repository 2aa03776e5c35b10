// What the files of the torch layer share beside the operators themselves.
//
// Knows nothing of how a back end computes, nor of Python.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <typeinfo>
#include <vector>

#include "fusedact.h"
#include "layout.h"
#include "registry.h"

namespace fusedact {

// ---- facts -----------------------------------------------------------------------------------------------------------

// The dtype that `dtype` is computed in.
inline at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// ---- autograd -------------------------------------------------------------------------------------------------------

// The Nodes, by the names under which Python shows them as `grad_fn`.
struct NodeType {
  const std::type_info& type;
  const char* name;
};
std::vector<NodeType> node_types();

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
