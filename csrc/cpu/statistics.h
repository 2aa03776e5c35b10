// How what the runs count becomes sums per channel: blocks of rows and columns, partial sums per unit of work, and their
// fold. The shape alone fixes the units, and each is added up in one order: the bits do not depend on the threads.
//
// Knows no activation, no SIMD and no torch. Not for files that are compiled per ISA.
#pragma once

#include <limits>
#include <mutex>

#include "../statistics/kernels.h"
#include "../statistics/runs.h"
#include "blocks.h"
#include "isa.h"
#include "tiles.h"

namespace fusedact::cpu {

// A block of S: what meets x and y together, and the columns' sums, stay in the first-level cache.
inline constexpr int64_t seen_rows = 16, seen_columns = 256, seen_elements = seen_rows * seen_columns;

// In the order of Statistic, but for the count, which follows from the shape.
inline constexpr int kept_statistics = statistic_count - 1;
inline double start_of(int statistic) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return statistic == kept_statistics - 2 ? infinity : statistic == kept_statistics - 1 ? -infinity : 0.0;
}
// f(join), join being what makes one of two numbers of this statistic. Chosen once per loop, not once per number.
template <class F>
void with_join(int statistic, F f) {
  if (statistic == kept_statistics - 2) return f([](double a, double b) { return std::min(a, b); });
  if (statistic == kept_statistics - 1) return f([](double a, double b) { return std::max(a, b); });
  f([](double a, double b) { return a + b; });
}

// Elements in storage as S, which is float for 16-bit ones: in place, or copied into a buffer row by row.
template <class S>
class Storage {
 public:
  explicit Storage(DType dtype) : dtype_(dtype), widen_(kernels().widen[static_cast<int>(dtype)][sizeof(S) == 8]) {}

  struct View {
    const S* data;
    int64_t pitch;
  };
  View view(const void* base, int64_t at, int64_t rows, int64_t columns, int64_t pitch,
            S (&buffer)[seen_elements]) const {
    if (!widen_) return {static_cast<const S*>(base) + at, pitch};
    for (int64_t row = 0; row < rows; ++row)
      widen_(offset(base, at + row * pitch, dtype_), buffer + row * columns, columns, false);
    return {buffer, columns};
  }

 private:
  DType dtype_;
  Convert widen_;
};

// The sums of a strip of columns, while a unit of work goes down its rows; and the histogram of one thread.
template <class S>
class Strip {
 public:
  explicit Strip(const Counts& counts) : counts_(counts), runs_(FUSEDACT_OF_ISA(statistics_runs)(sizeof(S) == 8)) {}

  void clear(int64_t columns) {
    for (double* sums : {sum_, squares_, nan_, inf_}) std::fill_n(sums, columns, 0.0);
    std::fill_n(zeros_, columns, Integer(0));
    std::fill_n(saturated_, columns, Integer(0));
    std::fill_n(least_, columns, std::numeric_limits<S>::infinity());
    std::fill_n(largest_, columns, -std::numeric_limits<S>::infinity());
  }

  void input(const S* x, int64_t columns, int64_t rows, int64_t pitch, const Lane& bias, int64_t from = 0) {
    runs_.input({columns, rows, pitch, x, bias, counts_.zones, counts_.zone_count, saturated_ + from,
                 counts_.histogram ? histogram_ : nullptr});
  }
  void output(const S* y, int64_t columns, int64_t rows, int64_t pitch, int64_t from = 0) {
    runs_.output({columns, rows, pitch, y, sum_ + from, squares_ + from, nan_ + from, inf_ + from, zeros_ + from,
                  least_ + from, largest_ + from});
  }

  // f(statistic, values [seen_columns]) for all that was counted.
  template <class F>
  void each(F f) const {
    f(0, zeros_);
    f(1, saturated_);
    f(2, nan_);
    f(3, inf_);
    f(4, sum_);
    f(5, squares_);
    f(6, least_);
    f(7, largest_);
  }

