// The cells on the CPU: threads and sums around the runs of kernels_cells.cpp. No SIMD, no torch.
#include "../cells/kernels.h"

#include "../cells/runs.h"
#include "chunks.h"
#include "isa.h"

namespace fusedact::cpu {
namespace {

// Break-even for a second thread, in hidden units: each has three to five exponentials.
constexpr int64_t grain = 4096;
// Rows whose bias gradients are added up in the compute type; few, so that small batches have work for several threads.
constexpr int64_t block = 16;

CellKernels kernels_of(DType dtype) { return FUSEDACT_OF_ISA(cell_kernels)(dtype); }

template <class C>
void run(const LstmArgs& a) {
  const auto kernel = kernels_of(a.dtype).lstm;
  const int64_t n = a.hidden;
  const Widened<C> bias(a.bias, 4 * n);
  parallel(a.parallel, a.rows, std::max<int64_t>(1, grain / n), [&](int64_t first, int64_t last) {
    auto from = [&](const void* p, int64_t width) { return offset(p, first * width, a.dtype); };
    auto to = [&](void* p) { return offset(p, first * n, a.dtype); };
    kernel({last - first, n, from(a.gates, 4 * n), bias.data(), from(a.c, n), to(a.h), to(a.c_new)});
  });
}

template <class C>
void run(const LstmBackwardArgs& a) {
  const auto kernel = kernels_of(a.dtype).lstm_backward;
  const int64_t n = a.hidden;
  const Widened<C> bias(a.bias, 4 * n);
  std::vector<double> total;
  for_chunks<C>(a.rows, a.grad_bias.data ? 4 * n : 0, block, a.parallel, grain / n, total,
                [&](int64_t first, int64_t last, C* sums) {
                  auto from = [&](const void* p, int64_t width) -> const void* {
                    return p ? offset(p, first * width, a.dtype) : nullptr;
                  };
                  auto to = [&](void* p, int64_t width) { return offset(p, first * width, a.dtype); };
                  kernel({last - first, n, from(a.grad_h, n), from(a.grad_c_new, n), from(a.gates, 4 * n), bias.data(),
                          from(a.c, n), to(a.grad_gates, 4 * n), to(a.grad_c, n), sums});
                });
  put(a.grad_bias, total.data(), 4 * n);
}

template <class C>
void run(const GruArgs& a) {
  const auto kernel = kernels_of(a.dtype).gru;
  const int64_t n = a.hidden;
  const Widened<C> input_bias(a.input_bias, 3 * n), hidden_bias(a.hidden_bias, 3 * n);
  parallel(a.parallel, a.rows, std::max<int64_t>(1, grain / n), [&](int64_t first, int64_t last) {
    auto from = [&](const void* p, int64_t width) { return offset(p, first * width, a.dtype); };
    kernel({last - first, n, from(a.input_gates, 3 * n), from(a.hidden_gates, 3 * n), input_bias.data(),
            hidden_bias.data(), from(a.h, n), offset(a.h_new, first * n, a.dtype)});
  });
}

template <class C>
void run(const GruBackwardArgs& a) {
  const auto kernel = kernels_of(a.dtype).gru_backward;
  const int64_t n = a.hidden;
  const Widened<C> input_bias(a.input_bias, 3 * n), hidden_bias(a.hidden_bias, 3 * n);
  const bool sums_asked = a.grad_input_bias.data || a.grad_hidden_bias.data;
  std::vector<double> total;
  for_chunks<C>(a.rows, sums_asked ? 4 * n : 0, block, a.parallel, grain / n, total,
                [&](int64_t first, int64_t last, C* sums) {
                  auto from = [&](const void* p, int64_t width) { return offset(p, first * width, a.dtype); };
                  auto to = [&](void* p, int64_t width) { return offset(p, first * width, a.dtype); };
                  kernel({last - first, n, from(a.grad, n), from(a.input_gates, 3 * n), from(a.hidden_gates, 3 * n),
                          input_bias.data(), hidden_bias.data(), from(a.h, n), to(a.grad_input_gates, 3 * n),
                          to(a.grad_hidden_gates, 3 * n), to(a.grad_h, n), sums});
                });
  put(a.grad_input_bias, total.data(), 3 * n);
  put(a.grad_hidden_bias, total.data(), 2 * n);
  put(a.grad_hidden_bias, total.data() + 3 * n, n, 2 * n);
}

template <class Args>
void in_compute_type(const Args& args) {
  args.dtype == DType::float64 ? run<double>(args) : run<float>(args);
}

}  // namespace

void lstm_cell_act(const LstmArgs& args) {
  if (args.rows * args.hidden > 0) in_compute_type(args);
}

void lstm_cell_act_backward(const LstmBackwardArgs& args) {
  if (args.rows * args.hidden == 0) return zero(args.grad_bias, 4 * args.hidden);
  in_compute_type(args);
}

void gru_cell_act(const GruArgs& args) {
  if (args.rows * args.hidden > 0) in_compute_type(args);
}

void gru_cell_act_backward(const GruBackwardArgs& args) {
  if (args.rows * args.hidden == 0) {
    zero(args.grad_input_bias, 3 * args.hidden);
    zero(args.grad_hidden_bias, 3 * args.hidden);
    return;
  }
  in_compute_type(args);
}

}  // namespace fusedact::cpu
