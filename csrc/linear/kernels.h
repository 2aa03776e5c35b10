// The contract between linear_act and its back ends: y = clamp(gain * act(x @ weight^T + bias)), the product a tile at a
// time. Knows nothing of torch, nor of how a product is computed.
#pragma once

#include "../kernels.h"
#include "../statistics/kernels.h"

namespace fusedact {

// A piece of the output.
struct Tile {
  int64_t row, rows, column, columns;
};

// The matrix product z = x @ weight^T, computed by whoever calls: torch's GEMM. Inside Parallel it uses one thread,
// outside as many as it likes.
struct Product {
  const void* context = nullptr;
  // z [tile.rows, tile.columns], rows `pitch` elements apart, in the compute type; overwritten.
  void (*run)(const void* context, const Tile& tile, void* z, int64_t pitch) = nullptr;
};

struct LinearActArgs {
  int64_t rows, columns;         // of the output
  DType dtype = DType::float32;  // of y and z; tiles are float64 for float64, float32 for all others
  Product product;
  Vector bias;  // [columns], or absent
  Vector param;
  Scalars scalars;
  void* y = nullptr;        // [rows, columns]
  void* z = nullptr;        // [rows, columns]: the product as it is, for backward; not written if null
  uint8_t* mask = nullptr;  // [mask_bytes(rows * columns)], written if not null, as ForwardArgs has it
  Parallel parallel;
  int threads = 1;  // that `parallel` has
};

namespace cpu {
void linear_act(const Activation&, const LinearActArgs&);
// The same, with the same bits, counting each tile while it is in cache: the pre-activation is nowhere else.
void linear_act_statistics(const Activation&, const LinearActArgs&, const Counts&);
}  // namespace cpu

}  // namespace fusedact
