// The gate arithmetic of LSTM and GRU cells, forward and backward, a row at a time. Compiled once per ISA.
//
// Backward computes the gates again from what came in: as much to read as activated gates would be, and nothing to write
// in forward.
#include "../cells/maths.h"
#include "../cells/runs.h"
#include "loops.h"

namespace fusedact::cpu {
namespace {

using namespace of_cells;

template <class T, class S>
FUSEDACT_INLINE Pack<T> get(const S* p, Whole<T>) {
  return load<T>(p);
}
template <class T, class S>
FUSEDACT_INLINE Pack<T> get(const S* p, Part part) {
  return load<T>(p, part.count);
}
// x, or x + bias.
template <class T, class S, class W>
FUSEDACT_INLINE Pack<T> gate(const S* x, const T* bias, int64_t at, W width) {
  Pack<T> v = get<T>(x + at, width);
  return bias ? v + read(bias + at, width) : v;
}
template <class T, class S, class W>
FUSEDACT_INLINE Pack<T> or_zero(const S* x, int64_t at, W width) {
  return x ? get<T>(x + at, width) : Pack<T>(0);
}

// ---- LSTM -----------------------------------------------------------------------------------------------------------

template <class S>
void lstm(const LstmRun& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const int64_t n = run.hidden;
  const S *gates = static_cast<const S*>(run.gates), *c = static_cast<const S*>(run.c);
  const T* bias = static_cast<const T*>(run.bias);
  S *h = static_cast<S*>(run.h), *c_new = static_cast<S*>(run.c_new);
  for (int64_t row = 0; row < run.rows; ++row, gates += 4 * n, c += n, h += n, c_new += n)
    for_packs<T>(n, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      V in = sigmoid(gate(gates, bias, i, width));
      V cell = in * tanh(gate(gates, bias, 2 * n + i, width));
      V forget = sigmoid(gate(gates, bias, n + i, width));
      cell = fma(forget, get<T>(c + i, width), cell);
      write(c_new + i, cell, width, false);
      V out = sigmoid(gate(gates, bias, 3 * n + i, width));
      write(h + i, out * tanh(cell), width, false);
    });
}

template <class S>
void lstm_backward(const LstmBackwardRun& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const int64_t n = run.hidden;
  const S *gates = static_cast<const S*>(run.gates), *c = static_cast<const S*>(run.c);
  const S *grad_h = static_cast<const S*>(run.grad_h), *grad_c_new = static_cast<const S*>(run.grad_c_new);
  const T* bias = static_cast<const T*>(run.bias);
  S *grad_gates = static_cast<S*>(run.grad_gates), *grad_c = static_cast<S*>(run.grad_c);
  T* sums = static_cast<T*>(run.sums);
  for (int64_t row = 0; row < run.rows; ++row) {
    const int64_t at = row * n;
    const S* gate_row = gates + 4 * at;
    S* grad_row = grad_gates + 4 * at;
    for_packs<T>(n, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      auto put = [&](int64_t k, V r) FUSEDACT_LAMBDA {
        if (sums) add_to(sums + k * n + i, r, width);
        write(grad_row + k * n + i, r, width, false);
      };
      Curve<V> in = sigmoid_curve(gate(gate_row, bias, i, width));
      Curve<V> forget = sigmoid_curve(gate(gate_row, bias, n + i, width));
      Curve<V> cell = tanh_curve(gate(gate_row, bias, 2 * n + i, width));
      V before = get<T>(c + at + i, width);
      V after = fma(forget.value, before, in.value * cell.value);
      Curve<V> seen = tanh_curve(after);
      Curve<V> out = sigmoid_curve(gate(gate_row, bias, 3 * n + i, width));
      V g = or_zero<T>(grad_h, at + i, width);
      put(3, g * seen.value * out.slope);
      V r = fma(g * out.value, seen.slope, or_zero<T>(grad_c_new, at + i, width));
      write(grad_c + at + i, r * forget.value, width, false);
      put(0, r * cell.value * in.slope);
      put(1, r * before * forget.slope);
      put(2, r * in.value * cell.slope);
    });
  }
}

// ---- GRU ------------------------------------------------------------------------------------------------------------

