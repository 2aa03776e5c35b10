// From a whole tensor to runs: how it is cut for threads and caches, what each run meets, the blocks in which 16-bit
// elements are widened and narrowed, and the sums over all but the channels. Fixed by the shape alone, so that the bits
// do not depend on the number of threads.
//
// Knows no activation, no SIMD and no torch.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "segments.h"

namespace fusedact::cpu {
namespace {

// ---- the rows of a tensor -------------------------------------------------------------------------------------------

// A dense tensor as rows of `length` elements, the last row perhaps shorter. Per-channel values either run along a row
// (`pattern`, of period channels * inner) or stand still on it.
struct Rows {
  int64_t numel, length, count;
  bool along;
};

constexpr int64_t long_enough = 1024;     // shorter rows cost more in their ends than in their middles: take several
constexpr int64_t pattern_limit = 65536;  // elements of a repeated pattern that still live in the second-level cache

Rows rows_of(const Shape& s, bool per_channel) {
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

float from_bfloat16(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }
float from_half(uint16_t h) {
  const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023, sign = static_cast<uint32_t>(h & 0x8000) << 16;
  if (exponent == 0) {
    const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(tiny) | sign);
  }
  const uint32_t e = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | e << 23 | mantissa << 13);
}
double value_at(const Vector& v, int64_t i) {
  switch (v.dtype) {
    case DType::float32: return static_cast<const float*>(v.data)[i];
    case DType::float64: return static_cast<const double*>(v.data)[i];
    case DType::bfloat16: return from_bfloat16(static_cast<const uint16_t*>(v.data)[i]);
    case DType::float16: return from_half(static_cast<const uint16_t*>(v.data)[i]);
  }
  return 0;
}

uint16_t to_bfloat16(double v) {
  const float f = static_cast<float>(v);
  uint32_t b = std::bit_cast<uint32_t>(f);
  if (f != f) return 0x7fc0;
  const double back = f;  // to odd, so that the value is rounded once
  if (back != v && std::abs(back) <= std::numeric_limits<float>::max())
    b = (std::abs(back) > std::abs(v) ? b - 1 : b) | 1;
  return static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
uint16_t to_half(double v) {
  const uint64_t bits = std::bit_cast<uint64_t>(v);
  const auto sign = static_cast<uint16_t>(bits >> 48 & 0x8000);
  const double a = std::abs(v);
  if (!(a == a)) return sign | 0x7e00;
  if (a >= 65520.0) return sign | 0x7c00;
  if (a < 0x1p-14) return sign | static_cast<uint16_t>(std::nearbyint(a * 0x1p24));
  const int e = std::ilogb(a);
  const auto m = static_cast<uint32_t>(std::nearbyint(std::ldexp(a, 10 - e)));  // 1024 .. 2048
  return sign | static_cast<uint16_t>((static_cast<uint32_t>(e + 15) << 10) + (m - 1024));
}
void put(const Sum& sum, int64_t i, double v) {
  switch (sum.dtype) {
    case DType::float32: static_cast<float*>(sum.data)[i] = static_cast<float>(v); break;
    case DType::float64: static_cast<double*>(sum.data)[i] = v; break;
    case DType::bfloat16: static_cast<uint16_t*>(sum.data)[i] = to_bfloat16(v); break;
    case DType::float16: static_cast<uint16_t*>(sum.data)[i] = to_half(v); break;
  }
}

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
      for (int64_t c = 0, i = 0; c < s.channels; ++c) {
        const C value = static_cast<C>(value_at(v, c));
        for (int64_t k = 0; k < s.inner; ++k) pattern_[i++] = value;
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

// ---- when a second thread, and when a store past the caches, pay ----------------------------------------------------

int64_t grain_of(const Activation& a) { return a.masked ? 65536 : 16384; }

bool beyond_cache(int64_t bytes) {
  static const int64_t last_level = [] {
    long size = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? static_cast<int64_t>(size) : int64_t{32} << 20;
  }();
  return bytes >= last_level;
}

int64_t size_of(DType t) { return t == DType::float64 ? 8 : t == DType::float32 ? 4 : 2; }

template <class F>
void parallel(const Parallel& p, int64_t count, int64_t grain, F f) {
  if (count <= grain || !p.run) return f(int64_t{0}, count);
  p.run(count, grain, &f, [](void* c, int64_t begin, int64_t end) { (*static_cast<F*>(c))(begin, end); });
}

// Where a run adds its terms up, one per element; null if nobody asked.
template <class C>
struct Sums {
  C* bias = nullptr;
  C* weight = nullptr;
};

// ---- elementwise: any cut will do -----------------------------------------------------------------------------------

// Calls run(met, sums, begin, count, 1) for every run of elements.
template <class C, class Run>
void for_elements(const Rows& rows, const Operands<C>& operands, const Parallel& p, int64_t grain, Run run) {
  constexpr int64_t block = 512;  // keeps the cuts on whole packs and whole bytes of a mask
  parallel(p, (rows.numel + block - 1) / block, std::max<int64_t>(1, grain / block), [&](int64_t first, int64_t last) {
    typename Operands<C>::Met met;
    int64_t at = first * block;
    const int64_t end = std::min(last * block, rows.numel);
    while (at < end) {
      const int64_t row = at / rows.length, column = at - row * rows.length;
      const int64_t count = std::min(rows.length - column, end - at);
      operands.meet(met, row, column, at);
      run(met, Sums<C>{}, at, count, int64_t{1});
      at += count;
    }
  });
}

// ---- with sums: tiles fixed by the shape ----------------------------------------------------------------------------

// Calls run(met, sums, begin, count, rows): up to `together` rows at once. Rows run in chunks, and within them in blocks of
// block_rows whose sums are kept in the compute type; then in float64.
constexpr int64_t block_rows = 64, strip = 4096, most_chunks = 32;

struct Wanted {
  Sum sum;
  bool one;  // summed over the channels too
};

// Adds up `partial` [chunks, length] per channel.
void fold(const Wanted& wanted, const Shape& s, const Rows& rows, int64_t chunks, int64_t length,
          const std::vector<double>& partial) {
  const int64_t outputs = wanted.one ? 1 : s.channels;
  std::vector<double> total(outputs, 0.0);
  if (rows.along) {
    std::vector<double> column(partial.begin(), partial.begin() + length);
    for (int64_t k = 1; k < chunks; ++k)
      for (int64_t j = 0; j < length; ++j) column[j] += partial[k * length + j];
    for (int64_t j = 0; j < length;)
      for (int64_t c = 0; c < s.channels && j < length; ++c)
        for (int64_t k = 0; k < s.inner && j < length; ++k) total[wanted.one ? 0 : c] += column[j++];
  } else {
    for (int64_t row = 0; row < rows.count; ++row)
      for (int64_t k = 0; k < chunks; ++k) total[wanted.one ? 0 : row % s.channels] += partial[row * chunks + k];
  }
  for (int64_t c = 0; c < outputs; ++c) put(wanted.sum, c, total[c]);
}

template <class C, class Run>
void for_tiles(const Shape& s, const Rows& rows, const Operands<C>& operands, const Parallel& p, int64_t grain,
               const Wanted (&wanted)[2], int64_t together, Run run) {
  using Met = typename Operands<C>::Met;
  const bool ask[2] = {wanted[0].sum.data != nullptr, wanted[1].sum.data != nullptr};
  std::vector<double> partial[2];  // [chunks, length], or one per piece
  auto cleared = [&](auto& sums, int64_t count) {
    for (int i = 0; i < 2; ++i)
      if (ask[i]) std::fill_n(sums[i], count, C(0));
    return Sums<C>{ask[0] ? sums[0] : nullptr, ask[1] ? sums[1] : nullptr};
  };

  if (rows.along) {
    const int64_t strips = (rows.length + strip - 1) / strip;
    const int64_t chunk_rows =
        std::max((rows.count + most_chunks - 1) / most_chunks + block_rows - 1, block_rows) / block_rows * block_rows;
    const int64_t chunks = (rows.count + chunk_rows - 1) / chunk_rows;
    for (int i = 0; i < 2; ++i)
      if (ask[i]) partial[i].assign(chunks * rows.length, 0.0);
    const int64_t tile = std::min(chunk_rows, rows.count) * std::min(strip, rows.length);
    parallel(p, chunks * strips, std::max<int64_t>(1, grain / tile), [&](int64_t first, int64_t last) {
      Met met;
      C sums[2][strip];
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t chunk = unit / strips, column = unit % strips * strip;
        const int64_t width = std::min(strip, rows.length - column);
        const int64_t end = std::min((chunk + 1) * chunk_rows, rows.count);
        for (int64_t start = chunk * chunk_rows; start < end; start += block_rows) {
          const Sums<C> into = cleared(sums, width);
          const int64_t stop = std::min(start + block_rows, end);
          for (int64_t row = start, taken; row < stop; row += taken) {
            const int64_t at = row * rows.length + column, count = std::min(width, rows.numel - at);
            if (count <= 0) break;
            // The last row may be short: it goes alone.
            taken = std::min(together, stop - row);
            if (at + (taken - 1) * rows.length + count > rows.numel) taken = 1;
            operands.meet(met, row, column, at);
            run(met, into, at, count, taken);
          }
          for (int i = 0; i < 2; ++i)
            for (int64_t j = 0; ask[i] && j < width; ++j) partial[i][chunk * rows.length + column + j] += sums[i][j];
        }
      }
    });
    for (int i = 0; i < 2; ++i)
      if (ask[i]) fold(wanted[i], s, rows, chunks, rows.length, partial[i]);
    return;
  }

  // Values stand still on a row: cut it into pieces, and each piece into blocks of a few columns summed together.
  constexpr int64_t piece = 16384, columns = 512;
  const int64_t pieces = (rows.length + piece - 1) / piece;
  for (int i = 0; i < 2; ++i)
    if (ask[i]) partial[i].assign(rows.count * pieces, 0.0);
  const int64_t tile = std::min(piece, rows.length);
  parallel(p, rows.count * pieces, std::max<int64_t>(1, grain / tile), [&](int64_t first, int64_t last) {
    Met met;
    C sums[2][columns];
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t row = unit / pieces, start = unit % pieces * piece;
      const int64_t end = std::min(start + piece, rows.length);
      const Sums<C> into = cleared(sums, columns);
      for (int64_t column = start; column < end; column += columns) {
        const int64_t at = row * rows.length + column;
        operands.meet(met, row, column, at);
        run(met, into, at, std::min(columns, end - column), int64_t{1});
      }
      for (int i = 0; i < 2; ++i)
        for (int64_t j = 0; ask[i] && j < columns; ++j) partial[i][unit] += sums[i][j];
    }
  });
  for (int i = 0; i < 2; ++i)
    if (ask[i]) fold(wanted[i], s, rows, pieces, rows.length, partial[i]);
}

// ---- storage and compute types --------------------------------------------------------------------------------------

const char* offset(const void* p, int64_t elements, DType t) {
  return static_cast<const char*>(p) + elements * size_of(t);
}
char* offset(void* p, int64_t elements, DType t) { return static_cast<char*>(p) + elements * size_of(t); }

Lane advanced(Lane lane, int64_t elements, int64_t size) {
  if (lane.step) lane.values = static_cast<const char*>(lane.values) + elements * size;
  return lane;
}

// Elements of one dtype seen in the compute type C: in place if they are the same, else a block at a time through
// buffers that stay in the first-level cache.
template <class C, int inputs, int outputs>
class Blocks {
 public:
  explicit Blocks(DType dtype)
      : dtype_(dtype),
        widen_(kernels().widen[static_cast<int>(dtype)][sizeof(C) == 8]),
        narrow_(kernels().narrow[static_cast<int>(dtype)][sizeof(C) == 8]) {}

