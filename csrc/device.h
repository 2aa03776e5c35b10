// Which back end computes: that of the device that a tensor is on. For operators whose kernels are the same for every device
// but for the last call.
//
// Knows no operator. On CUDA everything is queued on the device's current stream, nothing waits for it, and memory comes
// from torch's allocator: so calls can be captured in a graph.
#pragma once

#include <c10/util/FunctionRef.h>

#include "layout.h"

namespace fusedact {

#if defined(FUSEDACT_CUDA)
inline constexpr bool with_cuda = true;
#else
inline constexpr bool with_cuda = false;
#endif

namespace cuda {

struct Queue {
  Stream stream;
  std::vector<Tensor> rooms;
  // Belongs to the stream: what is queued on it later may have the memory again.
  void* room(int64_t bytes);
};

// Calls `work` with x's device current, and raises what its launches report. In builds with CUDA.
void enqueue(const Tensor& x, c10::function_ref<void(Queue&)> work);

}  // namespace cuda

template <class OnCpu, class OnCuda>
void on_device_of(const Tensor& x, OnCpu on_cpu, OnCuda on_cuda) {
  if constexpr (with_cuda) {
    if (x.is_cuda()) return cuda::enqueue(x, on_cuda);
  }
  on_cpu();
}

}  // namespace fusedact
