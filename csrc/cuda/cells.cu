// The gate arithmetic of LSTM and GRU cells, forward and backward: a thread has a pack of hidden units, and goes from row to
// row. The arithmetic is that of cpu/kernels_cells.cpp, operation by operation.
#include "../cells/kernels.h"
#include "../cells/maths.h"
#include "drive.h"
#include "pack.cuh"

namespace fusedact::cuda {
namespace {

using namespace of_cells;

constexpr uint32_t warp = 32, lines = block_threads / warp;

template <class T>
using compute = std::conditional_t<sizeof(T) == 8, double, float>;

// Fewer at a time where a pack would not fit into the registers with all that a cell has.
template <class T>
constexpr int together = sizeof(T) == 2 ? 4 : per_thread<T>;

struct Cells {
  int64_t rows, hidden;
  int64_t across;  // units in a row
  int64_t units;   // [group of rows][tile of hidden units]
  int64_t group;   // rows of a unit
  int32_t whole;
};

template <class T>
struct Spot {
  static constexpr int n = together<T>;
  int64_t row, end, column;
  int32_t left;
  FUSEDACT_DEVICE Spot(const Cells& s, int64_t unit) {
    const int64_t group = unit / s.across;
    row = group * s.group + threadIdx.x / warp;
    end = min(s.rows, (group + 1) * s.group);
    column = ((unit - group * s.across) * warp + threadIdx.x % warp) * n;
    left = static_cast<int32_t>(max(int64_t{0}, min(s.hidden - column, int64_t{n})));
  }
};

// A bias of `gates` times hidden elements, for a thread's units; -0 where there is none.
template <class C, class T, int gates, int n = together<T>>
FUSEDACT_DEVICE void read_bias(Pack<C, n> (&b)[gates], const Vector& v, const Cells& s, const Spot<T>& p) {
#pragma unroll
  for (int k = 0; k < gates; ++k)
#pragma unroll
    for (int i = 0; i < n; ++i)
      b[k].v[i] = v.extent != Extent::none && i < p.left
                      ? value_at<C, T>(v, static_cast<uint32_t>(k * s.hidden + p.column + i))
                      : C(-0.0);
}
template <class C, class T, int n = together<T>>
FUSEDACT_DEVICE Pack<C, n> get(const T* x, int64_t at, const Cells& s, const Spot<T>& p) {
  const Pack<T, n> stored = load<T, n>(x + at, p.left, s.whole);
  Pack<C, n> v;
#pragma unroll
  for (int i = 0; i < n; ++i) v.v[i] = widen<C>(stored.v[i]);
  return v;
}
template <class C, class T, int n = together<T>>
FUSEDACT_DEVICE Pack<C, n> or_zero(const T* x, int64_t at, const Cells& s, const Spot<T>& p) {
  return x ? get<C>(x, at, s, p) : Pack<C, n>{};
}
template <class C, class T, int n = together<T>>
FUSEDACT_DEVICE void put(T* y, int64_t at, const Pack<C, n>& v, const Cells& s, const Spot<T>& p) {
  Pack<T, n> stored;
#pragma unroll
  for (int i = 0; i < n; ++i) stored.v[i] = narrow<T>(v.v[i]);
  store(y + at, stored, p.left, s.whole);
}

// Calls f(place, row) for each row of each unit of this thread.
template <class T, class Begin, class F>
FUSEDACT_DEVICE void over_rows(const Cells& s, Begin begin, F f) {
  for (int64_t unit = blockIdx.x; unit < s.units; unit += gridDim.x) {
    const Spot<T> p(s, unit);
    if (p.left == 0) continue;
    begin(p);
    for (int64_t row = p.row; row < p.end; row += lines) f(p, row);
  }
}

// ---- LSTM -----------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    lstm_kernel(const Cells s, const T* gates, const Vector biases, const T* cs, T* hs, T* c_news) {
  using C = compute<T>;
  constexpr int n = together<T>;
  Pack<C, n> bias[4];
  over_rows<T>(
      s, [&](const Spot<T>& p) { read_bias<C, T>(bias, biases, s, p); },
      [&](const Spot<T>& p, int64_t row) {
        const int64_t at = row * s.hidden + p.column, gate = 4 * row * s.hidden + p.column;
        Pack<C, n> g[4], before = get<C>(cs, at, s, p), cell, h;
#pragma unroll
        for (int k = 0; k < 4; ++k) g[k] = get<C>(gates, gate + k * s.hidden, s, p);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          const C in = sigmoid(g[0].v[i] + bias[0].v[i]), added = in * tanh(g[2].v[i] + bias[2].v[i]);
          cell.v[i] = fma(sigmoid(g[1].v[i] + bias[1].v[i]), before.v[i], added);
          h.v[i] = sigmoid(g[3].v[i] + bias[3].v[i]) * tanh(cell.v[i]);
        }
        put<C>(c_news, at, cell, s, p);
        put<C>(hs, at, h, s, p);
      });
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    lstm_backward_kernel(const Cells s, const T* grad_hs, const T* grad_c_news, const T* gates, const Vector biases,
                         const T* cs, T* grad_gates, T* grad_cs) {
  using C = compute<T>;
  constexpr int n = together<T>;
  Pack<C, n> bias[4];
  over_rows<T>(
      s, [&](const Spot<T>& p) { read_bias<C, T>(bias, biases, s, p); },
      [&](const Spot<T>& p, int64_t row) {
        const int64_t at = row * s.hidden + p.column, gate = 4 * row * s.hidden + p.column;
        Pack<C, n> g[4], before = get<C>(cs, at, s, p), of_h = or_zero<C>(grad_hs, at, s, p),
                         of_c = or_zero<C>(grad_c_news, at, s, p);
#pragma unroll
        for (int k = 0; k < 4; ++k) g[k] = get<C>(gates, gate + k * s.hidden, s, p);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          const Curve<C> in = sigmoid_curve(g[0].v[i] + bias[0].v[i]), forget = sigmoid_curve(g[1].v[i] + bias[1].v[i]),
                         cell = tanh_curve(g[2].v[i] + bias[2].v[i]);
          const C after = fma(forget.value, before.v[i], in.value * cell.value);
          const Curve<C> seen = tanh_curve(after), out = sigmoid_curve(g[3].v[i] + bias[3].v[i]);
          const C r = fma(of_h.v[i] * out.value, seen.slope, of_c.v[i]);
          g[3].v[i] = of_h.v[i] * seen.value * out.slope;
          g[0].v[i] = r * cell.value * in.slope;
          g[1].v[i] = r * before.v[i] * forget.slope;
          g[2].v[i] = r * in.value * cell.slope;
          of_c.v[i] = r * forget.value;
        }
        put<C>(grad_cs, at, of_c, s, p);
#pragma unroll
        for (int k = 0; k < 4; ++k) put<C>(grad_gates, gate + k * s.hidden, g[k], s, p);
      });
}

