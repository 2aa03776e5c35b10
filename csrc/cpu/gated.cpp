// The passes of gated units: from whole tensors to runs. In blocks that stay in the first-level cache, the runs of bias_act
// compute the activation and its slope, and the runs of kernels_gated.cpp the rest, so that each tensor is read once from
// memory and no activation is compiled anew.
//
// Knows no SIMD and no torch.
#include "gated.h"

#include <cstring>
#include <limits>

#include "../gated/kernels.h"
#include "blocks.h"
#include "isa.h"
#include "tiles.h"

namespace fusedact::cpu {
namespace {

constexpr int64_t grain = 16384;  // break-even for a second thread, as for one exponential per element
constexpr int64_t block = 512;    // elements of a buffer; a dozen of them stay in the first-level cache

template <class C>
struct Buffer {
  alignas(64) C values[block];
  operator C*() { return values; }
};

// Elements of one dtype, seen in the compute type: in place if that is the same, else through a buffer.
template <class C>
class Storage {
 public:
  explicit Storage(DType dtype)
      : dtype_(dtype),
        widen_(cpu::kernels().widen[static_cast<int>(dtype)][sizeof(C) == 8]),
        narrow_(cpu::kernels().narrow[static_cast<int>(dtype)][sizeof(C) == 8]) {}

  bool converts() const { return widen_ != nullptr; }
  const C* in(const void* from, int64_t at, int64_t n, C* buffer) const {
    if (!converts()) return static_cast<const C*>(from) + at;
    widen_(offset(from, at, dtype_), buffer, n, false);
    return buffer;
  }
  C* out(void* to, int64_t at, C* buffer) const { return converts() ? buffer : static_cast<C*>(to) + at; }
  // What was written to out() goes where it belongs.
  void finish(const C* buffer, void* to, int64_t at, int64_t n, bool stream) const {
    if (converts()) narrow_(buffer, offset(to, at, dtype_), n, stream);
  }
  void copy_in(const void* from, int64_t at, int64_t n, C* to) const {
    if (in(from, at, n, to) != to) std::memcpy(to, static_cast<const C*>(from) + at, n * sizeof(C));
  }
  void copy_out(const C* from, void* to, int64_t at, int64_t n, bool stream) const {
    if (converts()) return finish(from, to, at, n, stream);
    std::memcpy(static_cast<C*>(to) + at, from, n * sizeof(C));
  }

 private:
  DType dtype_;
  Convert widen_, narrow_;
};

// Gate and value of a run of output elements, and their gradients, wherever they lie.
template <class C>
class Access {
 public:
  Access(const Halves& halves, DType dtype, const GatedKernels& kernels)
      : halves_(halves), dtype_(dtype), storage_(dtype), kernels_(kernels) {}

  // How many of `n` elements from `at` on to take at once: long rows are cut where they end, short ones are gathered.
  int64_t take(int64_t at, int64_t n) const {
    n = std::min(n, block);
    return halves_.step == 1 && halves_.length >= block / 4 ? std::min(n, halves_.length - at % halves_.length) : n;
  }

  struct Both {
    const C *gate, *value;
  };
  Both in(const void* gate, const void* value, int64_t at, int64_t n, C* gates, C* values) const {
    if (halves_.step == 2) {
      const bool second = gate > value;
      alignas(64) C pairs[2 * block];
      const C* from = storage_.in(second ? value : gate, 2 * at, 2 * n, pairs);
      second ? kernels_.split(from, values, gates, n) : kernels_.split(from, gates, values, n);
      return {gates, values};
    }
    if (whole(at, n)) {
      const int64_t from = place(at);
      return {storage_.in(gate, from, n, gates), storage_.in(value, from, n, values)};
    }
    pieces(at, n, [&](int64_t from, int64_t done, int64_t count) {
      storage_.copy_in(gate, from, count, gates + done);
      storage_.copy_in(value, from, count, values + done);
    });
    return {gates, values};
  }

