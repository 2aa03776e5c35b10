// Maxout on the CPU: threads and blocks around the runs of kernels_maxout.cpp; and its backward, which only moves elements.
// No SIMD, no torch.
#include "../maxout/kernels.h"

#include <cstring>

#include "../maxout/runs.h"
#include "chunks.h"
#include "isa.h"

namespace fusedact::cpu {
namespace {

constexpr int64_t grain = 32768;  // break-even for a second thread, in elements of x

// A unit is what meets each bias once: a row [channels], or, where inner > 1, one result's pieces [pieces, inner].
struct Units {
  int64_t count, results, elements;
  explicit Units(const Shape& s, int64_t pieces)
      : count(s.inner == 1 ? s.outer : s.outer * (s.channels / pieces)),
        results(s.inner == 1 ? s.channels / pieces : s.inner),
        elements(results * pieces) {}
};

template <class C>
void run_forward(const MaxoutArgs& args) {
  const Shape& s = args.shape;
  const auto run = FUSEDACT_OF_ISA(maxout_kernel)(args.dtype);
  const Widened<C> bias(args.bias, s.channels);
  const Units units(s, args.pieces);
  const int64_t outputs = s.channels / args.pieces;
  parallel(args.parallel, units.count, std::max<int64_t>(1, grain / units.elements), [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t channel = s.inner == 1 ? 0 : unit % outputs * args.pieces;
      run({units.results, args.pieces, s.inner, offset(args.x, unit * units.elements, args.dtype),
           bias.data() ? bias.data() + channel : nullptr, offset(args.y, unit * units.results, args.dtype),
           args.indices + unit * units.results});
    }
  });
}

// E: an unsigned integer of the elements' size.
template <class E>
void scatter(const MaxoutBackwardArgs& args) {
  const Shape& s = args.shape;
  const Units units(s, args.pieces);
  const int64_t outputs = s.channels / args.pieces, pieces = args.pieces;
  const int64_t sums = args.grad_bias.data ? s.channels : 0;
  const Convert widen = kernels().widen[static_cast<int>(args.dtype)][1];
  std::vector<double> total;
  // Blocks of whole outer indices, so that clearing and folding the sums costs little.
  const int64_t together = s.inner == 1 ? 64 : outputs;
  for_chunks<double>(units.count, sums, together, args.parallel, grain / units.elements, total,
                     [&](int64_t first, int64_t last, double* into) {
                       std::vector<double> wide(into && widen ? units.results : 0);
                       for (int64_t unit = first; unit < last; ++unit) {
                         const E* grad = static_cast<const E*>(args.grad) + unit * units.results;
                         const uint8_t* index = args.indices + unit * units.results;
                         E* to = static_cast<E*>(args.grad_x) + unit * units.elements;
                         if (s.inner == 1) {
                           std::memset(to, 0, units.elements * sizeof(E));
                           for (int64_t o = 0; o < units.results; ++o) to[o * pieces + index[o]] = grad[o];
                         } else {
                           for (int64_t j = 0; j < pieces; ++j, to += s.inner)
                             for (int64_t i = 0; i < s.inner; ++i) to[i] = index[i] == j ? grad[i] : E(0);
                         }
                         if (!into) continue;
                         const double* values = reinterpret_cast<const double*>(grad);
                         if (widen) {
                           widen(grad, wide.data(), units.results, false);
                           values = wide.data();
                         }
                         double* bias = into + (s.inner == 1 ? 0 : unit % outputs * pieces);
                         const int64_t next = s.inner == 1 ? pieces : 0;
                         for (int64_t i = 0; i < units.results; ++i) bias[i * next + index[i]] += values[i];
                       }
                     });
  put(args.grad_bias, total.data(), sums);
}

}  // namespace

void maxout(const MaxoutArgs& args) {
  if (args.shape.numel() == 0) return;
  args.dtype == DType::float64 ? run_forward<double>(args) : run_forward<float>(args);
}

void maxout_backward(const MaxoutBackwardArgs& args) {
  if (args.shape.numel() == 0) return zero(args.grad_bias, args.shape.channels);
  switch (size_of(args.dtype)) {
    case 2: return scatter<uint16_t>(args);
    case 4: return scatter<uint32_t>(args);
    default: return scatter<uint64_t>(args);
  }
}

}  // namespace fusedact::cpu