// ---- GRU ------------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    gru_kernel(const Cells s, const T* inputs, const T* hiddens, const Vector input_biases, const Vector hidden_biases,
               const T* hs, T* h_news) {
  using C = compute<T>;
  constexpr int n = together<T>;
  Pack<C, n> input_bias[3], hidden_bias[3];
  over_rows<T>(
      s,
      [&](const Spot<T>& p) {
        read_bias<C, T>(input_bias, input_biases, s, p);
        read_bias<C, T>(hidden_bias, hidden_biases, s, p);
      },
      [&](const Spot<T>& p, int64_t row) {
        const int64_t at = row * s.hidden + p.column, gate = 3 * row * s.hidden + p.column;
        Pack<C, n> x[3], y[3], before = get<C>(hs, at, s, p), after;
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          x[k] = get<C>(inputs, gate + k * s.hidden, s, p);
          y[k] = get<C>(hiddens, gate + k * s.hidden, s, p);
        }
#pragma unroll
        for (int i = 0; i < n; ++i) {
          C in[3], of[3];
#pragma unroll
          for (int k = 0; k < 3; ++k) {
            in[k] = x[k].v[i] + input_bias[k].v[i];
            of[k] = y[k].v[i] + hidden_bias[k].v[i];
          }
          const C fresh = tanh(fma(sigmoid(in[0] + of[0]), of[2], in[2]));
          after.v[i] = fma(sigmoid(in[1] + of[1]), before.v[i] - fresh, fresh);
        }
        put<C>(h_news, at, after, s, p);
      });
}

