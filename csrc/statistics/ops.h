// The operators that count, as functions: each call goes through the dispatcher, from the top. And their checks.
#pragma once

#include "../checks.h"
#include "kernels.h"

namespace fusedact {

// Where to count: sums [statistic_count, channels] and histogram [histogram_bins], float64, are added to. `zones` are pairs.
struct Counting {
  at::ArrayRef<double> zones;
  Tensor sums, histogram;
};

// Counts x + bias and y, either of which may be absent.
void statistics_(const Tensor& sums, const OptTensor& histogram, const OptTensor& input, const OptTensor& bias,
                 const OptTensor& output, int64_t dim, at::ArrayRef<double> zones);

// bias_act, counting as it computes; what its backward computes is added to `gradient` [statistic_count, channels], if given.
Tensor bias_act_statistics(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&,
                           const Counting&, const OptTensor& gradient);

Gradients bias_act_backward_statistics(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                       const OptTensor& weight, const Call&, bool grad_bias, bool grad_weight,
                                       const Tensor& sums);

// The checks that all of them share; `channels` of x lie in the dim that is counted by, and all of it on `device`.
void check_counting(Reasons&, const c10::SymInt& channels, at::Device device, const Tensor& sums,
                    const OptTensor& histogram, at::ArrayRef<double> zones);
Counts counts_of(const Tensor& sums, const OptTensor& histogram, at::ArrayRef<double> zones);

std::vector<NodeType> statistics_node_types();

// ---- kernels of the dispatcher --------------------------------------------------------------------------------------

// FlatStatistics<kernel>::call has the flat argument list that the dispatcher wants.
template <auto kernel>
struct FlatStatistics;

template <Tensor (*kernel)(const Tensor&, const OptTensor&, const OptTensor&, const Call&, const Counting&,
                           const OptTensor&)>
struct FlatStatistics<kernel> {
  static Tensor call(const Tensor& input, const OptTensor& bias, const OptTensor& weight, std::string_view activation,
                     at::ArrayRef<double> params, int64_t dim, double gain, std::optional<double> clamp_min,
                     std::optional<double> clamp_max, std::string_view save, at::ArrayRef<double> zones,
                     const Tensor& sums, const Tensor& histogram, const OptTensor& gradient) {
    return kernel(input, bias, weight, {activation, params, dim, gain, clamp_min, clamp_max, save},
                  {zones, sums, histogram}, gradient);
  }
};

template <Gradients (*kernel)(const Tensor&, const Tensor&, const OptTensor&, const OptTensor&, const Call&, bool, bool,
                              const Tensor&)>
struct FlatStatistics<kernel> {
  static Gradients call(const Tensor& grad, const Tensor& saved, const OptTensor& bias, const OptTensor& weight,
                        std::string_view activation, at::ArrayRef<double> params, int64_t dim, double gain,
                        std::optional<double> clamp_min, std::optional<double> clamp_max, std::string_view save,
                        bool grad_bias, bool grad_weight, const Tensor& sums) {
    return kernel(grad, saved, bias, weight, {activation, params, dim, gain, clamp_min, clamp_max, save}, grad_bias,
                  grad_weight, sums);
  }
};

}  // namespace fusedact
