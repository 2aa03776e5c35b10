// What this build has for CUDA: which architectures, and how many kernels.
#include "../registry.h"
#include "drive.h"

namespace fusedact::cuda {

const char* architectures() { return FUSEDACT_CUDA_ARCHITECTURES; }

// Launchers, by activation and dtype; softmax, maxout and the cells have ten for each dtype, statistics three.
int kernel_count() {
  int count = 0;
  const auto add = [&](const auto* table) {
    for (size_t i = 0; i < activations().size(); ++i) count += table[i] != nullptr;
  };
  for (DType dtype : {DType::float32, DType::float64, DType::bfloat16, DType::float16}) {
    add(FUSEDACT_OF_STORAGE(dtype, forward_table)());
    for (Saved kind : {Saved::input, Saved::output, Saved::mask}) add(FUSEDACT_OF_STORAGE(dtype, backward_table)(kind));
    add(FUSEDACT_OF_STORAGE(dtype, gated_table)());
    add(FUSEDACT_OF_STORAGE(dtype, gated_backward_table)());
    add(FUSEDACT_OF_STORAGE(dtype, epilogue_table)());
    add(FUSEDACT_OF_STORAGE(dtype, epilogue_backward_table)());
    count += 13;
  }
  for (Saved kind : {Saved::input, Saved::output}) add(double_backward_table(kind));
  return count;
}

}  // namespace fusedact::cuda
