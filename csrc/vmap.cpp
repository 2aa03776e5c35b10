// Batching rules for torch.func.vmap: what an operator does with a tensor that hides a batch dim.
//
// Two ways. Where only the elements of x are batched, the batch dim becomes one more dim of x, in front, and costs
// nothing. Where a bias, a weight or a sum over all but the channels belongs to one sample, the batch dim is folded
// into the channels: B samples of C channels are one sample of B C channels, and the same kernels apply.
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include "ops.h"
#include "vmap.h"

namespace fusedact {
namespace {

using at::functorch::makeBatched;

OptTensor optional(const Tensor& x) { return x.defined() ? OptTensor(x) : OptTensor(); }

// How the sample's dims lie in the physical tensors. A sample without dims gets one.
struct Layout {
  int64_t rank;  // of one sample
  int64_t dim;   // of the channels, in the physical tensor, where the batch dim is dim 0

  Layout(const Physical& x, int64_t call_dim) : rank(x.tensor.dim() - x.batched) {
    int64_t dims = std::max<int64_t>(rank, 1);
    TORCH_CHECK_VALUE(call_dim >= -dims && call_dim < dims, "fusedact: dim is ", call_dim, ", but x has ", rank,
                      " dims under vmap: it must be in [", -dims, ", ", dims - 1, "]");
    dim = (call_dim < 0 ? call_dim + dims : call_dim) + 1;
  }
  Tensor enter(const Tensor& x) const { return rank == 0 ? x.unsqueeze(-1) : x; }
  Tensor leave(const Tensor& x) const { return rank == 0 ? x.squeeze(-1) : x; }

