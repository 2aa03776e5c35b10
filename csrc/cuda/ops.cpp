// The operators' CUDA kernels: device, stream and workspace for the launchers of kernels.h. Compiled by the host's compiler;
// the kernels themselves know no torch.
//
// Nothing waits for the device: everything is queued on the current stream, and memory comes from torch's allocator, so
// that calls can be captured in a CUDA graph.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../device.h"
#include "../passes.h"

namespace fusedact {
namespace {

cuda::Stream current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// Belongs to the stream, see Queue.
Tensor workspace(int64_t bytes) {
  if (bytes == 0) return {};
  return at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(at::kCUDA, c10::cuda::current_device()));
}

struct Cuda {
  struct Guard : c10::cuda::CUDAGuard {
    explicit Guard(const Tensor& x) : CUDAGuard(x.device()) {}
  };
  static void forward(const Activation& a, const ForwardArgs& args) {
    cuda::forward(a, args, current_stream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  static void backward(const Activation& a, const BackwardArgs& args) {
    const Tensor room = workspace(cuda::workspace_bytes(a, args));
    cuda::backward(a, args, room.defined() ? room.mutable_data_ptr() : nullptr, current_stream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  static void double_backward(const Activation& a, const DoubleBackwardArgs& args) {
    const Tensor room = workspace(cuda::workspace_bytes(a, args));
    cuda::double_backward(a, args, room.defined() ? room.mutable_data_ptr() : nullptr, current_stream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

void* cuda::Queue::room(int64_t bytes) {
  rooms.push_back(workspace(bytes));
  return rooms.back().defined() ? rooms.back().mutable_data_ptr() : nullptr;
}

void cuda::enqueue(const Tensor& x, c10::function_ref<void(Queue&)> work) {
  const c10::cuda::CUDAGuard current(x.device());
  Queue queue{current_stream(), {}};
  work(queue);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

TORCH_LIBRARY_IMPL(fusedact, CUDA, m) { Passes<Cuda>::implement(m); }

}  // namespace fusedact
