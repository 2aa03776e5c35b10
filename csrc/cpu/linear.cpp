// linear_act: the product in tiles that stay in the second-level cache, each finished (bias, activation, rounding) before
// the next. The runs are bias_act's.
//
// Knows no SIMD, no torch, and nothing of how a product is computed.
#include "../linear/kernels.h"

#include <cstring>
#include <memory>

#include "statistics.h"

namespace fusedact::cpu {
namespace {

// ---- the cut ---------------------------------------------------------------------------------------------------------

// Narrower tiles cost the GEMM more than their finishing saves: row panels of 128 rows or less are slower than the bare GEMM,
// 256 x 256 costs it nothing (MKL, 512 x 768 -> 3072). The shape alone decides how to cut; whether to cut depends on the
// threads too, and then a few shapes have other bits (MKL: 33 x 333 -> 777, where a tile's edge meets another kernel).
struct Cut {
  int64_t rows, columns, down, across;
  int64_t count() const { return down * across; }
  // Whether `threads` share the tiles evenly enough: 0.85 of their time at work, what the activation's own pass would cost.
  bool shared_by(int64_t threads) const { return count() * 100 >= (count() + threads - 1) / threads * threads * 85; }
};

int64_t over(int64_t n, int64_t d) { return (n + d - 1) / d; }

Cut cut_of(const LinearActArgs& a) {
  constexpr int64_t largest = 256, fewest_rows = 64, fewest_columns = 128, enough = 16;
  Cut c{std::min(a.rows, largest), std::min(a.columns, largest), 1, 1};
  auto count = [&] { return over(a.rows, c.rows) * over(a.columns, c.columns); };
  while (count() < enough && c.rows > fewest_rows) c.rows = over(c.rows, 2 * 8) * 8;
  while (count() < enough && c.columns > fewest_columns) c.columns = over(c.columns, 2 * 8) * 8;
  // Two tiles must not meet in one byte of a mask: rows are multiples of 8, and columns too unless they are all of them.
  if (a.mask && a.columns % 8 != 0) c.columns = a.columns;
  c.down = over(a.rows, c.rows);
  c.across = over(a.columns, c.columns);
  return c;
}

// ---- finishing -------------------------------------------------------------------------------------------------------

// From rows of the product, in T, to y, through the compute type C.
template <class T, class C>
class Finish {
 public:
  Finish(const Activation& activation, const LinearActArgs& args)
      : args_(args),
        kernel_(kernels().forward[activation.index][sizeof(C) == 8]),
        operands_(args.bias, args.param, {args.rows, args.columns, 1},
                  {args.rows * args.columns, args.columns, args.rows, true}),
        widen_(kernels().widen[static_cast<int>(dtype_of<T>)][sizeof(C) == 8]),
        narrow_(kernels().narrow[static_cast<int>(args.dtype)][sizeof(C) == 8]),
        keep_(kernels().narrow[static_cast<int>(args.dtype)][sizeof(T) == 8]) {}

  // The tile of the product in `z`, rows `pitch` apart, may lie in y or in args.z; it is copied there if not.
  void tile(const Tile& t, const T* z, int64_t pitch, bool stream) const {
    typename Operands<C>::Met met;
    for (int64_t i = 0; i < t.rows; ++i) {
      const int64_t row = t.row + i, at = row * args_.columns + t.column;
      operands_.meet(met, row, t.column, at);
      keep(z + i * pitch, at, t.columns);
      run(met, z + i * pitch, at, t.columns, stream);
    }
  }

 private:
  void keep(const T* z, int64_t at, int64_t count) const {
    if (!args_.z) return;
    char* to = offset(args_.z, at, args_.dtype);
    if (keep_)
      keep_(z, to, count, false);
    else if (to != reinterpret_cast<const char*>(z))
      std::memcpy(to, z, count * sizeof(T));
  }

  void run(const typename Operands<C>::Met& met, const T* z, int64_t at, int64_t count, bool stream) const {
    if (!widen_ && !narrow_) {
      C* y = reinterpret_cast<C*>(offset(args_.y, at, args_.dtype));
      kernel_({count, z, met.bias, met.weight, &args_.scalars, y, args_.mask, at, stream});
      return;
    }
    constexpr int64_t block = 512;
    alignas(64) C wide[block];
    for (int64_t done = 0; done < count; done += block) {
      const int64_t n = std::min(block, count - done);
      const void* from = z + done;
      if (widen_) {
        widen_(from, wide, n, false);
        from = wide;
      }
      char* y = offset(args_.y, at + done, args_.dtype);
      kernel_({n, from, advanced(met.bias, done, sizeof(C)), advanced(met.weight, done, sizeof(C)), &args_.scalars,
               narrow_ ? wide : static_cast<void*>(y), args_.mask, at + done, false});
      if (narrow_) narrow_(wide, y, n, stream);
    }
  }

  const LinearActArgs& args_;
  void (*kernel_)(const ForwardRun&);
  Operands<C> operands_;
  Convert widen_, narrow_, keep_;  // T to C, C to y's dtype, T to z's; null where the two are the same
};

// ---- looking on ------------------------------------------------------------------------------------------------------

// Sees nothing, and is not there.
struct Blind {
  static constexpr bool sees = false;
  template <class T, class F>
  void tile(const Tile& t, const T* z, int64_t, F finish) {
    finish(t, z);
  }
};

// Counts a tile block by block: its product before finish(tile, z), the output after it. Rows of tiles have sums of their own,
// added up in their order, so that the counts do not depend on who computed which tile.
template <class T>
class Watch {
 public:
  static constexpr bool sees = true;
  Watch(const LinearActArgs& args, const Counts& counts, const Cut& cut)
      : args_(args),
        counts_(counts),
        cut_(cut),
        bias_(args.bias, {args.rows, args.columns, 1}, {args.rows * args.columns, args.columns, args.rows, true},
              T(-0.0)),
        storage_(args.dtype),
        partials_(cut.down, args.columns) {}

