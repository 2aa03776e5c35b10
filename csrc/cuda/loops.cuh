// What the kernels share: where a thread of a unit works, the vectors that meet its elements, gain and clamp, the bits of a
// mask, and the sums of a unit.
//
// Knows the shape of an activation's struct, but no activation by name. The arithmetic is that of activations.h, compiled
// without contraction (-fmad=false): the bits are those of the CPU but where the machine's own sin and cos come in.
#pragma once

#include <array>

#include "../activations.h"
#include "pack.cuh"
#include "tables.h"

namespace fusedact::cuda {

template <class F>
struct value_of;
template <template <class> class A, class V>
struct value_of<A<V>> {
  using type = V;
};
template <template <class> class A>
constexpr bool has_weight = std::is_constructible_v<A<float>, const double*, float>;

// The type that elements stored as T are computed in.
template <template <class> class A, class T>
using compute_t = std::conditional_t<sizeof(T) == 8 || A<float>::wide, double, float>;

// Blocks that a multiprocessor must hold at once: two, and one where eight elements are computed in float64.
template <class T, class C>
constexpr int blocks_of = sizeof(C) == 8 && sizeof(T) == 2 ? 1 : 2;

constexpr unsigned warp = 32, all_lanes = ~0u;

// ---- where a thread works -------------------------------------------------------------------------------------------

struct Place {
  int64_t base;    // its first element
  int64_t column;  // ... in its row
  int64_t row;     // or the first of its rows
  int32_t limit;   // how many elements from base on are the unit's, while it steps
  int32_t whole;   // so many must be left for a pack in one access
  uint32_t steps;  // the same for a whole warp
};

template <int n>
FUSEDACT_DEVICE Place place(const Tiles& t, uint32_t unit) {
  const uint32_t lane = threadIdx.x & (t.lanes() - 1), line = threadIdx.x >> t.log_lanes;
  const uint32_t group = unit / t.across, tile = unit - group * t.across;
  const auto bounded = [](int64_t count) {
    return static_cast<int32_t>(max(int64_t{0}, min(count, int64_t{INT32_MAX - 1})));  // less than no whole pack
  };
  Place p;
  p.whole = t.aligned ? n : INT32_MAX;
  if (t.along) {
    p.column = static_cast<int64_t>(tile) * (t.lanes() * n) + lane * n;
    p.row = static_cast<int64_t>(group) * t.chunk + line;
    const int64_t end = min(t.rows, (static_cast<int64_t>(group) + 1) * t.chunk);
    p.steps = p.row < end ? static_cast<uint32_t>(end - p.row + t.lines() - 1) / t.lines() : 0;
    p.base = p.row * t.length + p.column;
    p.limit = p.column < t.length ? bounded(t.numel - p.base) : 0;  // columns beyond the row belong to the next
  } else {
    constexpr uint32_t log_n = n == 8 ? 3 : n == 4 ? 2 : 1;
    static_assert(1 << log_n == n);
    p.column = static_cast<int64_t>(tile) * (t.lanes() * n * t.steps) + lane * n;
    p.row = static_cast<int64_t>(group) * t.lines() + line;
    p.base = p.row * t.length + p.column;
    const int64_t left = p.row < t.rows ? t.length - p.column : INT64_MIN / 2;
    p.limit = bounded(left);
    const int64_t of_warp = left + lane % warp * n;  // from its first lane on
    p.steps = min(t.steps, static_cast<uint32_t>(bounded(of_warp) + t.pitch - 1) >> (t.log_lanes + log_n));
  }
  return p;
}

// Calls step(values, offset, left) for every step of the warp, with what read(offset, left) has returned; `left` elements
// are there, if any. One step ahead, so that the next loads are under way while these values are worked on.
template <class Read, class Step>
FUSEDACT_DEVICE void for_steps(const Tiles& t, const Place& p, Read read, Step step) {
  if (p.steps == 0) return;
  auto next = read(0u, p.limit);
  int32_t left = p.limit;
  for (uint32_t k = 1, at = 0;; ++k) {
    const auto values = next;
    const uint32_t here = at;
    const int32_t these = left;
    at += t.pitch;
    left -= static_cast<int32_t>(t.pitch);
    const bool more = k < p.steps;
    if (more) next = read(at, left);
    step(values, here, these);
    if (!more) return;
  }
}

// ---- what meets the elements ----------------------------------------------------------------------------------------

// The values of a vector for a thread's columns, or for its row. Where there is none, `neutral`.
template <class C, class T, int n>
FUSEDACT_DEVICE Pack<C, n> meet(const Vector& vector, const Tiles& t, const Place& p, C neutral) {
  Pack<C, n> lane{};
  if (vector.extent == Extent::channel && t.along) {
    if (p.column >= t.length) return lane;
    const bool small = t.length <= UINT32_MAX;
    const int64_t run = small ? static_cast<int64_t>(static_cast<uint32_t>(p.column) / t.inner) : p.column / t.inner;
    uint32_t within = static_cast<uint32_t>(p.column - run * t.inner);
    uint32_t channel = small ? static_cast<uint32_t>(run) % t.channels : static_cast<uint32_t>(run % t.channels);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      lane.v[i] = value_at<C, T>(vector, channel);
      if (++within == t.inner) {
        within = 0;
        if (++channel == t.channels) channel = 0;
      }
    }
    return lane;
  }
  C value = neutral;
  if (vector.extent == Extent::channel && p.row < t.rows)
    value = value_at<C, T>(vector, t.rows <= UINT32_MAX ? static_cast<uint32_t>(p.row) % t.channels
                                                        : static_cast<uint32_t>(p.row % t.channels));
  if (vector.extent == Extent::one) value = value_at<C, T>(vector, 0);
#pragma unroll
  for (int i = 0; i < n; ++i) lane.v[i] = value;
  return lane;
}

