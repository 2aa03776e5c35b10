// The launchers of the operators around an activation behind C names, for tests/ptx.py.
#include "../csrc/cells/kernels.h"
#include "../csrc/epilogue/kernels.h"
#include "../csrc/gated/kernels.h"
#include "../csrc/maxout/kernels.h"
#include "../csrc/registry.h"
#include "../csrc/softmax/kernels.h"
#include "../csrc/statistics/kernels.h"

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
void run_softmax(const SoftmaxArgs* a) { cuda::softmax(*a, nullptr); }
int64_t softmax_backward_bytes(const SoftmaxBackwardArgs* a) { return cuda::workspace_bytes(*a); }
void run_softmax_backward(const SoftmaxBackwardArgs* a, void* workspace) {
  cuda::softmax_backward(*a, workspace, nullptr);
}
void run_maxout(const MaxoutArgs* a) { cuda::maxout(*a, nullptr); }
int64_t maxout_backward_bytes(const MaxoutBackwardArgs* a) { return cuda::workspace_bytes(*a); }
void run_maxout_backward(const MaxoutBackwardArgs* a, void* workspace) {
  cuda::maxout_backward(*a, workspace, nullptr);
}
void run_lstm(const LstmArgs* a) { cuda::lstm_cell_act(*a, nullptr); }
int64_t lstm_backward_bytes(const LstmBackwardArgs* a) { return cuda::workspace_bytes(*a); }
void run_lstm_backward(const LstmBackwardArgs* a, void* workspace) {
  cuda::lstm_cell_act_backward(*a, workspace, nullptr);
}
void run_gru(const GruArgs* a) { cuda::gru_cell_act(*a, nullptr); }
int64_t statistics_bytes(const StatisticsArgs* a) { return cuda::workspace_bytes(*a); }
void run_statistics(const StatisticsArgs* a, void* workspace) { cuda::statistics(*a, workspace, nullptr); }
int64_t gru_backward_bytes(const GruBackwardArgs* a) { return cuda::workspace_bytes(*a); }
void run_gru_backward(const GruBackwardArgs* a, void* workspace) {
  cuda::gru_cell_act_backward(*a, workspace, nullptr);
}
}
