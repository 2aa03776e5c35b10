// The operators for recurrent cells as functions: each call goes through the dispatcher, from the top. And their checks.
#pragma once

#include <array>
#include <tuple>

#include "../ops.h"

namespace fusedact {

// ---- LSTM -----------------------------------------------------------------------------------------------------------

using LstmState = std::tuple<Tensor, Tensor>;  // h, c
LstmState lstm_cell_act(const Tensor& gates, const Tensor& c, const OptTensor& bias);

using LstmGradients = std::tuple<Tensor, Tensor, Tensor>;  // of gates, c, bias; the last empty where not asked for
LstmGradients lstm_cell_act_backward(const OptTensor& grad_h, const OptTensor& grad_c_new, const Tensor& gates,
                                     const Tensor& c, const OptTensor& bias, bool grad_bias);

// ---- GRU ------------------------------------------------------------------------------------------------------------

Tensor gru_cell_act(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& h, const OptTensor& input_bias,
                    const OptTensor& hidden_bias);

// Of input_gates, hidden_gates, h, input_bias, hidden_bias; the last two empty where not asked for.
using GruGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
GruGradients gru_cell_act_backward(const Tensor& grad, const Tensor& input_gates, const Tensor& hidden_gates,
                                   const Tensor& h, const OptTensor& input_bias, const OptTensor& hidden_bias,
                                   bool grad_input_bias, bool grad_hidden_bias);

std::vector<NodeType> cell_node_types();

}  // namespace fusedact