// The same where each element has a value of its own, in the compute type.
template <class C, int n>
FUSEDACT_DEVICE void meet_own(Pack<C, n>& lane, const Vector& vector, const Place& p, uint32_t at, int32_t left) {
  if (vector.extent == Extent::full) lane = load<C, n>(static_cast<const C*>(vector.data) + p.base + at, left, p.whole);
}

// ---- gain and clamp -------------------------------------------------------------------------------------------------

template <class C>
struct Epilogue {
  C gain, low, high;
  bool active, clamped;
  explicit Epilogue(const Scalars& s)
      : gain(static_cast<C>(s.gain)),
        low(static_cast<C>(s.clamped ? s.clamp_min : -infinity)),
        high(static_cast<C>(s.clamped ? s.clamp_max : infinity)),
        active(s.clamped || s.gain != 1.0),
        clamped(s.clamped) {}
  FUSEDACT_DEVICE C apply(C y) const { return at_most(at_least(y * gain, low), high); }
  // As torch.clamp: the limits pass the gradient, NaN does not.
  FUSEDACT_DEVICE bool passes(C y) const { return (y * gain >= low) & (y * gain <= high); }
};

// The functor for an element: the one made from the scalars, or one of its own.
template <bool weighted, template <class> class A, class C>
FUSEDACT_DEVICE std::conditional_t<weighted, A<C>, const A<C>&> functor(const A<C>& shared, C weight) {
  if constexpr (weighted) {
    return A<C>(nullptr, weight);
  } else {
    return shared;
  }
}
template <class F, class C>
FUSEDACT_DEVICE C gradient(const F& f, C g, C x) {
  if constexpr (requires { f.gradient(g, x); }) {
    return f.gradient(g, x);
  } else {
    return g * f.derivative(x);
  }
}
template <class F, class C>
FUSEDACT_DEVICE C gradient_from_output(const F& f, C g, C y) {
  if constexpr (requires { f.gradient_from_output(g, y); }) {
    return f.gradient_from_output(g, y);
  } else {
    return g * f.derivative_from_output(y);
  }
}

