// The passes that count: alone over tensors that are there, or within bias_act's own, block by block while the values are in
// the first-level cache. What is counted is the stored value, rounded as it is.
//
// Knows no SIMD and no torch.
#include "statistics.h"

#include "drive.h"

namespace fusedact::cpu {
namespace {

constexpr int64_t grain = 16384;        // break-even for a second thread
constexpr int64_t standing_from = 256;  // so many neighbours of one channel are counted as a row of their own
constexpr int64_t fewest_columns = 64;  // of a row across the channels
constexpr int64_t abreast = 16;  // columns that a channel's neighbours are seen as: the largest native vector's lanes

// ---- forward --------------------------------------------------------------------------------------------------------

Rows rows_to_count(const Shape& s) {
  const int64_t n = s.numel(), period = s.channels * s.inner;
  auto cut = [n](int64_t length, bool along) { return Rows{n, length, (n + length - 1) / length, along}; };
  if (s.inner >= standing_from || (s.channels == 1 && s.outer == 1)) return cut(s.inner, false);
  int64_t length = period;
  if (length < fewest_columns) length *= std::min(s.outer, (fewest_columns + period - 1) / period);
  return cut(length, true);
}

// fill(met, at, count) computes elements before they are looked at; what meets x is S, whatever fill computes in.
template <class S, class Fill>
class Count {
 public:
  Count(const StatisticsArgs& args, const Rows& rows, Fill fill)
      : args_(args),
        s_(args.shape),
        rows_(rows),
        bias_(args.bias, s_, rows, S(-0.0)),
        storage_(args.dtype),
        fill_(fill) {}

  void run() { rows_.along ? across() : standing(); }

 private:
  // Columns are channels, or `inner` neighbours share one: units are strips of a chunk of rows.
  void across() {
    const int64_t strips = (rows_.length + seen_columns - 1) / seen_columns;
    // Each unit's sums are cleared and added up: no more units than the threads could want.
    const int64_t chunk_rows =
        std::max(chunk_rows_of(rows_), (rows_.count * strips / most_chunks) / block_rows * block_rows);
    const int64_t chunks = (rows_.count + chunk_rows - 1) / chunk_rows;
    const int64_t widest = std::min(rows_.length, seen_columns);
    const int64_t cells = std::min(s_.channels, (widest + s_.inner - 1) / s_.inner + 1);
    Partials partials(chunks * strips, cells);
    // Channels repeat within a row only if the row is one strip.
    auto first_of = [&](int64_t unit) { return unit % strips * seen_columns / s_.inner; };
    const bool one_each = s_.inner == 1 && rows_.length == s_.channels;
    const int64_t tile = std::min(chunk_rows, rows_.count) * widest;
    parallel(args_.parallel, chunks * strips, std::max<int64_t>(1, grain / tile), [&](int64_t begin, int64_t end) {
      Strip<S> strip(args_.counts);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t chunk = unit / strips, column = unit % strips * seen_columns;
        const int64_t width = std::min(seen_columns, rows_.length - column);
        const int64_t last = std::min((chunk + 1) * chunk_rows, rows_.count);
        strip.clear(width);
        for (int64_t row = chunk * chunk_rows, taken; row < last; row += taken) {
          const int64_t at = row * rows_.length + column, count = std::min(width, rows_.numel - at);
          if (count <= 0) break;
          taken = std::min(seen_rows, last - row);
          if (at + (taken - 1) * rows_.length + count > rows_.numel) taken = std::max<int64_t>(1, taken - 1);
          block(strip, row, column, at, taken, count);
        }
        int32_t cells[seen_columns];
        for (int64_t j = 0; !one_each && j < width; ++j)
          cells[j] = static_cast<int32_t>((column + j) / s_.inner % s_.channels - first_of(unit));
        strip.each(
            [&](int k, const auto* values) { partials.join(unit, k, values, width, 0, one_each ? nullptr : cells); });
        strip.seen(width * chunk_rows, mutex_);
      }
      strip.flush(mutex_);
    });
    partials.fold(args_.counts, s_.channels, outputs(), first_of);
  }

