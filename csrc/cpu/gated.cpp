// The two passes of gated units: from whole tensors to runs of the kernels. Halves are read where they lie; what is 16-bit,
// interleaved, or in rows too short for a run goes through blocks that stay in the first-level cache.
//
// Knows no SIMD and no torch.
#include "gated.h"

#include <cstring>

#include "blocks.h"
#include "isa.h"
#include "tiles.h"

namespace fusedact::cpu {
namespace {

constexpr int64_t grain = 16384;  // break-even for a second thread, as for one exponential per element
constexpr int64_t block = 512;    // elements of a buffer; a dozen of them stay in the first-level cache

const GatedKernels& gated() {
  static const GatedKernels kernels = FUSEDACT_OF_ISA(gated_kernels)();
  return kernels;
}

template <class C>
struct Buffer {
  alignas(64) C values[block];
  operator C*() { return values; }
};

// Elements of one dtype as runs see them: in place if that is how they are stored, else in the compute type, through a buffer.
template <class C>
class Storage {
 public:
  Storage(DType dtype, DType seen)
      : dtype_(dtype),
        widen_(dtype == seen ? nullptr : cpu::kernels().widen[static_cast<int>(dtype)][sizeof(C) == 8]),
        narrow_(dtype == seen ? nullptr : cpu::kernels().narrow[static_cast<int>(dtype)][sizeof(C) == 8]) {}

