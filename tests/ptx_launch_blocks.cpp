// The launchers of the operators around an activation behind C names, for tests/ptx.py.
#include "../csrc/epilogue/kernels.h"
#include "../csrc/gated/kernels.h"
#include "../csrc/registry.h"

using namespace fusedact;

extern "C" {
void run_gated(const char* name, const GatedForwardArgs* a) {
  cuda::gated_forward(*find_activation(name), *a, nullptr);
}
int64_t gated_backward_bytes(const char* name, const GatedBackwardArgs* a) {
  return cuda::workspace_bytes(*find_activation(name), *a);
}
void run_gated_backward(const char* name, const GatedBackwardArgs* a, void* workspace) {
  cuda::gated_backward(*find_activation(name), *a, workspace, nullptr);
}
void run_epilogue(const char* name, const EpilogueArgs* a) { cuda::epilogue(*find_activation(name), *a, nullptr); }
int64_t epilogue_backward_bytes(const char* name, const EpilogueBackwardArgs* a) {
  return cuda::workspace_bytes(*find_activation(name), *a);
}
void run_epilogue_backward(const char* name, const EpilogueBackwardArgs* a, void* workspace) {
  cuda::epilogue_backward(*find_activation(name), *a, workspace, nullptr);
}
void run_dropout_mask(const Dropout* dropout, int dtype, void* mask, int64_t count) {
  cuda::dropout_mask(*dropout, static_cast<DType>(dtype), mask, count, nullptr);
}
}
