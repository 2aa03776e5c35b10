// The fused operators in C++, each compared with torch's own; the first with its gradients.
#include <ATen/ATen.h>
#include <fusedact/fusedact.h>
#include <torch/csrc/autograd/autograd.h>

#include <iostream>

namespace {

bool all_equal = true;

// torch's 1 + erf loses digits on the left: hence 1e-4.
void compare(const char* what, const at::Tensor& fused, const at::Tensor& expected) {
  const bool equal = at::allclose(fused, expected, 1e-4, 1e-6);
  all_equal &= equal;
  std::cout << (equal ? "equal to " : "DIFFERENT FROM ") << what << "\n";
}

}  // namespace

int main() {
  at::Tensor x = at::linspace(-3, 3, 12).view({3, 4}).requires_grad_();
  at::Tensor bias = at::linspace(0, 1, 4).requires_grad_();

  at::Tensor y = fusedact::bias_act(x, bias, {}, {.activation = "gelu"});
  at::Tensor expected = at::gelu(x + bias);
  compare("at::gelu(x + bias)", y, expected);
  auto fused = torch::autograd::grad({y.sum()}, {x, bias});
  auto plain = torch::autograd::grad({expected.sum()}, {x, bias});
  compare("its gradient for x", fused[0], plain[0]);
  compare("its gradient for bias", fused[1], plain[1]);

  // A gated unit: the halves of one tensor, and two tensors.
  auto halves = x.chunk(2, -1);
  at::Tensor swiglu = at::silu(halves[0]) * halves[1];
  compare("silu(gate) * value", fusedact::gated_act({x, {}, {}, {}}, {.activation = "silu"}), swiglu);
  compare("the same of two tensors", fusedact::gated_act({halves[0], halves[1], {}, {}}, {.activation = "silu"}),
          swiglu);

  // Around an activation: scale, residual, and dropout with a mask that a seed fixes.
  at::Tensor scale = at::linspace(1, 2, 4), seed = at::scalar_tensor(7, at::kLong);
  const fusedact::Call relu{.activation = "relu"};
  at::Tensor activated = at::relu(x * scale + bias);
  compare("x + relu(x * scale + bias)", fusedact::bias_act_epilogue(x, {bias, {}, scale, {}}, x, relu, 0.0),
          x + activated);
  at::Tensor dropped = fusedact::bias_act_epilogue(x, {bias, {}, scale, seed}, {}, relu, 0.5);
  compare("dropout(relu(x * scale + bias)): 0 or doubled", dropped, at::where(dropped == 0, dropped, 2 * activated));

  compare("softmax(x + bias)", fusedact::softmax(x, bias, -1), at::softmax(x + bias, -1));
  compare("log_softmax(x + bias)", fusedact::log_softmax(x, bias, -1), at::log_softmax(x + bias, -1));
  compare("the larger of pairs", std::get<0>(fusedact::maxout(x, bias, 2, -1)), (x + bias).view({3, 2, 2}).amax(-1));

  at::Tensor weight = at::linspace(-1, 1, 20).view({5, 4});
  compare("relu(linear(x))", fusedact::linear_act(x, weight, {}, {}, relu), at::relu(at::linear(x, weight)));

  at::Tensor image = x.view({3, 4, 1});
  at::Tensor normed = std::get<0>(fusedact::batch_norm_act(image, {}, {.activation = "relu", .eps = 1e-5}));
  compare("relu(batch_norm(x))", normed, at::relu(at::batch_norm(image, {}, {}, {}, {}, true, 0.1, 1e-5, false)));

  // The gates of recurrent cells: hidden size 1.
  at::Tensor c = at::linspace(-1, 1, 3).view({3, 1});
  auto [h, c_new] = fusedact::lstm_cell_act(x, c, bias);
  auto gates = (x + bias).chunk(4, -1);
  at::Tensor wanted = at::sigmoid(gates[1]) * c + at::sigmoid(gates[0]) * at::tanh(gates[2]);
  compare("an LSTM's new cell", c_new, wanted);
  compare("its new state", h, at::sigmoid(gates[3]) * at::tanh(wanted));
  at::Tensor three = x.narrow(-1, 0, 3);
  auto in = three.chunk(3, -1);
  at::Tensor update = at::sigmoid(2 * in[1]);
  at::Tensor next = at::tanh(in[2] + at::sigmoid(2 * in[0]) * in[2]);
  compare("a GRU's new state", fusedact::gru_cell_act(three, three, c, {}, {}), update * c + (1 - update) * next);

  std::cout << (all_equal ? "all equal" : "NOT all equal") << std::endl;
  return all_equal ? 0 : 1;
}