template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    gru_backward_kernel(const Cells s, const T* grads, const T* inputs, const T* hiddens, const Vector input_biases,
                        const Vector hidden_biases, const T* hs, T* grad_inputs, T* grad_hiddens, T* grad_hs) {
  using C = compute<T>;
  constexpr int n = together<T>;
  Pack<C, n> input_bias[3], hidden_bias[3];
  over_rows<T>(
      s,
      [&](const Spot<T>& p) {
        read_bias<C, T>(input_bias, input_biases, s, p);
        read_bias<C, T>(hidden_bias, hidden_biases, s, p);
      },
      [&](const Spot<T>& p, int64_t row) {
        const int64_t at = row * s.hidden + p.column, gate = 3 * row * s.hidden + p.column;
        Pack<C, n> x[3], y[3], before = get<C>(hs, at, s, p), grad = get<C>(grads, at, s, p);
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          x[k] = get<C>(inputs, gate + k * s.hidden, s, p);
          y[k] = get<C>(hiddens, gate + k * s.hidden, s, p);
        }
#pragma unroll
        for (int i = 0; i < n; ++i) {
          C in[3], of[3];
#pragma unroll
          for (int k = 0; k < 3; ++k) {
            in[k] = x[k].v[i] + input_bias[k].v[i];
            of[k] = y[k].v[i] + hidden_bias[k].v[i];
          }
          const Curve<C> reset = sigmoid_curve(in[0] + of[0]), update = sigmoid_curve(in[1] + of[1]);
          const Curve<C> fresh = tanh_curve(fma(reset.value, of[2], in[2]));
          const C g = grad.v[i], gz = g * update.value;
          const C of_update = g * (before.v[i] - fresh.value) * update.slope;
          const C of_fresh = (g - gz) * fresh.slope;
          const C of_reset = of_fresh * of[2] * reset.slope;
          x[0].v[i] = y[0].v[i] = of_reset;
          x[1].v[i] = y[1].v[i] = of_update;
          x[2].v[i] = of_fresh;
          y[2].v[i] = of_fresh * reset.value;
          grad.v[i] = gz;
        }
        put<C>(grad_hs, at, grad, s, p);
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          put<C>(grad_inputs, gate + k * s.hidden, x[k], s, p);
          put<C>(grad_hiddens, gate + k * s.hidden, y[k], s, p);
        }
      });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <class T>
Cells cells_of(int64_t rows, int64_t hidden, std::initializer_list<const void*> pointers) {
  constexpr int n = together<T>;
  Cells s{rows, hidden, (hidden + warp * n - 1) / (warp * n), 0, lines, 0};
  // As many rows for each as let a bias be read once for several, if there is work for all.
  s.group = std::clamp<int64_t>(rows * s.across / enough_units / lines, 1, 8) * lines;
  s.units = (rows + s.group - 1) / s.group * s.across;
  s.whole = hidden % n == 0 && aligned(n * static_cast<int>(sizeof(T)), pointers) ? n : INT32_MAX;
  return s;
}
unsigned blocks_for(const Cells& s) {
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return static_cast<unsigned>(std::min<int64_t>(s.units, int64_t{processors} * 32));
}
template <class T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* as(void* p) {
  return static_cast<T*>(p);
}

