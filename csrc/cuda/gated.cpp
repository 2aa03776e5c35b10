// The passes of gated units on CUDA: from whole tensors to one launch, and two more where biases learn.
//
// Knows no CUDA syntax and no torch; the kernels come from tables.h.
#include "../gated/kernels.h"

#include "drive.h"

namespace fusedact::cuda {
namespace {

struct Starts {
  const void *gate, *value;
};
struct Cut {
  Tiles tiles;
  Sides sides;
};

Cut cut_of(const Shape& shape, DType dtype, const Halves& halves, bool channels, bool sums,
           std::initializer_list<const void*> alike, std::initializer_list<Starts> in_halves) {
  const int together = 16 / size_of(dtype);
  Sides s;
  s.length = halves.length;
  s.pairs = halves.step == 2;
  s.two = halves.step == 1 && halves.pitch == 0;
  // A row of the cut must not go on from one half's row into the next: rows are those of the channels then.
  Tiles t = cut(shape, {.per_thread = together, .channels = channels || !(s.two || s.pairs), .sums = sums});
  bool whole_packs = t.aligned;
  for (const Starts& p : in_halves)  // the second of a pair lies between packs
    whole_packs = whole_packs && (s.pairs ? aligned(16, {std::min(p.gate, p.value)}) : aligned(16, {p.gate, p.value}));
  s.whole = whole_packs && (s.two || s.pairs || halves.length % together == 0);
  t.aligned = t.aligned && aligned(16, alike);
  return {t, s};
}
Cut cut_for(const GatedBackwardArgs& a) {
  const bool sums = a.grad_gate_bias.data || a.grad_value_bias.data;
  return cut_of(a.shape, a.dtype, a.halves, sums || per_channel(a.gate_bias) || per_channel(a.value_bias), sums,
                {a.grad}, {{a.gate, a.value}, {a.grad_gate, a.grad_value}});
}

}  // namespace

void gated_forward(const Activation& a, const GatedForwardArgs& args, Stream stream) {
  if (args.shape.numel() == 0) return;
  check(args.shape);
  const Cut c = cut_of(args.shape, args.dtype, args.halves, per_channel(args.gate_bias) || per_channel(args.value_bias),
                       false, {args.y}, {{args.gate, args.value}});
  FUSEDACT_OF_STORAGE(args.dtype, gated_table)()[a.index](args, c.tiles, c.sides, stream);
}

int64_t workspace_bytes(const Activation& a, const GatedBackwardArgs& args) {
  if (args.shape.numel() == 0) return 0;
  const int64_t each = bytes_of(cut_for(args).tiles, wide(a, args.dtype));
  return (args.grad_gate_bias.data ? each : 0) + (args.grad_value_bias.data ? each : 0);
}

void gated_backward(const Activation& a, const GatedBackwardArgs& args, void* workspace, Stream stream) {
  if (args.shape.numel() == 0) {
    fill_zero(args.grad_gate_bias, args.shape.channels, stream);
    fill_zero(args.grad_value_bias, args.shape.channels, stream);
    return;
  }
  check(args.shape);
  const Cut c = cut_for(args);
  const bool in_double = wide(a, args.dtype);
  Partials partials;
  char* room = static_cast<char*>(workspace);
  if (args.grad_gate_bias.data) partials.bias = room, room += bytes_of(c.tiles, in_double);
  if (args.grad_value_bias.data) partials.weight = room;
  FUSEDACT_OF_STORAGE(args.dtype, gated_backward_table)()[a.index](args, c.tiles, c.sides, partials, stream);
  const Shape sums = partial_shape(args.shape, c.tiles, false);
  if (partials.bias) fold(sums, partials.bias, in_double, args.grad_gate_bias, stream);
  if (partials.weight) fold(sums, partials.weight, in_double, args.grad_value_bias, stream);
}

}  // namespace fusedact::cuda
