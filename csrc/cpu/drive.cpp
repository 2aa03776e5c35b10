// The three passes of bias_act: from a whole tensor to runs of the kernels. Rows are in rows.h, threads and sums in tiles.h,
// what is stored in another type than it is computed in, in blocks.h.
//
// Knows no SIMD and no torch.
#include <cstring>

#include "drive.h"

namespace fusedact::cpu {
namespace {

template <class C>
void run_forward(const Activation& a, const ForwardArgs& args) {
  const Rows rows = rows_of(args.shape, per_channel(args.bias) || per_channel(args.weight));
  const ForwardOf<C> forward(a, args, rows);
  const bool stream = args.x != args.y && beyond_cache(rows.numel * size_of(args.dtype));
  for_elements(rows, forward.operands, args.parallel, grain_of(a),
               [&](const auto& met, auto, int64_t at, int64_t count, int64_t) { forward.run(met, at, count, stream); });
}

template <class C>
void backward_of(const Activation& a, const BackwardArgs& args) {
  const bool channels = per_channel(args.bias) || per_channel(args.weight) || args.grad_bias.data;
  run_backward<C, false>(a, args, rows_of(args.shape, channels), [](int64_t, int64_t, int64_t) {});
}

Function<DoubleBackwardRun> double_backward_kernel(const Activation& a, const DoubleBackwardArgs& args, DType seen) {
  return kernels().double_backward[static_cast<int>(args.saved_kind)][a.index][static_cast<int>(seen)];
}

template <class C>
void run_double_backward(const Activation& a, const DoubleBackwardArgs& args) {
  const Rows rows = rows_of(args.shape, per_channel(args.bias) || args.grad_bias.data);
  const Operands<C> operands(args.saved_kind == Saved::input ? args.bias : Vector{}, Vector{}, args.shape, rows);
  const int64_t bytes = rows.numel * size_of(args.dtype);
  const bool stream = beyond_cache(2 * bytes, 5 * bytes);
  const Blocks<C, 3, 2> blocks(args.dtype, dtype_of<C>);
  const bool ahead = !blocks.converts() && worth_fetching(bytes);
  const auto kernel = double_backward_kernel(a, args, dtype_of<C>);
  auto run = [&](const auto& met, Sums<C> sums, int64_t at, int64_t count, int64_t) {
    blocks.over({args.u, args.grad, args.saved}, {args.grad_grad, args.grad_x}, at, count, stream,
                [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
                  kernel({n, in[0], in[1], in[2], advanced(met.bias, done, sizeof(C)), &args.scalars, out[0], out[1],
                          sums.bias ? sums.bias + done : nullptr, past, ahead});
                });
  };
  if (!args.grad_bias.data) return for_elements(rows, operands, args.parallel, grain_of(a), run);
  const Wanted wanted[2] = {{args.grad_bias, false}, {}};
  for_tiles(args.shape, rows, operands, args.parallel, grain_of(a), wanted, 1, run);
}

int64_t channels_of(const Vector& weight, const Shape& s) { return weight.extent == Extent::channel ? s.channels : 1; }

}  // namespace

void forward(const Activation& a, const ForwardArgs& args) {
  const int64_t n = args.shape.numel();
  if (n == 0) return;
  if (args.mask) std::memset(args.mask, 0, mask_bytes(n));
  computed_in_double(a, args.dtype) ? run_forward<double>(a, args) : run_forward<float>(a, args);
}

void backward(const Activation& a, const BackwardArgs& args) {
  if (args.shape.numel() == 0) {
    zero(args.grad_bias, args.shape.channels);
    zero(args.grad_weight, channels_of(args.weight, args.shape));
    return;
  }
  computed_in_double(a, args.dtype) ? backward_of<double>(a, args) : backward_of<float>(a, args);
}

void double_backward(const Activation& a, const DoubleBackwardArgs& args) {
  if (args.shape.numel() == 0) return zero(args.grad_bias, args.shape.channels);
  const bool in_double = args.dtype == DType::float64 || !double_backward_kernel(a, args, DType::float32);
  in_double ? run_double_backward<double>(a, args) : run_double_backward<float>(a, args);
}

}  // namespace fusedact::cpu