  // Rows of one channel each: units are pieces of a row, seen as columns that are one.
  void standing() {
    const int64_t pieces = (rows_.length + piece - 1) / piece;
    Partials partials(rows_.count * pieces, 1);
    const int64_t tile = std::min(piece, rows_.length);
    parallel(args_.parallel, rows_.count * pieces, std::max<int64_t>(1, grain / tile), [&](int64_t begin, int64_t end) {
      Strip<S> strip(args_.counts);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / pieces, start = unit % pieces * piece;
        const int64_t stop = std::min(start + piece, rows_.length);
        strip.clear(abreast);
        for (int64_t column = start; column < stop; column += seen_elements) {
          const int64_t count = std::min(seen_elements, stop - column);
          block(strip, row, column, row * rows_.length + column, 1, count);
        }
        strip.each([&](int k, const auto* values) { partials.join_all(unit, k, values, abreast); });
        strip.seen(stop - start, mutex_);
      }
      strip.flush(mutex_);
    });
    partials.fold(args_.counts, s_.channels, outputs(), [&](int64_t unit) { return unit / pieces % s_.channels; });
  }

  double outputs() const { return args_.y ? static_cast<double>(s_.outer * s_.inner) : 0.0; }

  void block(Strip<S>& strip, int64_t row, int64_t column, int64_t at, int64_t rows, int64_t count) {
    fill_(row, column, at, rows, count);
    S buffer[seen_elements];
    if (args_.x) {
      S lane[lane_count];
      const Lane bias = bias_.at(row, column, at, lane);
      look(storage_.view(args_.x, at, rows, count, rows_.length, buffer), rows, count,
           [&](const S* p, int64_t columns, int64_t n, int64_t pitch) { strip.input(p, columns, n, pitch, bias); });
    }
    if (args_.y)
      look(storage_.view(args_.y, at, rows, count, rows_.length, buffer), rows, count,
           [&](const S* p, int64_t columns, int64_t n, int64_t pitch) { strip.output(p, columns, n, pitch); });
  }

  template <class See>
  void look(typename Storage<S>::View view, int64_t rows, int64_t count, See see) const {
    if (rows_.along) return see(view.data, count, rows, view.pitch);
    const int64_t whole = count / abreast, rest = count % abreast;
    if (whole) see(view.data, abreast, whole, abreast);
    if (rest) see(view.data + whole * abreast, rest, 1, abreast);
  }

  const StatisticsArgs& args_;
  const Shape& s_;
  const Rows& rows_;
  const Operand<S> bias_;
  const Storage<S> storage_;
  Fill fill_;
  std::mutex mutex_;
};

template <class Fill>
void count(const StatisticsArgs& args, const Rows& rows, Fill fill) {
  if (args.dtype == DType::float64)
    Count<double, Fill>(args, rows, fill).run();
  else
    Count<float, Fill>(args, rows, fill).run();
}

template <class C>
void run_forward(const Activation& a, const ForwardArgs& args, const Counts& counts) {
  const Rows rows = rows_to_count(args.shape);
  const ForwardOf<C> forward(a, args, rows);
  const StatisticsArgs seen{args.shape, args.dtype, args.x, args.bias, args.y, counts, args.parallel};
  count(seen, rows, [&](int64_t row, int64_t column, int64_t at, int64_t taken, int64_t n) {
    typename Operands<C>::Met met;
    for (int64_t i = 0; i < taken; ++i) {
      const int64_t flat = at + i * rows.length;
      forward.operands.meet(met, row + i, column, flat);
      forward.run(met, flat, n, false);
    }
  });
}

// ---- backward -------------------------------------------------------------------------------------------------------

// The columns that have cells of their own, where channels run along a row: whole periods of them, and enough for a vector,
// but no more. The rows of backward repeat short periods up to 4096 elements, and so many cells would not stay in the cache.
int64_t repeated(const Shape& s, const Rows& rows) {
  const int64_t period = s.channels * s.inner;
  return std::min(rows.length, (fewest_columns + period - 1) / period * period);
}

// Squares and zeros of the gradient, in the units of for_tiles: [chunks, repeated], or one cell per piece of a row.
template <class S>
class GradientCells {
 public:
  GradientCells(const BackwardArgs& args, const Rows& rows)
      : args_(args),
        rows_(rows),
        storage_(args.dtype),
        run_(FUSEDACT_OF_ISA(statistics_runs)(sizeof(S) == 8).gradient),
        chunk_rows_(chunk_rows_of(rows)),
        pieces_((rows.length + piece - 1) / piece),
        units_(rows.along ? (rows.count + chunk_rows_ - 1) / chunk_rows_ : rows.count * pieces_),
        cells_(rows.along ? repeated(args.shape, rows) : 1),
        squares_(units_ * cells_),
        zeros_(units_ * cells_) {}

  void look(int64_t at, int64_t count, int64_t together) {
    const int64_t row = at / rows_.length, column = at - row * rows_.length;
    if (rows_.along && cells_ < rows_.length) {
      for (int64_t i = 0; i < together; ++i) look_at(at + i * rows_.length, row, column, count, 1);
    } else {
      look_at(at, row, column, count, together);
    }
  }

