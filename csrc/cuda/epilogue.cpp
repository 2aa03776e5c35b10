// The passes of the epilogue on CUDA: from whole tensors to one launch, and one more for each sum.
//
// Knows no CUDA syntax and no torch; the kernels come from tables.h.
#include "../epilogue/kernels.h"

#include "../registry.h"
#include "drive.h"

namespace fusedact::cuda {
namespace {

Tiles cut_for(const EpilogueBackwardArgs& a) {
  const bool second = a.grad_scale.data || a.grad_weight.data;
  Tiles t = cut(a.shape, {.per_thread = 16 / size_of(a.dtype),
                          .channels = per_channel(a.bias) || per_channel(a.scale) || per_channel(a.weight) ||
                                      a.grad_bias.data || a.grad_scale.data,
                          .sums = a.grad_bias.data || second});
  t.aligned = t.aligned && aligned(16, {a.grad, a.x, a.grad_x, own(a.weight), a.dropout.mask});
  return t;
}

}  // namespace

void epilogue(const Activation& a, const EpilogueArgs& args, Stream stream) {
  if (args.shape.numel() == 0) return;
  check(args.shape);
  Tiles t =
      cut(args.shape, {.per_thread = 16 / size_of(args.dtype),
                       .channels = per_channel(args.bias) || per_channel(args.scale) || per_channel(args.weight)});
  t.aligned = t.aligned && aligned(16, {args.x, args.residual, args.y, own(args.weight), args.dropout.mask});
  FUSEDACT_OF_STORAGE(args.dtype, epilogue_table)()[a.index](args, t, stream);
}

int64_t workspace_bytes(const Activation& a, const EpilogueBackwardArgs& args) {
  if (args.shape.numel() == 0) return 0;
  const int64_t each = bytes_of(cut_for(args), wide(a, args.dtype));
  return (args.grad_bias.data ? each : 0) + (args.grad_scale.data || args.grad_weight.data ? each : 0);
}

void epilogue_backward(const Activation& a, const EpilogueBackwardArgs& args, void* workspace, Stream stream) {
  if (args.center.data || args.slope.data || args.offset.data || args.raw)
    throw std::invalid_argument("fusedact: the statistics of a batch are torch's on CUDA");
  const bool one = !args.grad_scale.data && args.weight.extent != Extent::channel;
  if (args.shape.numel() == 0) {
    fill_zero(args.grad_bias, args.shape.channels, stream);
    fill_zero(args.grad_scale, args.shape.channels, stream);
    fill_zero(args.grad_weight, one ? 1 : args.shape.channels, stream);
    return;
  }
  check(args.shape);
  const Tiles t = cut_for(args);
  const bool in_double = wide(a, args.dtype);
  const Sum& second = args.grad_scale.data ? args.grad_scale : args.grad_weight;
  Partials partials;
  char* room = static_cast<char*>(workspace);
  if (args.grad_bias.data) partials.bias = room, room += bytes_of(t, in_double);
  if (second.data) partials.weight = room;
  FUSEDACT_OF_STORAGE(args.dtype, epilogue_backward_table)()[a.index](args, t, partials, stream);
  if (partials.bias) fold(partial_shape(args.shape, t, false), partials.bias, in_double, args.grad_bias, stream);
  if (partials.weight) fold(partial_shape(args.shape, t, one), partials.weight, in_double, second, stream);
}

// The backward pass of the identity, of which only the sum is asked for.
namespace {
EpilogueBackwardArgs summing(const Shape& shape, DType dtype, const void* x, const Sum& sum) {
  static const EpilogueBackwardArgs nothing;  // static: its padding is zero too, see Tiles
  EpilogueBackwardArgs args = nothing;
  args.shape = shape;
  args.dtype = dtype;
  args.grad = x;
  args.grad_bias = sum;
  return args;
}
}  // namespace

int64_t sum_bytes(const Shape& shape, DType dtype, const void* x) {
  const char any = 0;
  return workspace_bytes(*find_activation("identity"), summing(shape, dtype, x, {const_cast<char*>(&any), dtype}));
}

void sum_channels(const Shape& shape, DType dtype, const void* x, const Sum& sum, void* workspace, Stream stream) {
  epilogue_backward(*find_activation("identity"), summing(shape, dtype, x, sum), workspace, stream);
}

}  // namespace fusedact::cuda
