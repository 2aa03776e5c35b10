// fusedact for C++: the operators as functions. This header is installed; link with fusedact::fusedact.
//
//   y = fusedact::bias_act(x, bias, {}, {.activation = "gelu"});
//   y = fusedact::gated_act({x, {}, {}, {}}, {.activation = "silu"});
//   y = fusedact::linear_act(x, weight, bias, {}, {.activation = "relu"});
//
// Below each operator its backward, for who has no use for autograd; shapes, formulas and sources are in the Python docs.
// Names, parameters and their legal ranges are those of the Python package. Errors are c10::Error: got, expected, the fix.
// Every function goes through torch's dispatcher, from the top: autograd, autocast and torch.func apply.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace fusedact {

using OptTensor = std::optional<at::Tensor>;

// ---- bias, activation -----------------------------------------------------------------------------------------------

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
at::Tensor bias_act(const at::Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&);
void bias_act_(const at::Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&);
void bias_act_out(const at::Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&,
                  const at::Tensor& out);

using Masked = std::tuple<at::Tensor, at::Tensor>;  // output, mask
Masked bias_act_mask(const at::Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call&);

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of input, bias, weight; empty where not asked for
Gradients bias_act_backward(const at::Tensor& grad, const at::Tensor& saved, const OptTensor& bias,
                            const OptTensor& weight, const Call&, bool grad_bias, bool grad_weight);

using DoubleGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of grad, saved, bias; the last empty where not asked for
DoubleGradients bias_act_double_backward(const at::Tensor& u, const at::Tensor& grad, const at::Tensor& saved,
                                         const OptTensor& bias, const Call&, bool grad_bias);

// ---- the same, with what stands around it ---------------------------------------------------------------------------

namespace epilogue {

// The tensors beside the input: bias and scale are [channels], along `dim`; `weight` as for bias_act; `seed` is int64 and
// without dims, and needed if dropout_p > 0: the mask is a function of it, and of where an element lies.
struct Beside {
  OptTensor bias, weight, scale, seed;
};

// residual + mask * clamp(gain * activation(input * scale + bias)); mask is 0 with probability dropout_p in [0, 1], else
// 1 / (1 - dropout_p). `residual` has the input's shape. call.save is not looked at.
at::Tensor bias_act_epilogue(const at::Tensor& input, const Beside&, const OptTensor& residual, const Call&,
                             double dropout_p);

// Which sums are asked for.
struct Asked {
  bool bias, weight, scale;
};
using EpilogueGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // of input, bias, weight, scale; empty where not asked
// The gradient of the residual is `grad` itself.
EpilogueGradients bias_act_epilogue_backward(const at::Tensor& grad, const OptTensor& input, const Beside&, const Call&,
                                             double dropout_p, const Asked&);

}  // namespace epilogue
using epilogue::bias_act_epilogue;
using epilogue::bias_act_epilogue_backward;

// ---- gated units ----------------------------------------------------------------------------------------------------

// With one tensor, `input` holds both halves along `dim`, and `bias` too; with two, `input` and `bias` are the first. What
// the references are bound to must live until the call returns: write them in the call.
struct GatedTensors {
  const at::Tensor& input;
  const OptTensor &other, &bias, &other_bias;
};

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

// activation(alpha * gate) / alpha * (value + offset), gate and value clamped by `limit` before, if there is one.
at::Tensor gated_act(const GatedTensors&, const GatedCall&);

// Of input, other, bias, other_bias; empty where there is none or it is not asked for.
using GatedGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
GatedGradients gated_act_backward(const at::Tensor& grad, const GatedTensors&, const GatedCall&, bool grad_bias,
                                  bool grad_other_bias);

// ---- activations that look at their neighbours ----------------------------------------------------------------------

// softmax, or its logarithm, of input + bias along `dim`.
at::Tensor softmax(const at::Tensor& input, const OptTensor& bias, int64_t dim, bool log = false);
inline at::Tensor log_softmax(const at::Tensor& input, const OptTensor& bias, int64_t dim) {
  return softmax(input, bias, dim, true);
}

using SoftmaxGradients = std::tuple<at::Tensor, at::Tensor>;  // of input and bias; the latter empty where not asked for
SoftmaxGradients softmax_backward(const at::Tensor& grad, const at::Tensor& output, const OptTensor& bias, int64_t dim,
                                  bool log, bool grad_bias);

// The largest of each `pieces` neighbours of input + bias along `dim`.
using Maxout = std::tuple<at::Tensor, at::Tensor>;  // output, and the winners' indices (uint8, alike)
Maxout maxout(const at::Tensor& input, const OptTensor& bias, int64_t pieces, int64_t dim);

using MaxoutGradients = std::tuple<at::Tensor, at::Tensor>;  // of input and bias; the latter empty where not asked for
MaxoutGradients maxout_backward(const at::Tensor& grad, const at::Tensor& indices, const OptTensor& bias,
                                int64_t pieces, int64_t dim, bool grad_bias);

// ---- the gates of recurrent cells -----------------------------------------------------------------------------------

// One step, from `gates` [..., 4 * hidden], which are x @ W_ih^T + h @ W_hh^T in torch's order (in, forget, cell, out), and
// c [..., hidden].
using LstmState = std::tuple<at::Tensor, at::Tensor>;  // h, c
LstmState lstm_cell_act(const at::Tensor& gates, const at::Tensor& c, const OptTensor& bias);

using LstmGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // of gates, c, bias; the last empty if not asked
LstmGradients lstm_cell_act_backward(const OptTensor& grad_h, const OptTensor& grad_c_new, const at::Tensor& gates,
                                     const at::Tensor& c, const OptTensor& bias, bool grad_bias);

// Both gates are [..., 3 * hidden], x @ W_ih^T and h @ W_hh^T, in torch's order (reset, update, new); h [..., hidden].
at::Tensor gru_cell_act(const at::Tensor& input_gates, const at::Tensor& hidden_gates, const at::Tensor& h,
                        const OptTensor& input_bias, const OptTensor& hidden_bias);

// Of input_gates, hidden_gates, h, input_bias, hidden_bias; the last two empty where not asked for.
using GruGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
GruGradients gru_cell_act_backward(const at::Tensor& grad, const at::Tensor& input_gates,
                                   const at::Tensor& hidden_gates, const at::Tensor& h, const OptTensor& input_bias,
                                   const OptTensor& hidden_bias, bool grad_input_bias, bool grad_hidden_bias);

// ---- what comes before ----------------------------------------------------------------------------------------------

namespace linear {

// clamp(gain * act(input @ weight^T + bias)); `param` is the activation's tensor parameter. call.dim is not used: the bias
// runs along the last dim.
at::Tensor linear_act(const at::Tensor& input, const at::Tensor& weight, const OptTensor& bias, const OptTensor& param,
                      const Call&);

}  // namespace linear
using linear::linear_act;

namespace batch_norm {

// What meets the input: the affine parameters, and an activation's tensor parameter.
struct Affine {
  OptTensor weight, bias, act_weight;
};
struct Settings {
  std::string_view activation;
  at::ArrayRef<double> params;
  double eps;
  Call call() const { return {activation, params, 1, 1.0, {}, {}, "input"}; }
};

// act(batch_norm(input)) with the statistics of the batch; the channels are dim 1. With running statistics it is
// bias_act_epilogue, whose scale is weight / sqrt(var + eps) and whose bias is bias - mean * scale.
using Normalised = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // output, mean, var (biased), in the compute dtype
Normalised batch_norm_act(const at::Tensor& input, const Affine&, const Settings&);

}  // namespace batch_norm
using batch_norm::batch_norm_act;

}  // namespace fusedact