template <class T>
void run(const LstmArgs& a, Stream stream) {
  const Cells s = cells_of<T>(a.rows, a.hidden, {a.gates, a.c, a.h, a.c_new});
  lstm_kernel<T>
      <<<blocks_for(s), block_threads, 0, stream>>>(s, as<T>(a.gates), a.bias, as<T>(a.c), as<T>(a.h), as<T>(a.c_new));
}
template <class T>
void run(const LstmBackwardArgs& a, Stream stream) {
  const Cells s = cells_of<T>(a.rows, a.hidden, {a.grad_h, a.grad_c_new, a.gates, a.c, a.grad_gates, a.grad_c});
  lstm_backward_kernel<T><<<blocks_for(s), block_threads, 0, stream>>>(s, as<T>(a.grad_h), as<T>(a.grad_c_new),
                                                                       as<T>(a.gates), a.bias, as<T>(a.c),
                                                                       as<T>(a.grad_gates), as<T>(a.grad_c));
}
template <class T>
void run(const GruArgs& a, Stream stream) {
  const Cells s = cells_of<T>(a.rows, a.hidden, {a.input_gates, a.hidden_gates, a.h, a.h_new});
  gru_kernel<T><<<blocks_for(s), block_threads, 0, stream>>>(s, as<T>(a.input_gates), as<T>(a.hidden_gates),
                                                             a.input_bias, a.hidden_bias, as<T>(a.h), as<T>(a.h_new));
}
template <class T>
void run(const GruBackwardArgs& a, Stream stream) {
  const Cells s =
      cells_of<T>(a.rows, a.hidden,
                  {a.grad, a.input_gates, a.hidden_gates, a.h, a.grad_input_gates, a.grad_hidden_gates, a.grad_h});
  gru_backward_kernel<T><<<blocks_for(s), block_threads, 0, stream>>>(
      s, as<T>(a.grad), as<T>(a.input_gates), as<T>(a.hidden_gates), a.input_bias, a.hidden_bias, as<T>(a.h),
      as<T>(a.grad_input_gates), as<T>(a.grad_hidden_gates), as<T>(a.grad_h));
}

template <class Args>
void launch(const Args& a, Stream stream) {
  if (a.rows * a.hidden == 0) return;
  if (a.hidden > INT32_MAX / 4) throw std::invalid_argument("fusedact: more than 2^29 hidden units on CUDA");
  switch (a.dtype) {
    case DType::float32: return run<float>(a, stream);
    case DType::float64: return run<double>(a, stream);
    case DType::bfloat16: return run<bfloat16>(a, stream);
    default: return run<float16>(a, stream);
  }
}

Shape gates_of(int64_t rows, int64_t hidden, int64_t gates) { return {rows, gates * hidden, 1}; }

}  // namespace

void lstm_cell_act(const LstmArgs& args, Stream stream) { launch(args, stream); }

int64_t workspace_bytes(const LstmBackwardArgs& a) {
  return a.grad_bias.data ? sum_bytes(gates_of(a.rows, a.hidden, 4), a.dtype, a.grad_gates) : 0;
}

void lstm_cell_act_backward(const LstmBackwardArgs& a, void* workspace, Stream stream) {
  launch(a, stream);
  if (a.grad_bias.data)
    sum_channels(gates_of(a.rows, a.hidden, 4), a.dtype, a.grad_gates, a.grad_bias, workspace, stream);
}

void gru_cell_act(const GruArgs& args, Stream stream) { launch(args, stream); }

// One after the other, in the same memory.
int64_t workspace_bytes(const GruBackwardArgs& a) {
  if (!a.grad_input_bias.data && !a.grad_hidden_bias.data) return 0;
  const Shape gates = gates_of(a.rows, a.hidden, 3);
  return std::max(sum_bytes(gates, a.dtype, a.grad_input_gates), sum_bytes(gates, a.dtype, a.grad_hidden_gates));
}

void gru_cell_act_backward(const GruBackwardArgs& a, void* workspace, Stream stream) {
  launch(a, stream);
  const Shape gates = gates_of(a.rows, a.hidden, 3);
  if (a.grad_input_bias.data) sum_channels(gates, a.dtype, a.grad_input_gates, a.grad_input_bias, workspace, stream);
  if (a.grad_hidden_bias.data) sum_channels(gates, a.dtype, a.grad_hidden_gates, a.grad_hidden_bias, workspace, stream);
}

}  // namespace fusedact::cuda
