// gelu(x + bias), fused, with gradients, in C++; compared with torch's own.
#include <ATen/ATen.h>
#include <fusedact/fusedact.h>
#include <torch/csrc/autograd/autograd.h>

#include <iostream>

int main() {
  at::Tensor x = at::linspace(-3, 3, 12).view({3, 4}).requires_grad_();
  at::Tensor bias = at::linspace(0, 1, 4).requires_grad_();

  at::Tensor y = fusedact::bias_act(x, bias, {}, {.activation = "gelu"});
  auto fused = torch::autograd::grad({y.sum()}, {x, bias});
  at::Tensor expected = at::gelu(x + bias);
  auto plain = torch::autograd::grad({expected.sum()}, {x, bias});

  // torch's 1 + erf loses digits on the left: hence 1e-4.
  auto close = [](const at::Tensor& a, const at::Tensor& b) { return at::allclose(a, b, 1e-4, 1e-6); };
  bool equal = close(y, expected) && close(fused[0], plain[0]) && close(fused[1], plain[1]);
  std::cout << y << "\n" << (equal ? "equal to at::gelu(x + bias), gradients too" : "DIFFERENT") << std::endl;
  return equal ? 0 : 1;
}
