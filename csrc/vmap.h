// What batching rules share: the level of vmap that is being resolved, and tensors without its wrapper.
#pragma once

#include <ATen/functorch/BatchedTensorImpl.h>

#include "layout.h"

namespace fusedact {

// The vmap that is being resolved: the innermost of those whose tensors came in. While this lives, operators run below it.
struct Level {
  c10::impl::ExcludeDispatchKeyGuard below{c10::DispatchKey::FuncTorchBatched};
  int64_t id = -1;
  c10::SymInt batch;

  explicit Level(std::initializer_list<const Tensor*> arguments) {
    for (const Tensor* x : arguments) {
      auto* batched = x == nullptr ? nullptr : at::functorch::maybeGetBatchedImpl(*x);
      if (batched == nullptr || batched->level() <= id) continue;
      id = batched->level();
      batch = batched->value().sym_size(batched->bdim());
    }
    TORCH_INTERNAL_ASSERT(id >= 0);
  }
};

inline const Tensor* if_any(const OptTensor& x) { return x ? &*x : nullptr; }

// A tensor without its wrapper. If it was batched at this level, the batch dim is in front.
struct Physical {
  Tensor tensor;
  bool batched = false;
};

inline Physical physical(const Tensor& x, const Level& level) {
  auto* batched = at::functorch::maybeGetBatchedImpl(x);
  if (batched == nullptr || batched->level() != level.id) return {x, false};
  return {batched->value().movedim(batched->bdim(), 0), true};
}
inline Physical physical(const OptTensor& x, const Level& level) { return x ? physical(*x, level) : Physical{}; }

inline Tensor with_batch(const Physical& x, const Level& level) {
  if (x.batched) return x.tensor;
  auto sizes = x.tensor.sym_sizes();
  c10::SymDimVector expanded(sizes.begin(), sizes.end());
  expanded.insert(expanded.begin(), level.batch);
  return x.tensor.expand_symint(expanded);
}

}  // namespace fusedact