  // Calls body(inputs, outputs, done, count, stream), of C, until `count` elements from `at` on are done.
  template <class Body>
  void over(const void* const (&in)[inputs], void* const (&out)[outputs], int64_t at, int64_t count, bool stream,
            Body body) const {
    const void* from[inputs];
    void* to[outputs];
    if (!widen_) {
      for (int k = 0; k < inputs; ++k) from[k] = in[k] ? offset(in[k], at, dtype_) : nullptr;
      for (int k = 0; k < outputs; ++k) to[k] = offset(out[k], at, dtype_);
      return body(from, to, int64_t{0}, count, stream);
    }
    constexpr int64_t block = 512;
    alignas(64) C wide[inputs + outputs][block];
    for (int64_t done = 0; done < count; done += block) {
      const int64_t n = std::min(block, count - done);
      for (int k = 0; k < inputs; ++k) {
        from[k] = wide[k];
        if (in[k]) widen_(offset(in[k], at + done, dtype_), wide[k], n, false);
      }
      for (int k = 0; k < outputs; ++k) to[k] = wide[inputs + k];
      body(from, to, done, n, false);
      for (int k = 0; k < outputs; ++k) narrow_(to[k], offset(out[k], at + done, dtype_), n, stream);
    }
  }

  bool converts() const { return widen_ != nullptr; }