  // [B, ..., C, ...] -> [..., B C, ...] and back
  Tensor fold(const Tensor& x) const { return enter(x).movedim(0, dim - 1).flatten(dim - 1, dim); }
  Tensor unfold(const Tensor& x, const Level& level) const {
    return leave(x.unflatten_symint(dim - 1, {level.batch, x.sym_size(dim - 1) / level.batch}).movedim(dim - 1, 0));
  }
  c10::SymInt channels(const Tensor& x) const { return enter(x).sym_size(dim); }
};

// A bias or a weight with one element per channel of each sample: [C] or [B, C], a single element repeated -> [B C].
Tensor fold_vector(const Physical& vector, const c10::SymInt& channels, const Level& level) {
  Tensor rows = with_batch(vector, level);
  rows = rows.dim() == 1 ? rows.unsqueeze(1) : rows;
  if (rows.sym_size(1) != 1 && rows.sym_size(1) != channels)
    TORCH_CHECK_VALUE(false, "fusedact: bias or weight has ", rows.sym_size(1), " elements under vmap, but x has ",
                      channels, " channels");
  return rows.expand_symint({level.batch, channels}).reshape_symint({level.batch * channels});
}

// One element per element of x (RReLU's noise), as opposed to a vector.
bool is_noise(const Physical& weight, const Physical& x) {
  if (!weight.tensor.defined()) return false;
  int64_t rank = weight.tensor.dim() - weight.batched;
  return rank > 1 && rank == x.tensor.dim() - x.batched;
}

// The arguments of one call below vmap.
struct Below {
  Tensor x;
  OptTensor bias, weight;
  Call call;
};

// With `fold`, B samples of C channels become one of B C; else the batch dim stays in front.
Below below(const Physical& x, const Physical& bias, const Physical& weight, const Call& call, const Layout& layout,
            const Level& level, bool fold) {
  Call inner = call;
  Tensor batched = with_batch(x, level);
  if (!fold) {
    inner.dim = layout.dim;
    Tensor noise = is_noise(weight, x) ? with_batch(weight, level) : weight.tensor;
    return {layout.enter(batched), optional(bias.tensor), optional(noise), inner};
  }
  inner.dim = layout.dim - 1;
  c10::SymInt channels = layout.channels(batched);
  OptTensor folded_bias, folded_weight;
  if (bias.tensor.defined()) folded_bias = fold_vector(bias, channels, level);
  if (weight.tensor.defined())
    folded_weight = is_noise(weight, x) ? layout.fold(with_batch(weight, level)) : fold_vector(weight, channels, level);
  return {layout.fold(batched), folded_bias, folded_weight, inner};
}

bool must_fold(const Physical& x, const Physical& bias, const Physical& weight) {
  return bias.batched || (weight.batched && !is_noise(weight, x));
}

// ---- forward --------------------------------------------------------------------------------------------------------

// The physical result, batch dim in front.
Tensor forward(const Physical& x, const Physical& bias, const Physical& weight, const Call& call, const Level& level) {
  Layout layout(x, call.dim);
  bool fold = must_fold(x, bias, weight);
  Below b = below(x, bias, weight, call, layout, level, fold);
  Tensor y = bias_act(b.x, b.bias, b.weight, b.call);
  return fold ? layout.unfold(y, level) : layout.leave(y);
}

Tensor bias_act_batched(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  Level level{&input, if_any(bias), if_any(weight)};
  Physical x = physical(input, level), b = physical(bias, level), w = physical(weight, level);
  return makeBatched(forward(x, b, w, call, level), 0, level.id);
}

void bias_act_inplace_batched(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  Level level{&input, if_any(bias), if_any(weight)};
  Physical x = physical(input, level), b = physical(bias, level), w = physical(weight, level);
  TORCH_CHECK(x.batched,
              "fusedact.bias_act with inplace=True under vmap: bias or weight is batched, but the input is not ",
              "and cannot hold a result for each sample; use inplace=False");
  x.tensor.copy_(forward(x, b, w, call, level));
}

void bias_act_out_batched(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call,
                          const Tensor& out) {
  Level level{&input, if_any(bias), if_any(weight), &out};
  Physical x = physical(input, level), b = physical(bias, level), w = physical(weight, level), o = physical(out, level);
  TORCH_CHECK(o.batched, "fusedact.bias_act with out= under vmap: an argument is batched, but `out` is not ",
              "and cannot hold a result for each sample; drop out=");
  o.tensor.copy_(forward(x, b, w, call, level));
}

// A mask's bits run through one sample, so each sample's starts with a byte of its own. The order of the bits is the
// output's memory order, which must not depend on the other samples: samples are made contiguous.
Masked bias_act_mask_batched(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const Call& call) {
  Level level{&input, if_any(bias), if_any(weight)};
  Physical x = physical(input, level), b = physical(bias, level), w = physical(weight, level);
  Tensor samples = with_batch(x, level).contiguous();
  auto row = [&](const Physical& vector, int64_t i) {
    return optional(vector.batched ? vector.tensor.select(0, i) : vector.tensor);
  };
  std::vector<Tensor> outputs, masks;
  for (int64_t i = 0; i < samples.size(0); ++i) {
    auto [output, mask] = bias_act_mask(samples.select(0, i), row(b, i), row(w, i), call);
    outputs.push_back(output);
    masks.push_back(mask);
  }
  return {makeBatched(at::stack(outputs), 0, level.id), makeBatched(at::stack(masks), 0, level.id)};
}

// ---- backward -------------------------------------------------------------------------------------------------------

Gradients backward_of_masks(const Physical& grad, const Physical& mask, const Physical& bias, const Physical& weight,
                            const Call& call, bool grad_bias, bool grad_weight, const Level& level) {
  Tensor samples = with_batch(grad, level).contiguous(), masks = with_batch(mask, level);
  auto row = [&](const Physical& vector, int64_t i) {
    return optional(vector.batched ? vector.tensor.select(0, i) : vector.tensor);
  };
  std::vector<Tensor> rows[3];
  for (int64_t i = 0; i < samples.size(0); ++i) {
    auto [x, b, w] = bias_act_backward(samples.select(0, i), masks.select(0, i), row(bias, i), row(weight, i), call,
                                       grad_bias, grad_weight);
    rows[0].push_back(x);
    rows[1].push_back(b);
    rows[2].push_back(w);
  }
  auto stacked = [&](int i) { return makeBatched(at::stack(rows[i]), 0, level.id); };
  return {stacked(0), stacked(1), stacked(2)};
}

// A summed gradient of the folded call, [B C], as that of each sample, in its vector's shape.
Tensor unfold_sum(const Tensor& sum, const Physical& vector, const Level& level) {
  Tensor rows = sum.unflatten_symint(0, {level.batch, sum.sym_size(0) / level.batch});  // [B, C]
  auto sizes = vector.tensor.sym_sizes();
  c10::SymDimVector shape(sizes.begin() + vector.batched, sizes.end());
  bool single = shape.empty() || (shape[0] == 1 && rows.sym_size(1) != 1);
  shape.insert(shape.begin(), level.batch);
  return (single ? rows.sum(1) : rows).reshape_symint(shape);
}

Gradients bias_act_backward_batched(const Tensor& grad, const Tensor& saved, const OptTensor& bias,
                                    const OptTensor& weight, const Call& call, bool grad_bias, bool grad_weight) {
  Level level{&grad, &saved, if_any(bias), if_any(weight)};
  Physical g = physical(grad, level), s = physical(saved, level), b = physical(bias, level),
           w = physical(weight, level);
  if (call.save == "mask") return backward_of_masks(g, s, b, w, call, grad_bias, grad_weight, level);

  Layout layout(g, call.dim);
  bool fold = grad_bias || grad_weight || must_fold(g, b, w);
  Below inner = below(g, b, w, call, layout, level, fold);
  Tensor batched = with_batch(s, level);
  auto [x_grad, b_grad, w_grad] = bias_act_backward(inner.x, fold ? layout.fold(batched) : layout.enter(batched),
                                                    inner.bias, inner.weight, inner.call, grad_bias, grad_weight);
  Tensor input_grad = fold ? layout.unfold(x_grad, level) : layout.leave(x_grad);
  return {makeBatched(input_grad, 0, level.id),
          grad_bias ? makeBatched(unfold_sum(b_grad, b, level), 0, level.id) : b_grad,
          grad_weight ? makeBatched(unfold_sum(w_grad, w, level), 0, level.id) : w_grad};
}

DoubleGradients bias_act_double_backward_batched(const Tensor& u, const Tensor& grad, const Tensor& saved,
                                                 const OptTensor& bias, const Call& call, bool grad_bias) {
  Level level{&u, &grad, &saved, if_any(bias)};
  Physical up = physical(u, level), g = physical(grad, level), s = physical(saved, level), b = physical(bias, level);
  Layout layout(g, call.dim);
  bool fold = grad_bias || b.batched;
  Below inner = below(g, b, {}, call, layout, level, fold);
  auto enter = [&](const Physical& x) {
    Tensor batched = with_batch(x, level);
    return fold ? layout.fold(batched) : layout.enter(batched);
  };
  auto [grad_grad, grad_saved, b_grad] =
      bias_act_double_backward(enter(up), inner.x, enter(s), inner.bias, inner.call, grad_bias);
  auto leave = [&](const Tensor& x) {
    return makeBatched(fold ? layout.unfold(x, level) : layout.leave(x), 0, level.id);
  };
  return {leave(grad_grad), leave(grad_saved),
          grad_bias ? makeBatched(unfold_sum(b_grad, b, level), 0, level.id) : b_grad};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedact, FuncTorchBatched, m) {
  m.impl("bias_act", Flat<bias_act_batched>::call);
  m.impl("bias_act_", Flat<bias_act_inplace_batched>::call);
  m.impl("bias_act.out", Flat<bias_act_out_batched>::call);
  m.impl("bias_act_mask", Flat<bias_act_mask_batched>::call);
  m.impl("bias_act_backward", Flat<bias_act_backward_batched>::call);
  m.impl("bias_act_backward.mask", Flat<bias_act_backward_batched>::call);
  m.impl("bias_act_double_backward", Flat<bias_act_double_backward_batched>::call);
}

}  // namespace fusedact
