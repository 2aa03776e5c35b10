// The three passes of bias_act on CUDA: from a whole tensor to one launch, and one more where something is summed.
//
// Knows no CUDA syntax and no torch; the kernels come from tables.h.
#include "drive.h"

namespace fusedact::cuda {
namespace {

// ---- the cuts: the launch and the workspace must agree ----------------------------------------------------------------

Tiles cut_for(const BackwardArgs& a) {
  const bool by_mask = a.saved_kind == Saved::mask;
  const bool met = !by_mask && a.saved_kind == Saved::input && per_channel(a.bias);
  Tiles t = cut(a.shape, {.per_thread = 16 / size_of(a.dtype),
                          .channels = met || per_channel(a.weight) || a.grad_bias.data,
                          .sums = a.grad_bias.data || a.grad_weight.data,
                          .whole_bytes = by_mask});
  t.aligned = t.aligned && aligned(16, {a.grad, by_mask ? nullptr : a.saved, a.grad_x, own(a.weight)});
  return t;
}
Tiles cut_for(const DoubleBackwardArgs& a) {
  constexpr int together = 2;
  Tiles t = cut(a.shape, {.per_thread = together,
                          .channels = (a.saved_kind == Saved::input && per_channel(a.bias)) || a.grad_bias.data,
                          .sums = a.grad_bias.data != nullptr});
  t.aligned = t.aligned && aligned(together * size_of(a.dtype), {a.u, a.grad, a.saved, a.grad_grad, a.grad_x});
  return t;
}

}  // namespace

// ---- the passes -----------------------------------------------------------------------------------------------------

void forward(const Activation& a, const ForwardArgs& args, Stream stream) {
  if (args.shape.numel() == 0) return;
  check(args.shape);
  Tiles t = cut(args.shape, {.per_thread = 16 / size_of(args.dtype),
                             .channels = per_channel(args.bias) || per_channel(args.weight),
                             .whole_bytes = args.mask != nullptr});
  t.aligned = t.aligned && aligned(16, {args.x, args.y, own(args.weight)});
  FUSEDACT_OF_STORAGE(args.dtype, forward_table)()[a.index](args, t, stream);
}

int64_t workspace_bytes(const Activation& a, const BackwardArgs& args) {
  if (args.shape.numel() == 0) return 0;
  const int64_t each = bytes_of(cut_for(args), wide(a, args.dtype));
  return (args.grad_bias.data ? each : 0) + (args.grad_weight.data ? each : 0);
}

void backward(const Activation& a, const BackwardArgs& args, void* workspace, Stream stream) {
  const bool one = args.weight.extent != Extent::channel;
  if (args.shape.numel() == 0) {
    fill_zero(args.grad_bias, args.shape.channels, stream);
    fill_zero(args.grad_weight, one ? 1 : args.shape.channels, stream);
    return;
  }
  check(args.shape);
  const Tiles t = cut_for(args);
  const bool in_double = wide(a, args.dtype);
  Partials partials;
  char* room = static_cast<char*>(workspace);
  if (args.grad_bias.data) partials.bias = room, room += bytes_of(t, in_double);
  if (args.grad_weight.data) partials.weight = room;
  FUSEDACT_OF_STORAGE(args.dtype, backward_table)(args.saved_kind)[a.index](args, t, partials, stream);
  if (partials.bias) fold(partial_shape(args.shape, t, false), partials.bias, in_double, args.grad_bias, stream);
  if (partials.weight) fold(partial_shape(args.shape, t, one), partials.weight, in_double, args.grad_weight, stream);
}

int64_t workspace_bytes(const Activation&, const DoubleBackwardArgs& args) {
  return args.shape.numel() == 0 || !args.grad_bias.data ? 0 : bytes_of(cut_for(args), true);
}

void double_backward(const Activation& a, const DoubleBackwardArgs& args, void* workspace, Stream stream) {
  if (args.shape.numel() == 0) return fill_zero(args.grad_bias, args.shape.channels, stream);
  check(args.shape);
  const Tiles t = cut_for(args);
  double_backward_table(args.saved_kind)[a.index](args, t, {.bias = args.grad_bias.data ? workspace : nullptr}, stream);
  if (args.grad_bias.data) fold(partial_shape(args.shape, t, false), workspace, true, args.grad_bias, stream);
}

}  // namespace fusedact::cuda
