// What bias_act's passes share with those that count beside them: one run of elements forward, and the whole of backward.
//
// Knows no SIMD and no torch. Not for files that are compiled per ISA.
#pragma once

#include "blocks.h"
#include "tiles.h"

namespace fusedact::cpu {

// Break-even for a second thread, measured: cheap activations need longer runs.
inline int64_t grain_of(const Activation& a) { return a.cheap ? 65536 : 16384; }

// What a run's elements are stored in: their own dtype, or float64 if they are computed in that, block by block.
template <class C>
DType seen_as(DType storage) {
  return sizeof(C) == 8 ? DType::float64 : storage;
}

inline bool per_channel(const Vector& v) { return v.extent == Extent::channel; }

inline bool computed_in_double(const Activation& a, DType t) { return t == DType::float64 || a.wide; }

// Calls the kernel for runs of elements that meet the same bias and weight.
template <class C>
class ForwardOf {
 public:
  const Operands<C> operands;

  ForwardOf(const Activation& a, const ForwardArgs& args, const Rows& rows)
      : operands(args.bias, args.weight, args.shape, rows),
        args_(args),
        blocks_(args.dtype, seen_as<C>(args.dtype)),
        kernel_(kernels().forward[a.index][static_cast<int>(seen_as<C>(args.dtype))]),
        ahead_(!a.cheap && !blocks_.converts() && worth_fetching(args.shape.numel() * size_of(args.dtype))) {}

  void run(const typename Operands<C>::Met& met, int64_t at, int64_t count, bool stream) const {
    blocks_.over({args_.x}, {args_.y}, at, count, stream, [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
      kernel_({n, in[0], advanced(met.bias, done, sizeof(C)), advanced(met.weight, done, sizeof(C)), &args_.scalars,
               out[0], args_.mask, at + done, past, ahead_});
    });
  }

 private:
  const ForwardArgs& args_;
  Blocks<C, 1, 1> blocks_;
  void (*kernel_)(const ForwardRun&);
  bool ahead_;
};

// Elements are cut into tiles if sums are wanted, or if whoever looks at the results wants them so. `look(at, count, rows)`
// is called for every run of results, while they are in cache.
template <class C, bool looks, class Look>
void run_backward(const Activation& a, const BackwardArgs& args, const Rows& rows, Look look) {
  const bool from_mask = args.saved_kind == Saved::mask;
  const int64_t bytes = rows.numel * size_of(args.dtype);
  const Operands<C> operands(args.saved_kind == Saved::input ? args.bias : Vector{}, args.weight, args.shape, rows);
  const bool stream =
      !looks && args.grad != args.grad_x && args.saved != args.grad_x && beyond_cache(bytes, from_mask ? 0 : 3 * bytes);
  const DType seen = seen_as<C>(args.dtype);
  const Blocks<C, 2, 1> blocks(args.dtype, seen);
  const bool ahead = !blocks.converts() && worth_fetching(bytes);
  const auto kernel = kernels().backward[static_cast<int>(args.saved_kind)][a.index][static_cast<int>(seen)];
  const auto* mask = from_mask ? static_cast<const uint8_t*>(args.saved) : nullptr;
  auto run = [&](const auto& met, Sums<C> sums, int64_t at, int64_t count, int64_t together) {
    blocks.over(
        {args.grad, from_mask ? nullptr : args.saved}, {args.grad_x}, at, count, stream,
        [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
          kernel({n, together, rows.length, in[0], in[1], mask, at + done, advanced(met.bias, done, sizeof(C)),
                  advanced(met.weight, done, sizeof(C)), &args.scalars, out[0], sums.bias ? sums.bias + done : nullptr,
                  sums.weight ? sums.weight + done : nullptr, past, ahead});
        });
    look(at, count, together);
  };
  if (!looks && !args.grad_bias.data && !args.grad_weight.data)
    return for_elements(rows, operands, args.parallel, grain_of(a), run);
  const Wanted wanted[2] = {{args.grad_bias, false}, {args.grad_weight, args.weight.extent != Extent::channel}};
  // Two rows share each load and store of a sum where the activation leaves registers for it, elements are neither converted nor
  // met one by one, and the caches hold them: beyond, twice as many streams cost more than the sum (512 x 3072 past the caches
  // 0.39 ns, one row 0.33). Four rows a power of two apart would fight for the first-level cache (relu 1.06 ns, two 0.57).
  const bool pairs = a.cheap && !blocks.converts() && args.weight.extent != Extent::full && bytes < int64_t{4} << 20;
  for_tiles(args.shape, rows, operands, args.parallel, grain_of(a), wanted, pairs ? 2 : 1, run);
}

}  // namespace fusedact::cpu
