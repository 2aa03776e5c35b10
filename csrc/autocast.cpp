// Autocast: bias and weight follow the input. Under autocast a layer's output is 16-bit while its parameters stay
// float32; the kernels take that mixture as it is. Whatever else does not fit is cast. The input keeps its dtype.
#include <torch/library.h>

#include "autocast.h"

namespace fusedact {

namespace {

template <c10::DispatchKey key>
Tensor bias_act_autocast(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  return bias_act(input, fitted(bias, input), fitted(weight, input), call);
}

template <c10::DispatchKey key>
void bias_act_inplace_autocast(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  bias_act_(input, fitted(bias, input), fitted(weight, input), call);
}

template <c10::DispatchKey key>
void bias_act_out_autocast(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                           const Tensor& out) {
  c10::impl::ExcludeDispatchKeyGuard below(key);
  bias_act_out(input, fitted(bias, input), fitted(weight, input), call, out);
}

template <c10::DispatchKey key>
void implement(torch::Library& m) {
  m.impl("bias_act", Flat<bias_act_autocast<key>>::call);
  m.impl("bias_act_", Flat<bias_act_inplace_autocast<key>>::call);
  m.impl("bias_act.out", Flat<bias_act_out_autocast<key>>::call);
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedact, AutocastCPU, m) { implement<c10::DispatchKey::AutocastCPU>(m); }
TORCH_LIBRARY_IMPL(fusedact, AutocastCUDA, m) { implement<c10::DispatchKey::AutocastCUDA>(m); }

}  // namespace fusedact
