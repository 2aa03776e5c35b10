// The contract between the operators for recurrent cells and their back ends: the gate arithmetic of one step, all dense.
// Knows nothing of torch or of SIMD.
#pragma once

#include "../kernels.h"

namespace fusedact {

// Gates i, f, g, o, as torch.nn.LSTMCell has them:
//   c_new = sigmoid(f) c + sigmoid(i) tanh(g),  h = sigmoid(o) tanh(c_new)
struct LstmArgs {
  int64_t rows = 0, hidden = 0;
  DType dtype = DType::float32;  // of all but the bias
  const void* gates = nullptr;   // [rows, 4, hidden]
  Vector bias;                   // [4, hidden], or absent
  const void* c = nullptr;       // [rows, hidden]
  void *h = nullptr, *c_new = nullptr;
  Parallel parallel;
};

struct LstmBackwardArgs {
  int64_t rows = 0, hidden = 0;
  DType dtype = DType::float32;
  const void *grad_h = nullptr, *grad_c_new = nullptr;  // [rows, hidden], or null for zeros
  const void* gates = nullptr;                          // [rows, 4, hidden]
  Vector bias;                                          // [4, hidden], or absent
  const void* c = nullptr;                              // [rows, hidden]
  void* grad_gates = nullptr;                           // [rows, 4, hidden]
  void* grad_c = nullptr;                               // [rows, hidden]
  Sum grad_bias;                                        // [4, hidden]
  Parallel parallel;
};

// Gates r, z, n, as torch.nn.GRUCell has them:
//   n = tanh(input_n + sigmoid(r) hidden_n),  h_new = (1 - sigmoid(z)) n + sigmoid(z) h,
// where r and z are sums of what comes from the input and from the hidden state.
struct GruArgs {
  int64_t rows = 0, hidden = 0;
  DType dtype = DType::float32;                                // of all but the biases
  const void *input_gates = nullptr, *hidden_gates = nullptr;  // [rows, 3, hidden]
  Vector input_bias, hidden_bias;                              // [3, hidden], or absent
  const void* h = nullptr;                                     // [rows, hidden]
  void* h_new = nullptr;
  Parallel parallel;
};

struct GruBackwardArgs {
  int64_t rows = 0, hidden = 0;
  DType dtype = DType::float32;
  const void* grad = nullptr;                                  // [rows, hidden]
  const void *input_gates = nullptr, *hidden_gates = nullptr;  // [rows, 3, hidden]
  Vector input_bias, hidden_bias;                              // [3, hidden], or absent
  const void* h = nullptr;                                     // [rows, hidden]
  void *grad_input_gates = nullptr, *grad_hidden_gates = nullptr;
  void* grad_h = nullptr;
  Sum grad_input_bias, grad_hidden_bias;  // [3, hidden]
  Parallel parallel;
};

namespace cpu {
void lstm_cell_act(const LstmArgs&);
void lstm_cell_act_backward(const LstmBackwardArgs&);
void gru_cell_act(const GruArgs&);
void gru_cell_act_backward(const GruBackwardArgs&);
}  // namespace cpu

namespace cuda {
void lstm_cell_act(const LstmArgs&, Stream);
int64_t workspace_bytes(const LstmBackwardArgs&);
void lstm_cell_act_backward(const LstmBackwardArgs&, void* workspace, Stream);
void gru_cell_act(const GruArgs&, Stream);
int64_t workspace_bytes(const GruBackwardArgs&);
void gru_cell_act_backward(const GruBackwardArgs&, void* workspace, Stream);
}  // namespace cuda

}  // namespace fusedact
