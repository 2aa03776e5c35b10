// The three passes of bias_act: from a whole tensor to runs of the kernels. Rows are in rows.h, threads and sums in tiles.h,
// what is stored in another type than it is computed in, in blocks.h.
//
// Knows no SIMD and no torch.
#include <cstring>

#include "blocks.h"
#include "tiles.h"

namespace fusedact::cpu {
namespace {

// Break-even for a second thread, measured: cheap activations need longer runs.
int64_t grain_of(const Activation& a) { return a.masked ? 65536 : 16384; }

template <class C>
Form form_of(DType storage) {
  if (sizeof(C) == 8) return Form::in_double;
  return storage == DType::float32 ? Form::in_float : Form::brief;
}

bool per_channel(const Vector& v) { return v.extent == Extent::channel; }

template <class C>
void run_forward(const Activation& a, const ForwardArgs& args) {
  const Rows rows = rows_of(args.shape, per_channel(args.bias) || per_channel(args.weight));
  const Operands<C> operands(args.bias, args.weight, args.shape, rows);
  const bool stream = args.x != args.y && beyond_cache(rows.numel * size_of(args.dtype));
  const Form form = form_of<C>(args.dtype);
  const Blocks<C, 1, 1> blocks(args.dtype, form == Form::brief);
  const auto kernel = kernels().forward[a.index][static_cast<int>(form)];
  for_elements(
      rows, operands, args.parallel, grain_of(a), [&](const auto& met, auto, int64_t at, int64_t count, int64_t) {
        blocks.over({args.x}, {args.y}, at, count, stream,
                    [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
                      kernel({n, in[0], advanced(met.bias, done, sizeof(C)), advanced(met.weight, done, sizeof(C)),
                              &args.scalars, out[0], args.mask, at + done, past, args.dtype});
                    });
      });
}

template <class C>
void run_backward(const Activation& a, const BackwardArgs& args) {
  const bool from_mask = args.saved_kind == Saved::mask;
  const bool channels = per_channel(args.bias) || per_channel(args.weight) || args.grad_bias.data;
  const Rows rows = rows_of(args.shape, channels);
  const Operands<C> operands(args.saved_kind == Saved::input ? args.bias : Vector{}, args.weight, args.shape, rows);
  const bool stream =
      args.grad != args.grad_x && args.saved != args.grad_x && beyond_cache(rows.numel * size_of(args.dtype));
  const Form form = form_of<C>(args.dtype);
  const Blocks<C, 2, 1> blocks(args.dtype, form == Form::brief);
  const auto kernel = kernels().backward[static_cast<int>(args.saved_kind)][a.index][static_cast<int>(form)];
  const auto* mask = from_mask ? static_cast<const uint8_t*>(args.saved) : nullptr;
  auto run = [&](const auto& met, Sums<C> sums, int64_t at, int64_t count, int64_t together) {
    blocks.over(
        {args.grad, from_mask ? nullptr : args.saved}, {args.grad_x}, at, count, stream,
        [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
          kernel({n, together, rows.length, in[0], in[1], mask, at + done, advanced(met.bias, done, sizeof(C)),
                  advanced(met.weight, done, sizeof(C)), &args.scalars, out[0], sums.bias ? sums.bias + done : nullptr,
                  sums.weight ? sums.weight + done : nullptr, past, args.dtype});
        });
  };
  if (!args.grad_bias.data && !args.grad_weight.data)
    return for_elements(rows, operands, args.parallel, grain_of(a), run);
  const Wanted wanted[2] = {{args.grad_bias, false}, {args.grad_weight, args.weight.extent != Extent::channel}};
  // Where elements are neither converted nor met one by one, two rows share each load and store of a sum. (Four rows a
  // power of two apart would fight for the first-level cache: 1.06 ns per element instead of 0.57, relu.)
  const bool alone = blocks.converts() || args.weight.extent == Extent::full;
  for_tiles(args.shape, rows, operands, args.parallel, grain_of(a), wanted, alone ? 1 : 2, run);
}

void run_double_backward(const Activation& a, const DoubleBackwardArgs& args) {
  using C = double;
  const Rows rows = rows_of(args.shape, per_channel(args.bias) || args.grad_bias.data);
  const Operands<C> operands(args.saved_kind == Saved::input ? args.bias : Vector{}, Vector{}, args.shape, rows);
  const bool stream = beyond_cache(rows.numel * size_of(args.dtype));
  const Blocks<C, 3, 2> blocks(args.dtype);
  const auto kernel = kernels().double_backward[static_cast<int>(args.saved_kind)][a.index][1];
  auto run = [&](const auto& met, Sums<C> sums, int64_t at, int64_t count, int64_t) {
    blocks.over({args.u, args.grad, args.saved}, {args.grad_grad, args.grad_x}, at, count, stream,
                [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
                  kernel({n, in[0], in[1], in[2], advanced(met.bias, done, sizeof(C)), &args.scalars, out[0], out[1],
                          sums.bias ? sums.bias + done : nullptr, past});
                });
  };
  if (!args.grad_bias.data) return for_elements(rows, operands, args.parallel, grain_of(a), run);
  const Wanted wanted[2] = {{args.grad_bias, false}, {}};
  for_tiles(args.shape, rows, operands, args.parallel, grain_of(a), wanted, 1, run);
}

int64_t channels_of(const Vector& weight, const Shape& s) { return weight.extent == Extent::channel ? s.channels : 1; }

bool computed_in_double(const Activation& a, DType t) { return t == DType::float64 || a.wide; }

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
  computed_in_double(a, args.dtype) ? run_backward<double>(a, args) : run_backward<float>(a, args);
}

void double_backward(const Activation& a, const DoubleBackwardArgs& args) {
  if (args.shape.numel() == 0) return zero(args.grad_bias, args.shape.channels);
  run_double_backward(a, args);
}

}  // namespace fusedact::cpu
