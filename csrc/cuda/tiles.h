// How a dense tensor is cut into units of work for blocks of threads. Fixed by the shape and the dtype alone, never by the
// device, so that sums have the same bits everywhere.
//
// A tensor is rows of `length` elements. Either a row has one channel (the channel stands still: NCHW, or no channels at
// all), or every column has one (`along`: Linear, channels_last, or short inner dims). A thread owns `per_thread`
// consecutive columns and goes through them in steps of `pitch` elements: along a piece of one row where the channel
// stands still, from row to row where it does not. So nothing divides inside a step.
//
// Knows no activation, no CUDA syntax and no torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "../kernels.h"

namespace fusedact::cuda {

inline constexpr uint32_t block_threads = 256;

struct Tiles {
  int64_t numel = 0, length = 0, rows = 0;  // the last row may be short where `along`
  uint32_t channels = 1, inner = 1;  // where `along`: column j has channel j / inner % channels; else row % channels
  uint32_t units = 0, across = 1;    // a unit is [group of rows][tile of columns], `across` tiles in a row
  uint32_t chunk = 1;                // rows of a group, where `along`
  uint32_t pitch = 0, steps = 1;
  uint32_t log_lanes = 8;  // 256 threads side by side in a row, or 32 in each of 8 rows
  bool along = false;
  bool aligned = false;  // 16-byte loads and stores are possible wherever a thread's columns start
  uint8_t rest[6] = {};  // no byte of a kernel's argument is left to chance: who looks for pointers in it finds none

  constexpr uint32_t lanes() const { return 1u << log_lanes; }
  constexpr uint32_t lines() const { return block_threads >> log_lanes; }
  // Sums of units: [groups, length] where `along`, else [rows, across].
  int64_t groups() const { return units / across; }
  int64_t partials() const { return along ? groups() * length : rows * across; }
};

// What the kernel asks of a cut.
struct Wish {
  int per_thread;            // elements that a thread takes at once
  bool channels = false;     // something runs along the channels
  bool sums = false;         // something is summed over all but the channels
  bool whole_bytes = false;  // eight consecutive elements from a multiple of 8 belong to one row: a mask's bytes
};

// Some for every multiprocessor, several times over. A test makes it small, so that units are long in small tensors too.
#if !defined(FUSEDACT_ENOUGH_UNITS)
#define FUSEDACT_ENOUGH_UNITS 2048
#endif
inline constexpr int64_t enough_units = FUSEDACT_ENOUGH_UNITS;

inline Tiles cut(const Shape& s, const Wish& wish) {
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t e = wish.per_thread, grain = wish.whole_bytes ? std::max<int64_t>(e, 8) : e;
  Tiles t;
  t.numel = s.numel();
  t.channels = static_cast<uint32_t>(s.channels);

  // A row of odd length cannot be read 16 bytes at a time from its start; several together can. Where they are few and long,
  // sums of whole columns would be as large as the tensor: then it stands still all the same, element by element.
  const bool fits = s.inner % grain == 0 && s.inner >= 128;
  const bool few = s.inner >= 1024 && s.outer < 8 && wish.sums && !wish.whole_bytes;
  t.along = wish.channels && !fits && !few && s.inner < (1 << 20);
  if (!t.along) {
    t.length = wish.channels ? s.inner : t.numel;
    t.rows = wish.channels ? s.outer * s.channels : 1;
    if (!wish.channels) t.channels = 1;
    t.log_lanes = t.length < block_threads * e && t.rows > 1 ? 5 : 8;
    const int64_t width = t.lanes() * e, most = std::min<int64_t>(8, up(t.length, width));
    t.steps = static_cast<uint32_t>(
        std::clamp<int64_t>(wish.sums ? most : t.numel / (block_threads * e * enough_units), 1, most));
    t.across = static_cast<uint32_t>(up(t.length, width * t.steps));
    t.units = static_cast<uint32_t>(up(t.rows, t.lines()) * t.across);
    t.pitch = static_cast<uint32_t>(width);
    t.aligned = t.rows == 1 || t.length % e == 0;
    return t;
  }

  // Several periods in a row, so that it is a whole number of packs, and of tiles if that costs little.
  const int64_t period = s.channels * s.inner, tile = 32 * e;
  int64_t together = grain / std::gcd(period, grain);
  if (period * together < 8 * tile) {
    const int64_t exact = tile / std::gcd(period, tile);
    together = exact * 8 <= s.outer ? exact : together * up(8 * tile, period * together);
  }
  t.inner = static_cast<uint32_t>(s.inner);
  t.length = period * together;
  t.rows = up(t.numel, t.length);
  t.log_lanes = t.rows < 8 ? 8 : 5;
  t.across = static_cast<uint32_t>(up(t.length, t.lanes() * e));
  const int64_t lines = t.lines(), spread = up(t.rows * t.across, enough_units);
  int64_t chunk = wish.sums ? std::clamp<int64_t>(spread, 32, 512) : std::min<int64_t>(spread, 64);
  chunk = up(std::clamp<int64_t>(chunk, 1, t.rows), lines) * lines;
  if (chunk / lines * lines * t.length > INT32_MAX) chunk = lines;  // steps stay within 32 bits
  t.chunk = static_cast<uint32_t>(chunk);
  t.steps = static_cast<uint32_t>(chunk / lines);
  t.pitch = t.steps > 1 ? static_cast<uint32_t>(lines * t.length) : 0;
  t.units = static_cast<uint32_t>(up(t.rows, chunk) * t.across);
  t.aligned = true;
  return t;
}

}  // namespace fusedact::cuda