  void fold(double* sums) {
    const Shape& s = args_.shape;
    const std::vector<double> zeros(zeros_.begin(), zeros_.end());
    const int64_t parts = rows_.along ? units_ : pieces_;
    add(sums, Statistic::zeros, parts, zeros);
    add(sums, Statistic::squares, parts, squares_);
    for (int64_t c = 0; c < s.channels; ++c) sums[c] += static_cast<double>(s.outer * s.inner);
  }

 private:
  using Integer = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;

  void look_at(int64_t at, int64_t row, int64_t column, int64_t count, int64_t together) {
    S buffer[seen_elements];
    for (int64_t done = 0; done < count; done += seen_elements / 2) {  // of two rows at most
      const int64_t n = std::min(count - done, seen_elements / 2);
      const auto view = storage_.view(args_.grad_x, at + done, together, n, rows_.length, buffer);
      if (!rows_.along)
        standing(view.data, n, row * pieces_ + column / piece);
      else if (cells_ == rows_.length)
        across({n, together, view.pitch, view.data}, row, column + done);
      else
        folded(view.data, n, row, column + done);
    }
  }

  void across(GradientRun run, int64_t row, int64_t column) {
    const int64_t cell = row / chunk_rows_ * cells_ + column;
    run.squares = squares_.data() + cell;
    run.zeros = zeros_.data() + cell;
    run_(run);
  }

  // A piece of one row that is seen as rows of cells_: the end of one, whole ones, and the beginning of one.
  void folded(const S* grad, int64_t count, int64_t row, int64_t column) {
    column %= cells_;
    const int64_t end = std::min(count, column ? cells_ - column : 0);
    const int64_t whole = (count - end) / cells_, rest = count - end - whole * cells_;
    if (end) across({end, 1, cells_, grad}, row, column);
    if (whole) across({cells_, whole, cells_, grad + end}, row, 0);
    if (rest) across({rest, 1, cells_, grad + end + whole * cells_}, row, 0);
  }

  void standing(const S* grad, int64_t count, int64_t cell) {
    double squares[abreast] = {};
    Integer zeros[abreast] = {};
    const int64_t whole = count / abreast, rest = count % abreast;
    run_({abreast, whole, abreast, grad, squares, zeros});
    run_({rest, 1, abreast, grad + whole * abreast, squares, zeros});
    for (double s : squares) squares_[cell] += s;
    for (Integer z : zeros) zeros_[cell] += z;
  }

  void add(double* sums, Statistic statistic, int64_t parts, std::vector<double> partial) const {
    std::vector<double> total(args_.shape.channels);
    cpu::fold({{total.data(), DType::float64}, false}, args_.shape, rows_, parts, cells_, partial);
    for (int64_t c = 0; c < args_.shape.channels; ++c)
      sums[static_cast<int>(statistic) * args_.shape.channels + c] += total[c];
  }

  const BackwardArgs& args_;
  const Rows& rows_;
  const Storage<S> storage_;
  void (*run_)(const GradientRun&);
  int64_t chunk_rows_, pieces_, units_, cells_;
  std::vector<double> squares_;
  std::vector<Integer> zeros_;
};

template <class C, class S>
void backward_of(const Activation& a, const BackwardArgs& args, double* sums) {
  const Rows rows = rows_of(args.shape, true);
  GradientCells<S> cells(args, rows);
  run_backward<C, true>(a, args, rows,
                        [&](int64_t at, int64_t count, int64_t together) { cells.look(at, count, together); });
  cells.fold(sums);
}

}  // namespace

void statistics(const StatisticsArgs& args) {
  if (args.shape.numel() == 0) return;
  count(args, rows_to_count(args.shape), [](int64_t, int64_t, int64_t, int64_t, int64_t) {});
}

void forward_statistics(const Activation& a, const ForwardArgs& args, const Counts& counts) {
  if (args.shape.numel() == 0) return;
  computed_in_double(a, args.dtype) ? run_forward<double>(a, args, counts) : run_forward<float>(a, args, counts);
}

void backward_statistics(const Activation& a, const BackwardArgs& args, double* sums) {
  if (args.shape.numel() == 0) return backward(a, args);
  if (args.dtype == DType::float64) return backward_of<double, double>(a, args, sums);
  a.wide ? backward_of<double, float>(a, args, sums) : backward_of<float, float>(a, args, sums);
}

}  // namespace fusedact::cpu
