// Why a call is refused: what the checks of every operator are written with. Got, expected, how to fix; all reasons at
// once. Works on symbolic shapes; knows no operator.
#pragma once

#include <c10/util/StringUtil.h>

#include <string>
#include <string_view>
#include <vector>

#include "layout.h"

namespace fusedact {

// One about a dtype makes it a TypeError, else it is a ValueError.
class Reasons {
 public:
  template <class... Words>
  void add(const Words&... words) {
    reasons_.push_back(c10::str(words...));
  }
  template <class... Words>
  void add_dtype(const Words&... words) {
    dtype_ = true;
    add(words...);
  }
  bool any() const { return !reasons_.empty(); }
  void raise_if_any(std::string_view who) const;

 private:
  std::vector<std::string> reasons_;
  bool dtype_ = false;
};

// "float32", as Python has it.
std::string name_of(at::ScalarType dtype);
// Whether there are kernels for it.
bool supported(at::ScalarType dtype);

void check_input(Reasons&, const Tensor& x, const char* name = "x");

// `dim` counted from the front, in [0, max(x.dim(), 1)), or -1 if it is none of x's: then the reason has been added.
int64_t check_dim(Reasons&, const Tensor& x, int64_t dim);

// A vector parameter: in x's dtype, or in float32 beside 16-bit x; on x's device.
void check_vector(Reasons&, const char* name, const Tensor& vector, const Tensor& x);

// The same, with one element per channel: as long as x's dim `dim`.
void check_channels(Reasons&, const char* name, const Tensor& vector, const Tensor& x, int64_t dim);

// "x has 128 channels in dim 1 (shape [8, 128, 32])"
std::string channels_of(const Tensor& x, int64_t dim);

}  // namespace fusedact