  template <class F>
  void tile(const Tile& t, const T* z, int64_t pitch, F finish) {
    Strip<T> strip(counts_);
    T buffer[seen_elements], lane[lane_count];
    for (int64_t column = 0; column < t.columns; column += seen_columns) {
      const int64_t width = std::min(seen_columns, t.columns - column);
      strip.clear(width);
      for (int64_t row = 0; row < t.rows; row += seen_rows) {
        const Tile block{t.row + row, std::min(seen_rows, t.rows - row), t.column + column, width};
        const int64_t at = block.row * args_.columns + block.column;
        const T* from = z + row * pitch + column;
        strip.input(from, width, block.rows, pitch, bias_.at(block.row, block.column, at, lane));
        finish(block, from);
        const auto y = storage_.view(args_.y, at, block.rows, width, args_.columns, buffer);
        strip.output(y.data, width, block.rows, y.pitch);
      }
      strip.each(
          [&](int k, const auto* values) { partials_.join(t.row / cut_.rows, k, values, width, t.column + column); });
    }
    strip.flush(mutex_);
  }

  void fold() {
    partials_.fold(counts_, args_.columns, static_cast<double>(args_.rows), [](int64_t) { return int64_t{0}; });
  }

 private:
  const LinearActArgs& args_;
  const Counts& counts_;
  const Cut& cut_;
  const Operand<T> bias_;
  const Storage<T> storage_;
  Partials partials_;
  std::mutex mutex_;
};

// ---- the whole -------------------------------------------------------------------------------------------------------

// Too few tiles for the threads: the product has them all, then the finishing has.
template <class T, class C, class See>
void run_at_once(const Finish<T, C>& finish, const LinearActArgs& args, const Cut& cut, See& see) {
  T* z = dtype_of<T> == args.dtype ? static_cast<T*>(args.z ? args.z : args.y) : nullptr;
  std::unique_ptr<T[]> own;
  if (!z) {
    own.reset(new T[args.rows * args.columns]);
    z = own.get();
  }
  args.product.run(args.product.context, {0, args.rows, 0, args.columns}, z, args.columns);
  const int64_t columns = args.columns;
  auto rows = [&](int64_t begin, int64_t end) {
    see.tile({begin, end - begin, 0, columns}, z + begin * columns, columns,
             [&](const Tile& t, const T* from) { finish.tile(t, from, columns, false); });
  };
  if (See::sees)  // in the same rows as the tiles'
    return parallel(args.parallel, cut.down, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) rows(i * cut.rows, std::min((i + 1) * cut.rows, args.rows));
    });
  const int64_t grain = over(over(16384, columns), 8) * 8;  // whole bytes of a mask
  parallel(args.parallel, args.rows, grain, rows);
}

template <class T, class C, class See>
void run_linear_act(const Activation& activation, const LinearActArgs& args, const Cut& cut, See& see) {
  const Finish<T, C> finish(activation, args);
  if (!cut.shared_by(args.threads)) return run_at_once(finish, args, cut, see);
  const bool stream = !See::sees && beyond_cache(args.rows * args.columns * size_of(args.dtype));
  parallel(args.parallel, cut.count(), 1, [&](int64_t first, int64_t last) {
    // A GEMM into rows that follow each other is faster than one into y, whose rows are far apart (0.97 against 1.04 of the
    // bare GEMM, 4096 x 256 -> 1024); and y may then be stored past the caches.
    const std::unique_ptr<T[]> z(new T[cut.rows * cut.columns]);
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / cut.across * cut.rows, column = i % cut.across * cut.columns;
      const Tile t{row, std::min(cut.rows, args.rows - row), column, std::min(cut.columns, args.columns - column)};
      args.product.run(args.product.context, t, z.get(), cut.columns);
      see.tile(t, z.get(), cut.columns,
               [&](const Tile& block, const T* from) { finish.tile(block, from, cut.columns, stream); });
    }
  });
}

// see_and(T(), run) calls run(see), with what looks on at tiles of T.
template <class SeeAnd>
void run_seen(const Activation& a, const LinearActArgs& args, const Cut& cut, SeeAnd see_and) {
  if (args.mask) std::memset(args.mask, 0, mask_bytes(args.rows * args.columns));
  if (args.dtype == DType::float64)
    return see_and(double(), [&](auto& see) { run_linear_act<double, double>(a, args, cut, see); });
  see_and(float(), [&](auto& see) {
    a.wide ? run_linear_act<float, double>(a, args, cut, see) : run_linear_act<float, float>(a, args, cut, see);
  });
}

}  // namespace

void linear_act(const Activation& a, const LinearActArgs& args) {
  if (args.rows * args.columns == 0) return;
  run_seen(a, args, cut_of(args), [](auto, auto run) {
    Blind see;
    run(see);
  });
}

void linear_act_statistics(const Activation& a, const LinearActArgs& args, const Counts& counts) {
  if (args.rows * args.columns == 0) return;
  const Cut cut = cut_of(args);
  run_seen(a, args, cut, [&]<class T>(T, auto run) {
    Watch<T> see(args, counts, cut);
    run(see);
    see.fold();
  });
}

}  // namespace fusedact::cpu
