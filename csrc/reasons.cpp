// The parts that the checks of every operator are made of.
#include "reasons.h"

#include <algorithm>
#include <sstream>

#include "ops.h"

namespace fusedact {

void Reasons::raise_if_any(std::string_view who) const {
  if (reasons_.empty()) [[likely]]
    return;
  std::ostringstream message;
  message << "fusedact (" << who << "): ";
  if (reasons_.size() > 1) message << reasons_.size() << " problems:";
  for (const std::string& reason : reasons_) message << (reasons_.size() > 1 ? "\n  - " : "") << reason;
  TORCH_CHECK_TYPE(!dtype_, message.str());
  TORCH_CHECK_VALUE(false, message.str());
}

std::string name_of(at::ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

bool supported(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

std::string channels_of(const Tensor& x, int64_t dim) {
  if (x.dim() == 0) return "x is a scalar, which has 1 channel";
  return c10::str("x has ", x.sym_size(dim), " channels in dim ", dim, " (shape ", x.sym_sizes(), ")");
}

void check_input(Reasons& reasons, const Tensor& x, const char* name) {
  if (!supported(x.scalar_type()))
    reasons.add_dtype(name, " is ", name_of(x.scalar_type()), ", but it must be float32, float64, bfloat16 or float16");
}

int64_t check_dim(Reasons& reasons, const Tensor& x, int64_t dim) {
  int64_t rank = std::max<int64_t>(x.dim(), 1);
  if (dim >= -rank && dim < rank) return dim < 0 ? dim + rank : dim;
  reasons.add("dim is ", dim, ", but x has ", x.dim(), " dims (shape ", x.sym_sizes(), "): it must be in [", -rank,
              ", ", rank - 1, "]");
  return -1;
}

void check_vector(Reasons& reasons, const char* name, const Tensor& vector, const Tensor& x) {
  bool native = vector.scalar_type() == x.scalar_type() ||
                (vector.scalar_type() == at::kFloat && compute_dtype(x.scalar_type()) == at::kFloat);
  if (!native)
    reasons.add_dtype(name, " is ", name_of(vector.scalar_type()), ", but x is ", name_of(x.scalar_type()),
                      ": it must be ", name_of(x.scalar_type()), x.element_size() == 2 ? " or float32" : "");
  if (vector.device() != x.device())
    reasons.add(name, " is on ", vector.device(), ", but x is on ", x.device(), ": move one with .to()");
}

void check_channels(Reasons& reasons, const char* name, const Tensor& vector, const Tensor& x, int64_t dim) {
  check_vector(reasons, name, vector, x);
  if (vector.dim() != 1)
    reasons.add(name, " has shape ", vector.sym_sizes(), ", but it must have one dim, as long as x's dim ", dim);
  else if (vector.sym_size(0) != (x.dim() == 0 ? c10::SymInt(1) : x.sym_size(dim)))
    reasons.add(name, " has ", vector.sym_size(0), " elements, but ", channels_of(x, dim));
}

}  // namespace fusedact
