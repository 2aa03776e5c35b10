// The passes of the epilogue over a whole tensor. Blocks of elements go through the first-level cache: scale, the
// activation's own run, dropout, residual; memory is read and written once.
//
// Knows no SIMD and no torch.
#include "epilogue.h"

#include <numeric>

#include "blocks.h"
#include "isa.h"
#include "tiles.h"

namespace fusedact::cpu {
namespace {

const EpilogueKernels& epilogue_runs() {
  static const EpilogueKernels runs = FUSEDACT_OF_ISA(epilogue_kernels)();
  return runs;
}

constexpr int64_t block = 512, grain = 16384;

bool present(const Vector& v) { return v.extent != Extent::none; }
bool per_channel(const Vector& v) { return v.extent == Extent::channel; }

// Rows of which half a dozen vectors' patterns fit in the first-level cache, still of whole packs. (Batch normalisation of
// 64 channels, channels_last: with rows of 4096 its backward took a third longer.)
Rows short_rows_of(const Shape& s, bool per_channel) {
  Rows rows = rows_of(s, per_channel);
  const int64_t whole = std::lcm(s.channels * s.inner, int64_t{lane_count});
  if (!rows.along || rows.length <= block || whole > block) return rows;
  rows.length = block / whole * whole;
  rows.count = (rows.numel + rows.length - 1) / rows.length;
  return rows;
}

// Elements of one dtype seen in the compute type C: in place if they are the same, else through a buffer of a block.
template <class C>
class Storage {
 public:
  explicit Storage(DType dtype)
      : dtype_(dtype),
        widen_(kernels().widen[static_cast<int>(dtype)][sizeof(C) == 8]),
        narrow_(kernels().narrow[static_cast<int>(dtype)][sizeof(C) == 8]) {}

  const C* read(const void* p, int64_t at, int64_t count, C* buffer) const {
    const void* from = offset(p, at, dtype_);
    if (!widen_) return static_cast<const C*>(from);
    widen_(from, buffer, count, false);
    return buffer;
  }
  // Where a result is to be computed, before `put`.
  C* place(void* p, int64_t at, C* buffer) const {
    return narrow_ ? buffer : reinterpret_cast<C*>(offset(p, at, dtype_));
  }
  void put(void* p, int64_t at, int64_t count, const C* buffer, bool stream) const {
    if (narrow_) narrow_(buffer, offset(p, at, dtype_), count, stream);
  }
  bool converts() const { return narrow_ != nullptr; }

 private:
  DType dtype_;
  Convert widen_, narrow_;
};

// One vector per channel, as it meets a run of elements.
template <class C>
class Along {
 public:
  Along(const Vector& v, const Shape& s, const Rows& rows, C neutral)
      : operand_(v, s, rows, neutral), rows_(rows), present_(present(v)) {}
  bool given() const { return present_; }
  Lane at(int64_t flat, C (&lane)[lane_count]) const {
    return operand_.at(flat / rows_.length, flat % rows_.length, flat, lane);
  }

