// How rows are cut for threads and caches, and how what is summed over all but the channels is added up. Fixed by the
// shape alone, so that the bits do not depend on the number of threads.
//
// Knows no activation, no SIMD and no torch.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>

#include "isa.h"
#include "rows.h"

namespace fusedact::cpu {

// ---- when a second thread, and when a store past the caches, pay ----------------------------------------------------

// What of the last-level cache one core can count on. The kernel knows what is near it; the C library adds up a whole socket (384
// MiB for 32). A cache that all cores of a socket share is the other cores', too: with 260 MiB, results of 32 MiB and more took
// twice as long as past it.
inline int64_t last_level_cache() {
  constexpr int64_t most = int64_t{32} << 20;
  long size = 0;
  if (std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size"); file >> size)
    return std::min(int64_t{size} << 10, most);
#if defined(_SC_LEVEL3_CACHE_SIZE)
  size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  return size > 0 ? std::min(static_cast<int64_t>(size), most) : most;
}
// Whether results are stored past the caches: no line is read before it is written then, and none that is in use is pushed out.
// What a single tensor is made into goes there if it is larger than the cache. With `touched`, all that a pass reads (two
// tensors and more) and writes: already from half the cache on, if a store is a whole line (with AVX-512 a tenth to a third
// faster, and steps of whole models no slower; with stores of half a line 5 to 30 % slower).
inline bool beyond_cache(int64_t written, int64_t touched = 0) {
  static const int64_t last_level = last_level_cache();
  static const bool whole_lines = isa() == Isa::avx512;
  return written >= last_level || (whole_lines && 2 * touched >= last_level);
}
// Whether runs that read several tensors ask for their lines ahead of time: beyond the second-level cache, where processors
// that recognise one stream lose track of two.
inline bool worth_fetching(int64_t bytes) { return bytes >= int64_t{1} << 20; }

template <class F>
void parallel(const Parallel& p, int64_t count, int64_t grain, F f) {
  auto finished = [&f](int64_t begin, int64_t end) {
    f(begin, end);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // what was stored past the caches is there, too
  };
  if (count <= grain || !p.run) return finished(int64_t{0}, count);
  p.run(count, grain, &finished,
        [](void* c, int64_t begin, int64_t end) { (*static_cast<decltype(finished)*>(c))(begin, end); });
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
inline constexpr int64_t block_rows = 64, strip = 4096, most_chunks = 32;
// Where values stand still on a row, it is cut into pieces.
inline constexpr int64_t piece = 16384;

inline int64_t chunk_rows_of(const Rows& rows) {
  return std::max((rows.count + most_chunks - 1) / most_chunks + block_rows - 1, block_rows) / block_rows * block_rows;
}

struct Wanted {
  Sum sum;
  bool one;  // summed over the channels too
};

template <class C>
void add_up(double* to, const C* from, int64_t count) {
  for (int64_t j = 0; j < count; ++j) to[j] += from[j];
}

// Adds up `partial` [chunks, length] per channel; what it holds then is of no use any more.
inline void fold(const Wanted& wanted, const Shape& s, const Rows& rows, int64_t chunks, int64_t length,
                 std::vector<double>& partial) {
  const int64_t outputs = wanted.one ? 1 : s.channels;
  std::vector<double> total;
  if (rows.along) {
    double* const column = partial.data();
    for (int64_t k = 1; k < chunks; ++k) add_up(column, &partial[k * length], length);
    if (length == outputs && s.inner == 1) return put(wanted.sum, column, outputs);
    total.assign(outputs, 0.0);
    for (int64_t j = 0; j < length;)
      for (int64_t c = 0; c < s.channels && j < length; ++c)
        for (int64_t k = 0; k < s.inner && j < length; ++k) total[wanted.one ? 0 : c] += column[j++];
  } else {
    total.assign(outputs, 0.0);
    for (int64_t row = 0; row < rows.count; ++row)
      for (int64_t k = 0; k < chunks; ++k) total[wanted.one ? 0 : row % s.channels] += partial[row * chunks + k];
  }
  put(wanted.sum, total.data(), outputs);
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
    const int64_t chunk_rows = chunk_rows_of(rows);
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
            if (ask[i]) add_up(&partial[i][chunk * rows.length + column], sums[i], width);
        }
      }
    });
    for (int i = 0; i < 2; ++i)
      if (ask[i]) fold(wanted[i], s, rows, chunks, rows.length, partial[i]);
    return;
  }

  // Each piece in blocks of a few columns summed together.
  constexpr int64_t columns = 512;
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

}  // namespace fusedact::cpu