template <class S>
void gru(const GruRun& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const int64_t n = run.hidden;
  const S *input = static_cast<const S*>(run.input_gates), *hidden = static_cast<const S*>(run.hidden_gates);
  const T *input_bias = static_cast<const T*>(run.input_bias), *hidden_bias = static_cast<const T*>(run.hidden_bias);
  const S* h = static_cast<const S*>(run.h);
  S* h_new = static_cast<S*>(run.h_new);
  for (int64_t row = 0; row < run.rows; ++row, input += 3 * n, hidden += 3 * n, h += n, h_new += n)
    for_packs<T>(n, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      auto both = [&](int64_t at) FUSEDACT_LAMBDA {
        return gate(input, input_bias, at, width) + gate(hidden, hidden_bias, at, width);
      };
      V reset = sigmoid(both(i));
      V fresh =
          tanh(fma(reset, gate(hidden, hidden_bias, 2 * n + i, width), gate(input, input_bias, 2 * n + i, width)));
      V update = sigmoid(both(n + i));
      write(h_new + i, fma(update, get<T>(h + i, width) - fresh, fresh), width, false);
    });
}

template <class S>
void gru_backward(const GruBackwardRun& run) {
  using T = compute_of<S>;
  using V = Pack<T>;
  const int64_t n = run.hidden;
  const S *grad = static_cast<const S*>(run.grad), *h = static_cast<const S*>(run.h);
  const S *input = static_cast<const S*>(run.input_gates), *hidden = static_cast<const S*>(run.hidden_gates);
  const T *input_bias = static_cast<const T*>(run.input_bias), *hidden_bias = static_cast<const T*>(run.hidden_bias);
  S *grad_input = static_cast<S*>(run.grad_input_gates), *grad_hidden = static_cast<S*>(run.grad_hidden_gates);
  S* grad_h = static_cast<S*>(run.grad_h);
  T* sums = static_cast<T*>(run.sums);
  for (int64_t row = 0; row < run.rows; ++row) {
    const int64_t at = row * n, gates = 3 * at;
    for_packs<T>(n, [&](int64_t i, auto width) FUSEDACT_LAMBDA {
      auto both = [&](int64_t j) FUSEDACT_LAMBDA {
        return gate(input + gates, input_bias, j, width) + gate(hidden + gates, hidden_bias, j, width);
      };
      auto put = [&](S* to, int64_t k, int64_t sum, V r) FUSEDACT_LAMBDA {
        if (sums && sum >= 0) add_to(sums + sum * n + i, r, width);
        write(to + gates + k * n + i, r, width, false);
      };
      Curve<V> reset = sigmoid_curve(both(i)), update = sigmoid_curve(both(n + i));
      V of_hidden = gate(hidden + gates, hidden_bias, 2 * n + i, width);
      Curve<V> fresh = tanh_curve(fma(reset.value, of_hidden, gate(input + gates, input_bias, 2 * n + i, width)));
      V g = get<T>(grad + at + i, width), gz = g * update.value;
      write(grad_h + at + i, gz, width, false);
      V of_update = g * (get<T>(h + at + i, width) - fresh.value) * update.slope;
      put(grad_input, 1, 1, of_update);
      put(grad_hidden, 1, -1, of_update);
      V of_fresh = (g - gz) * fresh.slope;
      put(grad_input, 2, 2, of_fresh);
      put(grad_hidden, 2, 3, of_fresh * reset.value);
      V of_reset = of_fresh * of_hidden * reset.slope;
      put(grad_input, 0, 0, of_reset);
      put(grad_hidden, 0, -1, of_reset);
    });
  }
}

template <class S>
constexpr CellKernels kernels_of{lstm<S>, lstm_backward<S>, gru<S>, gru_backward<S>};

}  // namespace

CellKernels FUSEDACT_CPU_CAPABILITY::cell_kernels(DType dtype) {
  switch (dtype) {
    case DType::float32: return kernels_of<float>;
    case DType::float64: return kernels_of<double>;
    case DType::bfloat16: return kernels_of<BFloat16>;
    default: return kernels_of<Half>;
  }
}

}  // namespace fusedact::cpu