 private:
  Operand<C> operand_;
  Rows rows_;
  bool present_;
};

// Dropout's factors for a block: computed into `buffer`, or where they lie.
template <class C>
const C* factors(const Dropout& dropout, int64_t at, int64_t count, C* buffer) {
  if (dropout.source == Dropout::Source::mask) return static_cast<const C*>(dropout.mask) + at;
  epilogue_runs().mask[sizeof(C) == 8]({&dropout, at, count, buffer});
  return buffer;
}

template <class C>
void run_epilogue(const Activation& a, const EpilogueArgs& args) {
  constexpr bool wide = sizeof(C) == 8;
  const Rows rows =
      short_rows_of(args.shape, per_channel(args.bias) || per_channel(args.weight) || present(args.scale));
  const Operands<C> operands(args.bias, args.weight, args.shape, rows);
  const Along<C> scale(args.scale, args.shape, rows, C(1));
  const bool drops = args.dropout.source != Dropout::Source::none, finishes = drops || args.residual;
  const bool stream = beyond_cache(rows.numel * size_of(args.dtype));
  const Storage<C> storage(args.dtype);
  const auto activate = kernels().forward[a.index][wide];
  const EpilogueKernels& own = epilogue_runs();
  C one[lane_count], nothing[lane_count];
  std::fill_n(one, lane_count, C(1));
  std::fill_n(nothing, lane_count, C(-0.0));  // x + (-0) is x for every x
  for_elements(rows, operands, args.parallel, grain, [&](const auto& met, auto, int64_t first, int64_t count, int64_t) {
    alignas(64) C buffers[5][block];
    C scale_lane[lane_count];
    const Lane scales = scale.given() ? scale.at(first, scale_lane) : Lane{};
    for (int64_t done = 0; done < count; done += block) {
      const int64_t at = first + done, n = std::min(block, count - done);
      const bool past = stream && !storage.converts();
      const C* v = storage.read(args.x, at, n, buffers[0]);
      C* y = storage.place(args.y, at, buffers[1]);
      if (scale.given()) {
        own.multiply[wide]({n, v, advanced(scales, done, sizeof(C)), buffers[2]});
        v = buffers[2];
      }
      C* active = finishes ? buffers[2] : y;
      activate({n, v, advanced(met.bias, done, sizeof(C)), advanced(met.weight, done, sizeof(C)), &args.scalars, active,
                nullptr, 0, past && !finishes});
      if (finishes) {
        const Lane mask = drops ? Lane{factors(args.dropout, at, n, buffers[3]), 1} : Lane{one, 0};
        const Lane residual =
            args.residual ? Lane{storage.read(args.residual, at, n, buffers[4]), 1} : Lane{nothing, 0};
        own.finish[wide]({n, active, mask, residual, y, past});
      }
      storage.put(args.y, at, n, y, stream);
    }
  });
}

template <class C>
void run_epilogue_backward(const Activation& a, const EpilogueBackwardArgs& args) {
  constexpr bool wide = sizeof(C) == 8;
  const bool sums = args.grad_bias.data || args.grad_scale.data || args.grad_weight.data;
  const bool channels = per_channel(args.bias) || per_channel(args.weight) || present(args.scale) ||
                        args.grad_bias.data || args.grad_scale.data || present(args.slope);
  const Rows rows = short_rows_of(args.shape, channels);
  const Operands<C> operands(args.x ? args.bias : Vector{}, args.weight, args.shape, rows);
  const Along<C> scale(args.scale, args.shape, rows, C(1)), center(args.center, args.shape, rows, C(0)),
      slope(args.slope, args.shape, rows, C(0)), offset(args.offset, args.shape, rows, C(0));
  const bool drops = args.dropout.source != Dropout::Source::none;
  const bool gathers = scale.given() || slope.given() || args.grad_scale.data;
  const bool stream = args.grad != args.grad_x && beyond_cache(rows.numel * size_of(args.dtype));
  const Storage<C> storage(args.dtype);
  // Where f' is constant, x is not needed: the slope from an output, of which nothing is read, is the same.
  const Saved kind = args.x ? Saved::input : Saved::output;
  const auto differentiate = kernels().backward[static_cast<int>(kind)][a.index][wide];
  const EpilogueKernels& own = epilogue_runs();
  auto run = [&](const auto& met, Sums<C> into, int64_t first, int64_t count, int64_t) {
    alignas(64) C buffers[6][block];
    C lanes[4][lane_count];
    Lane scales, centers, slopes, offsets;
    if (gathers) {
      scales = scale.at(first, lanes[0]);
      centers = center.at(first, lanes[1]);
      if (slope.given()) {
        slopes = slope.at(first, lanes[2]);
        offsets = offset.at(first, lanes[3]);
      }
    }
    for (int64_t done = 0; done < count; done += block) {
      const int64_t at = first + done, n = std::min(block, count - done);
      auto here = [&](Lane lane) { return advanced(lane, done, sizeof(C)); };
      const bool past = stream && !storage.converts();
      const C* g = storage.read(args.grad, at, n, buffers[0]);
      const C* x = args.x ? storage.read(args.x, at, n, buffers[1]) : nullptr;
      if (drops) {
        own.multiply[wide]({n, g, {factors(args.dropout, at, n, buffers[3]), 1}, buffers[2]});
        g = buffers[2];
      }
      const C* v = x;
      if (x && scale.given()) {
        own.multiply[wide]({n, x, here(scales), buffers[3]});
        v = buffers[3];
      }
      C* grad_x = args.grad_x ? storage.place(args.grad_x, at, buffers[4]) : nullptr;
      C* r = !grad_x || (gathers && !args.raw) ? buffers[5] : grad_x;
      C* second = into.weight ? into.weight + done : nullptr;
      differentiate({n, 1, 0, g, x ? v : g, nullptr, 0, here(met.bias), here(met.weight), &args.scalars, r,
                     into.bias ? into.bias + done : nullptr, args.grad_scale.data ? nullptr : second,
                     past && r == grad_x});
      if (gathers)
        own.gather[wide]({n, r, x, here(scales), here(centers), here(slopes), here(offsets),
                          args.raw ? nullptr : grad_x, args.grad_scale.data ? second : nullptr, past});
      if (grad_x) storage.put(args.grad_x, at, n, grad_x, stream);
    }
  };
  if (!sums) return for_elements(rows, operands, args.parallel, grain, run);
  const Wanted of_weight{args.grad_weight, args.weight.extent != Extent::channel}, of_scale{args.grad_scale, false};
  const Wanted wanted[2] = {{args.grad_bias, false}, args.grad_scale.data ? of_scale : of_weight};
  for_tiles(args.shape, rows, operands, args.parallel, grain, wanted, 1, run);
}

bool computed_in_double(const Activation& a, DType t) { return t == DType::float64 || a.wide; }

}  // namespace

void epilogue(const Activation& a, const EpilogueArgs& args) {
  if (args.shape.numel() == 0) return;
  computed_in_double(a, args.dtype) ? run_epilogue<double>(a, args) : run_epilogue<float>(a, args);
}

void epilogue_backward(const Activation& a, const EpilogueBackwardArgs& args) {
  if (args.shape.numel() == 0) {
    zero(args.grad_bias, args.shape.channels);
    zero(args.grad_scale, args.shape.channels);
    zero(args.grad_weight, per_channel(args.weight) ? args.shape.channels : 1);
    return;
  }
  computed_in_double(a, args.dtype) ? run_epilogue_backward<double>(a, args) : run_epilogue_backward<float>(a, args);
}

void dropout_mask(const Dropout& dropout, DType dtype, void* mask, int64_t count, const Parallel& p) {
  const auto run = epilogue_runs().mask[dtype == DType::float64];
  parallel(p, count, grain,
           [&](int64_t begin, int64_t end) { run({&dropout, begin, end - begin, offset(mask, begin, dtype)}); });
}

void moments(const MomentsArgs& args) {
  using C = double;
  const Rows rows = short_rows_of(args.shape, true);
  const Operands<C> operands({args.shift, DType::float64, Extent::channel}, {}, args.shape, rows);
  const auto add = epilogue_runs().moments[static_cast<int>(args.dtype)];
  const Wanted wanted[2] = {{{args.sum, DType::float64}, false}, {{args.square, DType::float64}, false}};
  for_tiles(args.shape, rows, operands, args.parallel, grain, wanted, block_rows,
            [&](const auto& met, Sums<C> into, int64_t at, int64_t count, int64_t together) {
              add({count, together, rows.length, offset(args.x, at, args.dtype), met.bias, into.bias, into.weight});
            });
}

}  // namespace fusedact::cpu