 private:
  DType dtype_;
  Convert widen_, narrow_;
};

// ---- the three passes -----------------------------------------------------------------------------------------------

bool per_channel(const Vector& v) { return v.extent == Extent::channel; }

template <class C>
void run_forward(const Activation& a, const ForwardArgs& args) {
  const Rows rows = rows_of(args.shape, per_channel(args.bias) || per_channel(args.weight));
  const Operands<C> operands(args.bias, args.weight, args.shape, rows);
  const bool stream = args.x != args.y && beyond_cache(rows.numel * size_of(args.dtype));
  const Blocks<C, 1, 1> blocks(args.dtype);
  const auto kernel = kernels().forward[a.index][sizeof(C) == 8];
  for_elements(
      rows, operands, args.parallel, grain_of(a), [&](const auto& met, auto, int64_t at, int64_t count, int64_t) {
        blocks.over({args.x}, {args.y}, at, count, stream,
                    [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
                      kernel({n, in[0], advanced(met.bias, done, sizeof(C)), advanced(met.weight, done, sizeof(C)),
                              &args.scalars, out[0], args.mask, at + done, past});
                    });
      });
}

template <class C>
void run_backward(const Activation& a, const BackwardArgs& args) {
  const bool from_mask = args.saved_kind == Saved::mask;
  const bool channels = per_channel(args.bias) || per_channel(args.weight) || args.grad_bias.data;
  const Rows rows = rows_of(args.shape, channels);
  const Operands<C> operands(args.saved_kind == Saved::input ? args.bias : Vector{}, args.weight, args.shape, rows);
  const bool stream =
      args.grad != args.grad_x && args.saved != args.grad_x && beyond_cache(rows.numel * size_of(args.dtype));
  const Blocks<C, 2, 1> blocks(args.dtype);
  const auto kernel = kernels().backward[static_cast<int>(args.saved_kind)][a.index][sizeof(C) == 8];
  const auto* mask = from_mask ? static_cast<const uint8_t*>(args.saved) : nullptr;
  auto run = [&](const auto& met, Sums<C> sums, int64_t at, int64_t count, int64_t together) {
    blocks.over({args.grad, from_mask ? nullptr : args.saved}, {args.grad_x}, at, count, stream,
                [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
                  kernel({n, together, rows.length, in[0], in[1], mask, at + done, advanced(met.bias, done, sizeof(C)),
                          advanced(met.weight, done, sizeof(C)), &args.scalars, out[0],
                          sums.bias ? sums.bias + done : nullptr, sums.weight ? sums.weight + done : nullptr, past});
                });
  };
  if (!args.grad_bias.data && !args.grad_weight.data)
    return for_elements(rows, operands, args.parallel, grain_of(a), run);
  const Wanted wanted[2] = {{args.grad_bias, false}, {args.grad_weight, args.weight.extent != Extent::channel}};
  // Where elements are neither converted nor met one by one, two rows share each load and store of a sum. (Four rows a
  // power of two apart would fight for the first-level cache: 1.06 ns per element instead of 0.57, relu.)
  const bool alone = blocks.converts() || args.weight.extent == Extent::full;
  for_tiles(args.shape, rows, operands, args.parallel, grain_of(a), wanted, alone ? 1 : 2, run);
}

void run_double_backward(const Activation& a, const DoubleBackwardArgs& args) {
  using C = double;
  const Rows rows = rows_of(args.shape, per_channel(args.bias) || args.grad_bias.data);
  const Operands<C> operands(args.saved_kind == Saved::input ? args.bias : Vector{}, Vector{}, args.shape, rows);
  const bool stream = beyond_cache(rows.numel * size_of(args.dtype));
  const Blocks<C, 3, 2> blocks(args.dtype);
  const auto kernel = kernels().double_backward[static_cast<int>(args.saved_kind)][a.index][1];
  auto run = [&](const auto& met, Sums<C> sums, int64_t at, int64_t count, int64_t) {
    blocks.over({args.u, args.grad, args.saved}, {args.grad_grad, args.grad_x}, at, count, stream,
                [&](auto& in, auto& out, int64_t done, int64_t n, bool past) {
                  kernel({n, in[0], in[1], in[2], advanced(met.bias, done, sizeof(C)), &args.scalars, out[0], out[1],
                          sums.bias ? sums.bias + done : nullptr, past});
                });
  };
  if (!args.grad_bias.data) return for_elements(rows, operands, args.parallel, grain_of(a), run);
  const Wanted wanted[2] = {{args.grad_bias, false}, {}};
  for_tiles(args.shape, rows, operands, args.parallel, grain_of(a), wanted, 1, run);
}

void zero(const Sum& sum, int64_t count) {
  for (int64_t i = 0; sum.data && i < count; ++i) put(sum, i, 0.0);
}

int64_t channels_of(const Vector& weight, const Shape& s) { return weight.extent == Extent::channel ? s.channels : 1; }

bool computed_in_double(const Activation& a, DType t) { return t == DType::float64 || a.wide; }

}  // namespace

void forward(const Activation& a, const ForwardArgs& args) {
  const int64_t n = args.shape.numel();
  if (n == 0) return;
  if (args.mask) std::memset(args.mask, 0, mask_bytes(n));
  computed_in_double(a, args.dtype) ? run_forward<double>(a, args) : run_forward<float>(a, args);
}

void backward(const Activation& a, const BackwardArgs& args) {
  if (args.shape.numel() == 0) {
    zero(args.grad_bias, args.shape.channels);
    zero(args.grad_weight, channels_of(args.weight, args.shape));
    return;
  }
  computed_in_double(a, args.dtype) ? run_backward<double>(a, args) : run_backward<float>(a, args);
}

void double_backward(const Activation& a, const DoubleBackwardArgs& args) {
  if (args.shape.numel() == 0) return zero(args.grad_bias, args.shape.channels);
  run_double_backward(a, args);
}

}  // namespace fusedact::cpu