  bool converts() const { return widen_ != nullptr; }
  const void* in(const void* from, int64_t at, int64_t n, C* buffer) const {
    if (!converts()) return offset(from, at, dtype_);
    widen_(offset(from, at, dtype_), buffer, n, false);
    return buffer;
  }
  void* out(void* to, int64_t at, C* buffer) const {
    if (!converts()) return offset(to, at, dtype_);
    return buffer;
  }
  // What was written to out() goes where it belongs.
  void finish(const void* buffer, void* to, int64_t at, int64_t n, bool stream) const {
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
  Access(const Halves& halves, DType dtype, DType seen)
      : halves_(halves),
        storage_(dtype, seen),
        split_(gated().split[sizeof(C) == 8]),
        merge_(gated().merge[sizeof(C) == 8]) {
    std::fill_n(nothing_, lane_count, C(-0.0));  // x + (-0) is x for every x
  }

  // How many of `n` elements from `at` on to take at once: long rows are cut where they end, short ones are gathered.
  int64_t take(int64_t at, int64_t n) const {
    if (halves_.step == 2 || halves_.length < block / 4) return std::min(n, block);
    n = std::min(n, halves_.length - at % halves_.length);
    return storage_.converts() ? std::min(n, block) : n;
  }

  struct Both {
    const void *gate, *value;
  };
  Both in(const void* gate, const void* value, int64_t at, int64_t n, C* gates, C* values) const {
    if (halves_.step == 2) {
      const bool second = gate > value;
      alignas(64) C pairs[2 * block];
      const void* from = storage_.in(second ? value : gate, 2 * at, 2 * n, pairs);
      second ? split_(from, values, gates, n) : split_(from, gates, values, n);
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
  void* out(void* half, int64_t at, int64_t n, C* buffer) const {
    if (halves_.step == 1 && whole(at, n)) return storage_.out(half, place(at), buffer);
    return buffer;
  }
  void finish(const C* gates, const C* values, void* gate, void* value, int64_t at, int64_t n, bool stream) const {
    if (halves_.step == 2) {
      const bool second = gate > value;
      void* to = second ? value : gate;
      alignas(64) C buffer[2 * block];
      void* pairs = storage_.out(to, 2 * at, buffer);
      second ? merge_(values, gates, pairs, n, stream && !storage_.converts())
             : merge_(gates, values, pairs, n, stream && !storage_.converts());
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
  Lane nothing() const { return {nothing_, 0}; }

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
  Storage<C> storage_;
  Split split_;
  Merge merge_;
  C nothing_[lane_count];
};

// 16-bit elements are read as they are stored where a run of them is whole.
template <class C>
DType seen_as(const Halves& halves, DType storage, int64_t numel) {
  if (sizeof(C) == 8) return DType::float64;
  const bool whole = halves.step == 1 && (halves.length >= block / 4 || halves.length >= numel);
  return whole ? storage : DType::float32;
}

bool per_channel(const Vector& v) { return v.extent == Extent::channel; }

template <class C>
void run_forward(const Activation& a, const GatedForwardArgs& args) {
  const Rows rows = rows_of(args.shape, per_channel(args.gate_bias) || per_channel(args.value_bias));
  const Operands<C> operands(args.gate_bias, args.value_bias, args.shape, rows);
  const DType seen = seen_as<C>(args.halves, args.dtype, rows.numel);
  const Access<C> access(args.halves, args.dtype, seen);
  const Storage<C>& storage = access.storage();
  const int64_t bytes = rows.numel * size_of(args.dtype);
  const bool stream = beyond_cache(bytes, 3 * bytes);
  const bool ahead = !storage.converts() && args.halves.step == 1 && worth_fetching(bytes);
  const auto kernel = gated().forward[a.index][static_cast<int>(seen)];
  for_elements(rows, operands, args.parallel, grain, [&](const auto& met, auto, int64_t at, int64_t count, int64_t) {
    Buffer<C> gates, values, result;
    for (int64_t done = 0, n; done < count; done += n) {
      n = access.take(at + done, count - done);
      const auto [gate, value] = access.in(args.gate, args.value, at + done, n, gates, values);
      void* y = storage.out(args.y, at + done, result);
      kernel({n, gate, value, advanced(met.bias, done, sizeof(C)),
              operands.has_weight ? advanced(met.weight, done, sizeof(C)) : access.nothing(), &args.scalars, y,
              stream && !storage.converts(), ahead});
      storage.finish(y, args.y, at + done, n, stream);
    }
  });
}

template <class C>
void run_backward(const Activation& a, const GatedBackwardArgs& args) {
  const bool sums = args.grad_gate_bias.data || args.grad_value_bias.data;
  const Rows rows = rows_of(args.shape, sums || per_channel(args.gate_bias) || per_channel(args.value_bias));
  const Operands<C> operands(args.gate_bias, args.value_bias, args.shape, rows);
  const DType seen = seen_as<C>(args.halves, args.dtype, rows.numel);
  const Access<C> access(args.halves, args.dtype, seen);
  const Storage<C>& storage = access.storage();
  const int64_t bytes = rows.numel * size_of(args.dtype);
  const bool stream = beyond_cache(2 * bytes, 5 * bytes);
  const bool ahead = !storage.converts() && args.halves.step == 1 && worth_fetching(bytes);
  const auto kernel = gated().backward[a.index][static_cast<int>(seen)];
  auto run = [&](const auto& met, Sums<C> into, int64_t at, int64_t count, int64_t) {
    Buffer<C> gates, values, incoming, of_gate, of_value;
    for (int64_t done = 0, n; done < count; done += n) {
      n = access.take(at + done, count - done);
      const auto [gate, value] = access.in(args.gate, args.value, at + done, n, gates, values);
      const void* grad = storage.in(args.grad, at + done, n, incoming);
      void* grad_gate = access.out(args.grad_gate, at + done, n, of_gate);
      void* grad_value = access.out(args.grad_value, at + done, n, of_value);
      const bool in_place = grad_value != of_value;
      kernel({n, grad, gate, value, advanced(met.bias, done, sizeof(C)),
              operands.has_weight ? advanced(met.weight, done, sizeof(C)) : access.nothing(), &args.scalars, grad_gate,
              grad_value, into.bias ? into.bias + done : nullptr, into.weight ? into.weight + done : nullptr,
              stream && in_place, ahead});
      if (!in_place) access.finish(of_gate, of_value, args.grad_gate, args.grad_value, at + done, n, stream);
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