  // The histogram so far, to where it is kept; whole numbers, so that the order of threads does not matter. Costs as much as
  // counting a few hundred elements: once for all the units of a thread, which `seen` makes sure that 32 bits are enough for.
  void flush(std::mutex& mutex) {
    if (!counts_.histogram) return;
    const std::lock_guard<std::mutex> lock(mutex);
    for (int bin = 0; bin < histogram_bins; ++bin)
      for (int copy = 0; copy < histogram_copies; ++copy)
        counts_.histogram[bin] += histogram_[copy * histogram_stride + bin];
    std::fill_n(histogram_, histogram_copies * histogram_stride, 0u);
    unflushed_ = 0;
  }
  void seen(int64_t elements, std::mutex& mutex) {
    if ((unflushed_ += elements) >= int64_t{1} << 30) flush(mutex);
  }

 private:
  using Integer = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;
  const Counts& counts_;
  StatisticsRuns runs_;
  alignas(64) double sum_[seen_columns], squares_[seen_columns], nan_[seen_columns], inf_[seen_columns];
  alignas(64) S least_[seen_columns], largest_[seen_columns];
  alignas(64) Integer zeros_[seen_columns], saturated_[seen_columns];
  uint32_t histogram_[histogram_copies * histogram_stride] = {};
  int64_t unflushed_ = 0;
};

// What the units counted, each in cells of its own: [units, kept_statistics, cells].
class Partials {
 public:
  Partials(int64_t units, int64_t cells) : units_(units), cells_(cells), values_(units * kept_statistics * cells) {
    for (int64_t i = 0; i < units; ++i)
      for (int k = 0; k < kept_statistics; ++k) std::fill_n(row(i, k), cells, start_of(k));
  }
  // Column j belongs to cell first + j, or to cells[j] if they are given.
  template <class T>
  void join(int64_t unit, int statistic, const T* values, int64_t columns, int64_t first, const int32_t* cells = {}) {
    double* kept = row(unit, statistic);
    with_join(statistic, [&](auto joined) {
      if (cells)
        for (int64_t j = 0; j < columns; ++j) kept[cells[j]] = joined(kept[cells[j]], static_cast<double>(values[j]));
      else
        for (int64_t j = 0; j < columns; ++j) kept[first + j] = joined(kept[first + j], static_cast<double>(values[j]));
    });
  }
  // All columns belong to the only cell.
  template <class T>
  void join_all(int64_t unit, int statistic, const T* values, int64_t columns) {
    double& kept = *row(unit, statistic);
    with_join(statistic, [&](auto joined) {
      for (int64_t j = 0; j < columns; ++j) kept = joined(kept, static_cast<double>(values[j]));
    });
  }
  // Adds all of them to sums [statistic_count, channels], in the order of units; a unit's cells are channels from
  // first_of(unit) on, and those beyond the last stand for none.
  template <class F>
  void fold(const Counts& counts, int64_t channels, double elements, F first_of) {
    std::vector<double> total(kept_statistics * channels);
    for (int k = 0; k < kept_statistics; ++k) std::fill_n(total.data() + k * channels, channels, start_of(k));
    for (int64_t unit = 0; unit < units_; ++unit) {
      const int64_t first = first_of(unit), count = std::min(cells_, channels - first);
      for (int k = 0; k < kept_statistics; ++k) fold(k, total.data() + k * channels + first, row(unit, k), count);
    }
    for (int64_t c = 0; c < channels; ++c) counts.sums[c] += elements;
    for (int k = 0; k < kept_statistics; ++k)
      fold(k, counts.sums + (k + 1) * channels, total.data() + k * channels, channels);
  }

 private:
  static void fold(int statistic, double* kept, const double* more, int64_t count) {
    with_join(statistic, [&](auto joined) {
      for (int64_t c = 0; c < count; ++c) kept[c] = joined(kept[c], more[c]);
    });
  }
  double* row(int64_t unit, int statistic) { return values_.data() + (unit * kept_statistics + statistic) * cells_; }
  int64_t units_, cells_;
  std::vector<double> values_;
};

}  // namespace fusedact::cpu
