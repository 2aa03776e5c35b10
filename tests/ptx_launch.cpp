// The launchers behind C names, for tests/ptx.py: the structs of kernels.h are laid out there a second time.
#include "../csrc/registry.h"

using namespace fusedact;

extern "C" {
void run_forward(const char* name, const ForwardArgs* a) { cuda::forward(*find_activation(name), *a, nullptr); }
int64_t backward_bytes(const char* name, const BackwardArgs* a) {
  return cuda::workspace_bytes(*find_activation(name), *a);
}
void run_backward(const char* name, const BackwardArgs* a, void* workspace) {
  cuda::backward(*find_activation(name), *a, workspace, nullptr);
}
int64_t double_backward_bytes(const char* name, const DoubleBackwardArgs* a) {
  return cuda::workspace_bytes(*find_activation(name), *a);
}
void run_double_backward(const char* name, const DoubleBackwardArgs* a, void* workspace) {
  cuda::double_backward(*find_activation(name), *a, workspace, nullptr);
}
}