  // Where `n` elements of one half from `at` on may be written: in place, or into the buffer, which goes to finish().
  C* out(void* half, int64_t at, int64_t n, C* buffer) const {
    return halves_.step == 1 && whole(at, n) ? storage_.out(half, place(at), buffer) : buffer;
  }
  void finish(const C* gates, const C* values, void* gate, void* value, int64_t at, int64_t n, bool stream) const {
    if (halves_.step == 2) {
      const bool second = gate > value;
      void* to = second ? value : gate;
      alignas(64) C buffer[2 * block];
      C* pairs = storage_.out(to, 2 * at, buffer);
      second ? kernels_.merge(values, gates, pairs, n, stream && !storage_.converts())
             : kernels_.merge(gates, values, pairs, n, stream && !storage_.converts());
      return storage_.finish(pairs, to, 2 * at, 2 * n, stream);
    }
    if (whole(at, n)) {
      storage_.finish(gates, gate, place(at), n, stream);
      return storage_.finish(values, value, place(at), n, stream);
    }
    pieces(at, n, [&](int64_t to, int64_t done, int64_t count) {
      storage_.copy_out(gates + done, gate, to, count, false);
      storage_.copy_out(values + done, value, to, count, false);
    });
  }

  const Storage<C>& storage() const { return storage_; }

 private:
  int64_t place(int64_t at) const { return at / halves_.length * halves_.pitch + at % halves_.length; }
  bool whole(int64_t at, int64_t n) const { return at % halves_.length + n <= halves_.length; }
  template <class F>
  void pieces(int64_t at, int64_t n, F f) const {
    for (int64_t done = 0, count; done < n; done += count) {
      count = std::min(n - done, halves_.length - (at + done) % halves_.length);
      f(place(at + done), done, count);
    }
  }

  Halves halves_;
  DType dtype_;
  Storage<C> storage_;
  GatedKernels kernels_;
};

// What both passes know of a call, in the compute type.
template <class C>
class Unit {
 public:
  Unit(const Activation& a, const GatedScalars& s)
      : kernels(FUSEDACT_OF_ISA(gated_kernels)(sizeof(C) == 8)),
        limit(s.limited ? s.limit : std::numeric_limits<double>::infinity()),
        prepared_(s.limited || s.alpha != 1.0),
        alpha_(s.alpha),
        scalars_{.params = s.params},
        forward_(cpu::kernels().forward[a.index][sizeof(C) == 8]),
        backward_(cpu::kernels().backward[static_cast<int>(Saved::input)][a.index][sizeof(C) == 8]) {
    std::fill_n(nothing_, lane_count, C(-0.0));  // x + (-0) is x for every x
  }

  // alpha gate', which the activation is of: x itself with its bias still to be added, or in `buffer`, complete.
  struct Argument {
    const C* t;
    Lane bias;
  };
  Argument argument(const C* gate, Lane bias, int64_t n, C* buffer) const {
    if (!prepared_) return {gate, bias};
    kernels.gate({n, gate, bias, alpha_, limit, buffer});
    return {buffer, nothing()};
  }
  void activate(const Argument& v, int64_t n, C* a) const {
    forward_({n, v.t, v.bias, {}, &scalars_, a, nullptr, 0, false});
  }
  void slope(const Argument& v, const C* grad, int64_t n, C* grad_gate, C* sum, bool stream) const {
    backward_({n, 1, 0, grad, v.t, nullptr, 0, v.bias, {}, &scalars_, grad_gate, sum, nullptr, stream});
  }
  Lane nothing() const { return {nothing_, 0}; }

  const GatedKernels kernels;
  const double limit;

