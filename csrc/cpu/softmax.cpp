// Softmax on the CPU: from a whole tensor to the runs of kernels_softmax.cpp. Threads, rows and strips; no SIMD, no torch.
#include "../softmax/kernels.h"

#include "../softmax/runs.h"
#include "chunks.h"
#include "isa.h"

namespace fusedact::cpu {
namespace {

// Break-even for a second thread, in elements.
constexpr int64_t grain = 16384;
// What a strip may have in the work space, in elements, so that its three passes stay in the second-level cache.
constexpr int64_t strip_elements = 32768, widest_strip = 1024;

SoftmaxKernels kernels_of(DType dtype, bool log) { return FUSEDACT_OF_ISA(softmax_kernels)(dtype, log); }

// Strips of columns: how wide, and how many of them for one outer index.
struct Strips {
  int64_t width, count;
  explicit Strips(const Shape& s) {
    const int64_t fitting = strip_elements / s.channels / strip_step * strip_step;
    width = std::min(std::clamp(fitting, strip_step, widest_strip), s.inner);
    count = (s.inner + width - 1) / width;
  }
  int64_t work(const Shape& s) const {
    return (s.channels + strip_vectors) * ((width + strip_step - 1) / strip_step * strip_step);
  }
};

template <class C>
void run_forward(const SoftmaxArgs& args) {
  const Shape& s = args.shape;
  const SoftmaxKernels run = kernels_of(args.dtype, args.log);
  const Widened<C> bias(args.bias, s.channels);
  const bool stream = args.x != args.y && beyond_cache(s.numel() * size_of(args.dtype));
  if (s.inner == 1)
    return parallel(args.parallel, s.outer, std::max<int64_t>(1, grain / s.channels), [&](int64_t first, int64_t last) {
      std::vector<C> work(s.channels);
      const int64_t at = first * s.channels;
      run.rows({last - first, s.channels, offset(args.x, at, args.dtype), bias.data(), offset(args.y, at, args.dtype),
                work.data(), stream});
    });
  const Strips strips(s);
  const int64_t together = std::max<int64_t>(1, grain / (s.channels * strips.width));
  parallel(args.parallel, s.outer * strips.count, together, [&](int64_t first, int64_t last) {
    std::vector<C> work(strips.work(s));
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t column = unit % strips.count * strips.width;
      const int64_t at = unit / strips.count * s.channels * s.inner + column;
      run.strip({s.channels, std::min(strips.width, s.inner - column), s.inner, offset(args.x, at, args.dtype),
                 bias.data(), offset(args.y, at, args.dtype), work.data(), stream});
    }
  });
}

template <class C>
void run_backward(const SoftmaxBackwardArgs& args) {
  const Shape& s = args.shape;
  const SoftmaxKernels run = kernels_of(args.dtype, args.log);
  const bool stream =
      args.grad != args.grad_x && args.y != args.grad_x && beyond_cache(s.numel() * size_of(args.dtype));
  const int64_t sums = args.grad_bias.data ? s.channels : 0;
  std::vector<double> total;
  if (s.inner == 1) {
    for_chunks<C>(
        s.outer, sums, 64, args.parallel, grain / s.channels, total, [&](int64_t first, int64_t last, C* into) {
          const int64_t at = first * s.channels;
          run.backward_rows({last - first, s.channels, offset(args.grad, at, args.dtype),
                             offset(args.y, at, args.dtype), offset(args.grad_x, at, args.dtype), into, stream});
        });
  } else {
    const Strips strips(s);
    for_chunks<C>(s.outer * strips.count, sums, 16, args.parallel, grain / (s.channels * strips.width), total,
                  [&](int64_t first, int64_t last, C* into) {
                    std::vector<C> work(strips.work(s));
                    for (int64_t unit = first; unit < last; ++unit) {
                      const int64_t column = unit % strips.count * strips.width;
                      const int64_t at = unit / strips.count * s.channels * s.inner + column;
                      run.backward_strip({s.channels, std::min(strips.width, s.inner - column), s.inner,
                                          offset(args.grad, at, args.dtype), offset(args.y, at, args.dtype),
                                          offset(args.grad_x, at, args.dtype), work.data(), into, stream});
                    }
                  });
  }
  put(args.grad_bias, total.data(), sums);
}

}  // namespace

void softmax(const SoftmaxArgs& args) {
  if (args.shape.numel() == 0) return;
  args.dtype == DType::float64 ? run_forward<double>(args) : run_forward<float>(args);
}

void softmax_backward(const SoftmaxBackwardArgs& args) {
  if (args.shape.numel() == 0) return zero(args.grad_bias, args.shape.channels);
  args.dtype == DType::float64 ? run_backward<double>(args) : run_backward<float>(args);
}

}  // namespace fusedact::cpu
