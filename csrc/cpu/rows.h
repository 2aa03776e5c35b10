// A dense tensor as rows of consecutive elements, and the per-channel vectors that meet them.
//
// Knows no activation, no SIMD, no threads and no torch. Not for files that are compiled per ISA: the linker would keep
// one ISA's copy of an inline function for all.
#pragma once

#include <algorithm>
#include <vector>

#include "segments.h"

namespace fusedact::cpu {

// ---- the rows of a tensor -------------------------------------------------------------------------------------------

// A dense tensor as rows of `length` elements, the last row perhaps shorter. Per-channel values either run along a row
// (`pattern`, of period channels * inner) or stand still on it.
struct Rows {
  int64_t numel, length, count;
  bool along;
};

// Shorter rows cost more in their ends than in their middles: take several.
inline constexpr int64_t long_enough = 1024;
// Elements of a repeated pattern that still live in the second-level cache.
inline constexpr int64_t pattern_limit = 65536;

inline Rows rows_of(const Shape& s, bool per_channel) {
  const int64_t n = s.numel(), period = s.channels * s.inner;
  auto cut = [n](int64_t length, bool along) { return Rows{n, length, (n + length - 1) / length, along}; };
  if (!per_channel) return cut(n, false);
  if (s.inner > 1 && (s.inner >= long_enough || period > pattern_limit)) return cut(s.inner, false);
  int64_t length = period;
  if (s.outer > 1 && (length < long_enough || length % lane_count != 0))
    length *= std::min(s.outer, std::max<int64_t>(1, 4 * long_enough / length));
  return cut(length, true);
}

// ---- per-channel values in the compute type -------------------------------------------------------------------------

double value_at(const Vector&, int64_t i);
// One rounding, to nearest even; into the elements from `from` on, if anybody asked.
void put(const Sum&, const double* values, int64_t count, int64_t from = 0);
void zero(const Sum&, int64_t count);

template <class C>
constexpr DType dtype_of = sizeof(C) == 4 ? DType::float32 : DType::float64;

// One of the vectors that meet the elements: a bias, a weight, or nothing.
template <class C>
class Operand {
 public:
  Operand(const Vector& v, const Shape& s, const Rows& rows, C neutral) : vector_(v), shape_(s) {
    if (v.extent == Extent::full) return;
    if (v.extent == Extent::channel && rows.along) {
      const int64_t period = s.channels * s.inner;
      direct_ = v.dtype == dtype_of<C> && rows.length == s.channels && s.inner == 1;
      if (direct_) return;
      pattern_.resize(rows.length);
      if (const auto widen = kernels().widen[static_cast<int>(v.dtype)][sizeof(C) == 8]; widen && s.inner == 1) {
        widen(v.data, pattern_.data(), s.channels, false);
      } else {
        for (int64_t c = 0, i = 0; c < s.channels; ++c, i += s.inner)
          std::fill_n(&pattern_[i], s.inner, static_cast<C>(value_at(v, c)));
      }
      for (int64_t i = period; i < rows.length; ++i) pattern_[i] = pattern_[i - period];
      return;
    }
    standing_ = v.extent == Extent::one ? static_cast<C>(value_at(v, 0)) : neutral;
    varies_ = v.extent == Extent::channel;
  }

  // Where the values for row `row`, column `column`, flat element `flat` lie; `lane` holds those that stand still.
  Lane at(int64_t row, int64_t column, int64_t flat, C (&lane)[lane_count]) const {
    if (vector_.extent == Extent::full) return {static_cast<const C*>(vector_.data) + flat, 1};
    if (direct_) return {static_cast<const C*>(vector_.data) + column, 1};
    if (!pattern_.empty()) return {pattern_.data() + column, 1};
    std::fill_n(lane, lane_count, varies_ ? static_cast<C>(value_at(vector_, row % shape_.channels)) : standing_);
    return {lane, 0};
  }

 private:
  Vector vector_;
  Shape shape_;
  bool direct_ = false, varies_ = false;
  C standing_ = 0;
  std::vector<C> pattern_;
};

template <class C>
struct Operands {
  Operand<C> bias, weight;
  bool has_weight;
  // -0, not 0: x + (-0) is x for every x, also for -0.
  Operands(const Vector& b, const Vector& w, const Shape& s, const Rows& rows)
      : bias(b, s, rows, C(-0.0)), weight(w, s, rows, C(0)), has_weight(w.extent != Extent::none) {}

  // The run of elements from `flat` on, in row `row` from column `column`.
  struct Met {
    Lane bias, weight;
    C bias_lane[lane_count], weight_lane[lane_count];
  };
  void meet(Met& met, int64_t row, int64_t column, int64_t flat) const {
    met.bias = bias.at(row, column, flat, met.bias_lane);
    if (has_weight) met.weight = weight.at(row, column, flat, met.weight_lane);
  }
};

}  // namespace fusedact::cpu