 private:
  bool prepared_;
  double alpha_;
  Scalars scalars_;
  void (*forward_)(const ForwardRun&);
  void (*backward_)(const BackwardRun&);
  C nothing_[lane_count];
};

bool per_channel(const Vector& v) { return v.extent == Extent::channel; }

template <class C>
void run_forward(const Activation& a, const GatedForwardArgs& args) {
  const GatedScalars& s = args.scalars;
  const Rows rows = rows_of(args.shape, per_channel(args.gate_bias) || per_channel(args.value_bias));
  const Operands<C> operands(args.gate_bias, args.value_bias, args.shape, rows);
  const Unit<C> unit(a, s);
  const Access<C> access(args.halves, args.dtype, unit.kernels);
  const Storage<C>& storage = access.storage();
  const bool stream = beyond_cache(rows.numel * size_of(args.dtype));
  for_elements(rows, operands, args.parallel, grain, [&](const auto& met, auto, int64_t at, int64_t count, int64_t) {
    Buffer<C> gates, values, t, activated, result;
    for (int64_t done = 0, n; done < count; done += n) {
      n = access.take(at + done, count - done);
      const auto [gate, value] = access.in(args.gate, args.value, at + done, n, gates, values);
      const Lane value_bias = operands.has_weight ? advanced(met.weight, done, sizeof(C)) : unit.nothing();
      unit.activate(unit.argument(gate, advanced(met.bias, done, sizeof(C)), n, t), n, activated);
      C* y = storage.out(args.y, at + done, result);
      unit.kernels.forward({n, activated, value, value_bias, 1 / s.alpha, s.offset, unit.limit, s.limited, y,
                            stream && !storage.converts()});
      storage.finish(y, args.y, at + done, n, stream);
    }
  });
}

template <class C>
void run_backward(const Activation& a, const GatedBackwardArgs& args) {
  const GatedScalars& s = args.scalars;
  const bool sums = args.grad_gate_bias.data || args.grad_value_bias.data;
  const Rows rows = rows_of(args.shape, sums || per_channel(args.gate_bias) || per_channel(args.value_bias));
  const Operands<C> operands(args.gate_bias, args.value_bias, args.shape, rows);
  const Unit<C> unit(a, s);
  const Access<C> access(args.halves, args.dtype, unit.kernels);
  const Storage<C>& storage = access.storage();
  const bool stream = beyond_cache(2 * rows.numel * size_of(args.dtype)), at_once = stream && !storage.converts();
  auto run = [&](const auto& met, Sums<C> into, int64_t at, int64_t count, int64_t) {
    Buffer<C> gates, values, incoming, t, activated, of_a, of_gate, of_value;
    for (int64_t done = 0, n; done < count; done += n) {
      n = access.take(at + done, count - done);
      const auto [gate, value] = access.in(args.gate, args.value, at + done, n, gates, values);
      const C* grad = storage.in(args.grad, at + done, n, incoming);
      const Lane gate_bias = advanced(met.bias, done, sizeof(C));
      const Lane value_bias = operands.has_weight ? advanced(met.weight, done, sizeof(C)) : unit.nothing();
      const auto argument = unit.argument(gate, gate_bias, n, t);
      unit.activate(argument, n, activated);
      C* grad_value = access.out(args.grad_value, at + done, n, of_value);
      C* grad_gate = access.out(args.grad_gate, at + done, n, of_gate);
      const bool past = at_once && grad_value != of_value;
      unit.kernels.backward({n, grad, activated, gate, value, gate_bias, value_bias, 1 / s.alpha, s.offset, unit.limit,
                             s.limited, t, of_a, grad_value, into.weight ? into.weight + done : nullptr, past});
      unit.slope(argument, of_a, n, grad_gate, into.bias ? into.bias + done : nullptr, past);
      if (grad_value == of_value)
        access.finish(grad_gate, grad_value, args.grad_gate, args.grad_value, at + done, n, stream);
    }
  };
  if (!sums) return for_elements(rows, operands, args.parallel, grain, run);
  const Wanted wanted[2] = {{args.grad_gate_bias, false}, {args.grad_value_bias, false}};
  for_tiles(args.shape, rows, operands, args.parallel, grain, wanted, 1, run);
}

bool computed_in_double(const Activation& a, DType t) { return t == DType::float64 || a.wide; }

}  // namespace

void gated_forward(const Activation& a, const GatedForwardArgs& args) {
  if (args.shape.numel() == 0) return;
  computed_in_double(a, args.dtype) ? run_forward<double>(a, args) : run_forward<float>(a, args);
}

void gated_backward(const Activation& a, const GatedBackwardArgs& args) {
  if (args.shape.numel() == 0) {
    zero(args.grad_gate_bias, args.shape.channels);
    return zero(args.grad_value_bias, args.shape.channels);
  }
  computed_in_double(a, args.dtype) ? run_backward<double>(a, args) : run_backward<float>(a, args);
}

}  // namespace fusedact::cpu