// ---- the mask -------------------------------------------------------------------------------------------------------

// n bits of each lane, n <= 8: lanes whose bits share a byte hand them to the first. The whole warp takes part. `at` is
// a multiple of n, and of 8 in the first of those lanes.
template <int n>
FUSEDACT_DEVICE void put_bits(uint8_t* mask, int64_t at, uint32_t bits, bool any) {
#pragma unroll
  for (int lanes = 1; lanes < 8 / n; lanes *= 2) bits |= __shfl_down_sync(all_lanes, bits, lanes) << (n * lanes);
  if (threadIdx.x % (8 / n) == 0 && any) mask[at / 8] = static_cast<uint8_t>(bits);
}
template <int n>
FUSEDACT_DEVICE uint32_t get_bits(const uint8_t* mask, int64_t at) {
  return mask[at / 8] >> (at % 8) & ((1u << n) - 1);
}

// ---- the sums of a unit ---------------------------------------------------------------------------------------------

// What a thread has added up, one sum per column, joined with those of the unit's other threads in a fixed order and left
// for fold(). The whole block takes part.
template <class C, int n>
FUSEDACT_DEVICE void leave_sums(C* partial, const C (&sum)[n], const Tiles& t, uint32_t unit, const Place& p,
                                C* scratch) {
  const uint32_t lane = threadIdx.x & (t.lanes() - 1), line = threadIdx.x >> t.log_lanes;
  const uint32_t group = unit / t.across, tile = unit - group * t.across;
  if (t.along) {
    const uint32_t width = t.lanes() * n;
#pragma unroll
    for (int i = 0; i < n; ++i) scratch[line * width + lane * n + i] = sum[i];
    __syncthreads();
    for (uint32_t j = threadIdx.x; j < width; j += block_threads) {
      C total = scratch[j];
      for (uint32_t l = 1; l < t.lines(); ++l) total += scratch[l * width + j];
      const int64_t column = static_cast<int64_t>(tile) * width + j;
      if (column < t.length) partial[group * t.length + column] = total;
    }
    __syncthreads();
    return;
  }
  C total = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) total += sum[i];
#pragma unroll
  for (int distance = warp / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(all_lanes, total, distance);
  if (t.lanes() > warp) {
    if (threadIdx.x % warp == 0) scratch[threadIdx.x / warp] = total;
    __syncthreads();
    if (threadIdx.x == 0)
      for (uint32_t w = 1; w < block_threads / warp; ++w) total += scratch[w];
    __syncthreads();
  }
  if (lane == 0 && p.row < t.rows) partial[p.row * t.across + tile] = total;
}

// ---- launching ------------------------------------------------------------------------------------------------------

// A block works through units that lie gridDim.x apart. More blocks than the device holds at once, so that a late one does
// not make all wait; not as many as there are units, so that what a block reads first is read seldom.
inline unsigned blocks_for(const Tiles& t) {
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return std::min(t.units, static_cast<uint32_t>(processors) * 32u);
}

// ---- the tables -----------------------------------------------------------------------------------------------------

// All activations, unless a test asks for a few: FUSEDACT_ONLY names them. The others' entries are then null.
#if defined(FUSEDACT_ONLY)
template <template <class> class A, template <class> class... B>
constexpr bool is_among(TypeList<B...>) {
  return (std::is_same_v<A<float>, B<float>> || ...);
}
template <template <class> class A>
constexpr bool built = is_among<A>(TypeList<FUSEDACT_ONLY>{});
#else
template <template <class> class A>
constexpr bool built = true;
#endif

// One entry per activation; null where it has no such form.
template <class Launch, class Launchers, template <class> class... A>
constexpr auto make_table(TypeList<A...>) {
  return std::array<Launch, sizeof...(A)>{Launchers::template of<A>()...};
}

}  // namespace fusedact::cuda
