// Softmax and log_softmax, forward and backward: rows of consecutive elements, which a warp or a block keeps in its registers
// (and reads again where they are too long), and columns side by side. The maths is that of softmax/maths.h; sums are in
// float64, in an order that the shape fixes.
#include "../softmax/kernels.h"
#include "../softmax/maths.h"
#include "drive.h"
#include "pack.cuh"

namespace fusedact::cuda {
namespace {

using namespace of_softmax;

constexpr uint32_t warp = 32, lines = block_threads / warp;
constexpr int kept = 4;  // packs of a row in a thread's registers

template <class T>
using compute = std::conditional_t<sizeof(T) == 8, double, float>;

// ---- small parts ----------------------------------------------------------------------------------------------------

struct Most {
  template <class C>
  FUSEDACT_DEVICE C operator()(C a, C b) const {
    return at_least(a, b);
  }
};
struct Plus {
  template <class C>
  FUSEDACT_DEVICE C operator()(C a, C b) const {
    return a + b;
  }
};

// Over the threads of a row: a warp, or a block, which meets at `scratch`.
template <int threads, class C, class Op>
FUSEDACT_DEVICE C over_row(C x, Op op, C* scratch) {
#pragma unroll
  for (int distance = warp / 2; distance > 0; distance /= 2) x = op(x, __shfl_xor_sync(~0u, x, distance));
  if constexpr (threads > warp) {
    if (threadIdx.x % warp == 0) scratch[threadIdx.x / warp] = x;
    __syncthreads();
    x = scratch[0];
    for (int w = 1; w < threads / static_cast<int>(warp); ++w) x = op(x, scratch[w]);
    __syncthreads();
  }
  return x;
}

// n values of the bias from `channel` on; -0 where there is none.
template <class C, class T, int n>
FUSEDACT_DEVICE Pack<C, n> biases(const Vector& v, int64_t channel, int32_t left, int32_t whole) {
  Pack<C, n> b;
  if (v.extent == Extent::none) {
#pragma unroll
    for (int i = 0; i < n; ++i) b.v[i] = C(-0.0);
  } else if (sizeof(T) == 2 && v.dtype == DType::float32) {
    const Pack<float, n> x = load<float, n>(static_cast<const float*>(v.data) + channel, left, whole);
#pragma unroll
    for (int i = 0; i < n; ++i) b.v[i] = static_cast<C>(x.v[i]);
  } else {
    const Pack<T, n> x = load<T, n>(static_cast<const T*>(v.data) + channel, left, whole);
#pragma unroll
    for (int i = 0; i < n; ++i) b.v[i] = widen<C>(x.v[i]);
  }
  return b;
}

// What an element becomes once its row's greatest and sum are known; `exact` where elements have two parts.
template <class T, bool log, class C = compute<T>>
struct Row {
  static constexpr bool exact = exact_for<T>;
  C top, power, of_top;
  bool near;
  bool plain = false;  // a logarithm that is subtracted from v itself
  Two<C> both;

  FUSEDACT_DEVICE explicit Row(C greatest) : top(greatest), power(power_of(greatest)), near(is_near(greatest)) {
    of_top = near ? weight_of<exact, true>(Two<C>{top, C(0)}, top, power)
                  : weight_of<false, false>(Two<C>{top, C(0)}, top, power);
  }
  FUSEDACT_DEVICE Two<C> element(C x, C b) const { return near ? sum_of<exact>(x, b) : sum_of<false>(x, b); }
  FUSEDACT_DEVICE C weight(Two<C> v) const {
    return near ? weight_of<exact, true>(v, top, power) : weight_of<false, false>(v, top, power);
  }
  FUSEDACT_DEVICE Terms<C> term(Two<C> v) const {
    return near ? terms<exact, true>(v, top, power, of_top) : terms<false, false>(v, top, power, of_top);
  }
  // Results are -1 or less, and what is lost of the sum does not show.
  FUSEDACT_DEVICE bool settles(double sum) const { return near && sum / static_cast<double>(of_top) >= 3; }
  FUSEDACT_DEVICE void set(double sum) {
    if constexpr (log) {
      both = sum_of_parts<C>(top, log1p(sum / static_cast<double>(of_top) - 1));
      plain = true;
    } else {
      both = inverse<C>(sum);
    }
  }
  FUSEDACT_DEVICE void set(double tops, double rest) {
    both = halves<C>(log_of(tops, rest, static_cast<double>(of_top)));
  }
  FUSEDACT_DEVICE C result(Two<C> v) const {
    if constexpr (!log) {
      return near ? times<exact>(weight(v), both) : times<false>(weight(v), both);
    } else {
      if (!near) return minus_log<false>(below<false>(v, top), both);
      if (!plain) return minus_log<exact>(below<exact>(v, top), both);
      const C d = v.hi - both.hi;
      return exact && d > C(-infinite) ? d + (v.lo - both.lo) : d;
    }
  }
  static constexpr C infinite = std::numeric_limits<C>::infinity();
};

// ---- rows -----------------------------------------------------------------------------------------------------------

struct Rows {
  int64_t count;
  int64_t channels;
  int32_t whole;  // so many elements must be left for a pack in one access
  int32_t whole_bias;
};

// Calls f(pack, column, left) for a thread's packs: those in `held`, then those that read(column, left) has.
template <int threads, int n, class P, class Read, class F>
FUSEDACT_DEVICE void over_packs(const Rows& rows, const P (&held)[kept], uint32_t lane, Read read, F f) {
#pragma unroll
  for (int k = 0; k < kept; ++k) {
    const int64_t column = (static_cast<int64_t>(k) * threads + lane) * n;
    const int64_t left = rows.channels - column;
    if (left > 0) f(held[k], column, static_cast<int32_t>(min(left, int64_t{n})));
  }
  for (int64_t column = (static_cast<int64_t>(kept) * threads + lane) * n; column < rows.channels;
       column += threads * n) {
    const auto left = static_cast<int32_t>(min(rows.channels - column, int64_t{n}));
    f(read(column, left), column, left);
  }
}
template <int threads, int n, class P, class Read>
FUSEDACT_DEVICE void hold(const Rows& rows, P (&held)[kept], uint32_t lane, Read read) {
#pragma unroll
  for (int k = 0; k < kept; ++k) {
    const int64_t column = (static_cast<int64_t>(k) * threads + lane) * n, left = rows.channels - column;
    if (left > 0) held[k] = read(column, static_cast<int32_t>(min(left, int64_t{n})));
  }
}

template <class T, bool log, int threads>
__global__ void __launch_bounds__(block_threads, 2)
    rows_kernel(const Rows rows, const T* xs, const Vector bias, T* ys) {
  using C = compute<T>;
  constexpr int n = per_thread<T>;
  __shared__ C most_scratch[lines];
  __shared__ double scratch[lines];
  const uint32_t lane = threadIdx.x % threads;
  constexpr int together = block_threads / threads;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * together + threadIdx.x / threads; row < rows.count;
       row += static_cast<int64_t>(gridDim.x) * together) {
    const T* x = xs + row * rows.channels;
    T* y = ys + row * rows.channels;
    const auto read = [&](int64_t column, int32_t left) { return load<T, n>(x + column, left, rows.whole); };
    Pack<T, n> held[kept];
    hold<threads, n>(rows, held, lane, read);
    // f(element, whether it is there) for all elements; then after(column, left) for each pack
    const auto over = [&](auto f, auto after) {
      over_packs<threads, n>(rows, held, lane, read, [&](const Pack<T, n>& p, int64_t column, int32_t left) {
        const Pack<C, n> b = biases<C, T, n>(bias, column, left, rows.whole_bias);
#pragma unroll
        for (int i = 0; i < n; ++i)
          if (i < left) f(i, widen<C>(p.v[i]), b.v[i]);
        after(column, left);
      });
    };

    C most = -Row<T, log>::infinite;
    over([&](int, C v, C b) { most = at_least(most, v + b); }, [](int64_t, int32_t) {});
    Row<T, log> r(over_row<threads>(most, Most{}, most_scratch));

    double total = 0;
    C part = 0;
    over([&](int, C v, C b) { part = part + r.weight(r.element(v, b)); },
         [&](int64_t, int32_t) {
           total += static_cast<double>(part);
           part = 0;
         });
    total = over_row<threads>(total, Plus{}, scratch);
    if (!log || r.settles(total)) {
      r.set(total);
    } else {
      double tops = 0;
      total = 0;
      over(
          [&](int, C v, C b) {
            const Terms<C> t = r.term(r.element(v, b));
            part = part + t.rest;
            tops += static_cast<double>(t.top);
          },
          [&](int64_t, int32_t) {
            total += static_cast<double>(part);
            part = 0;
          });
      total = over_row<threads>(total, Plus{}, scratch);
      tops = over_row<threads>(tops, Plus{}, scratch);
      r.set(tops, total);
    }
    Pack<T, n> result;
    over([&](int i, C v, C b) { result.v[i] = narrow<T>(r.result(r.element(v, b))); },
         [&](int64_t column, int32_t left) { store(y + column, result, left, rows.whole); });
  }
}

template <class T, int n>
struct Pair {
  Pack<T, n> grad, y;
};

template <class T, bool log, int threads>
__global__ void __launch_bounds__(block_threads, 2)
    backward_rows_kernel(const Rows rows, const T* grads, const T* ys, T* grad_xs) {
  using C = compute<T>;
  constexpr int n = per_thread<T>;
  __shared__ double scratch[lines];
  const uint32_t lane = threadIdx.x % threads;
  constexpr int together = block_threads / threads;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * together + threadIdx.x / threads; row < rows.count;
       row += static_cast<int64_t>(gridDim.x) * together) {
    const T *grad = grads + row * rows.channels, *y = ys + row * rows.channels;
    T* grad_x = grad_xs + row * rows.channels;
    const auto read = [&](int64_t column, int32_t left) {
      return Pair<T, n>{load<T, n>(grad + column, left, rows.whole), load<T, n>(y + column, left, rows.whole)};
    };
    Pair<T, n> held[kept];
    hold<threads, n>(rows, held, lane, read);
    double total = 0;
    over_packs<threads, n>(rows, held, lane, read, [&](const Pair<T, n>& p, int64_t, int32_t left) {
      C part = 0;
#pragma unroll
      for (int i = 0; i < n; ++i)
        if (i < left) part = log ? part + widen<C>(p.grad.v[i]) : fma(widen<C>(p.grad.v[i]), widen<C>(p.y.v[i]), part);
      total += static_cast<double>(part);
    });
    const C sum = static_cast<C>(over_row<threads>(total, Plus{}, scratch));
    over_packs<threads, n>(rows, held, lane, read, [&](const Pair<T, n>& p, int64_t column, int32_t left) {
      Pack<T, n> result;
#pragma unroll
      for (int i = 0; i < n; ++i)
        result.v[i] = narrow<T>(gradient_of(widen<C>(p.grad.v[i]), widen<C>(p.y.v[i]), sum, log));
      store(grad_x + column, result, left, rows.whole);
    });
  }
}

// ---- columns --------------------------------------------------------------------------------------------------------

// A unit is n columns for each lane of a warp, whose channels are shared out among the block's warps.
struct Columns {
  int64_t channels, inner;
  int64_t across;  // units for one outer index
  int64_t units;
  int32_t whole;
};

// Joined over the warps of a block, column by column.
template <int n, class C, class Op>
FUSEDACT_DEVICE void over_lines(C (&x)[n], Op op, C* scratch) {
  const uint32_t lane = threadIdx.x % warp, line = threadIdx.x / warp;
#pragma unroll
  for (int i = 0; i < n; ++i) scratch[(line * n + i) * warp + lane] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) {
    x[i] = scratch[i * warp + lane];
    for (uint32_t l = 1; l < lines; ++l) x[i] = op(x[i], scratch[(l * n + i) * warp + lane]);
  }
  __syncthreads();
}

struct Spot {
  int64_t base;  // of channel 0
  int32_t left;
};
template <int n>
FUSEDACT_DEVICE Spot spot(const Columns& s, int64_t unit) {
  const int64_t outer = unit / s.across, column = ((unit - outer * s.across) * warp + threadIdx.x % warp) * n;
  return {outer * s.channels * s.inner + column,
          static_cast<int32_t>(max(int64_t{0}, min(s.inner - column, int64_t{n})))};
}

template <class T, bool log, int n>
__global__ void __launch_bounds__(block_threads)
    columns_kernel(const Columns s, const T* xs, const Vector bias, T* ys) {
  using C = compute<T>;
  using R = Row<T, log>;
  __shared__ double scratch[block_threads * n];
  C* const most_scratch = reinterpret_cast<C*>(scratch);
  for (int64_t unit = blockIdx.x; unit < s.units; unit += gridDim.x) {
    const Spot p = spot<n>(s, unit);
    const auto over = [&](auto f, auto after) {
      for (int64_t c = threadIdx.x / warp; c < s.channels; c += lines) {
        const C b = bias.extent == Extent::none ? C(-0.0) : value_at<C, T>(bias, static_cast<uint32_t>(c));
        const Pack<T, n> x = load<T, n>(xs + p.base + c * s.inner, p.left, s.whole);
#pragma unroll
        for (int i = 0; i < n; ++i) f(i, widen<C>(x.v[i]), b);
        after(c);
      }
    };
    const auto nothing = [](int64_t) {};
    C most[n];
#pragma unroll
    for (int i = 0; i < n; ++i) most[i] = -R::infinite;
    over([&](int i, C v, C b) { most[i] = at_least(most[i], v + b); }, nothing);
    over_lines(most, Most{}, most_scratch);

    double total[n] = {}, tops[n] = {};
    over(
        [&](int i, C v, C b) {
          const R r(most[i]);
          total[i] += static_cast<double>(r.weight(r.element(v, b)));
        },
        nothing);
    over_lines(total, Plus{}, scratch);
    bool second = false;
    if constexpr (log) {
      double rest[n] = {};
      over(
          [&](int i, C v, C b) {
            const R r(most[i]);
            const Terms<C> t = r.term(r.element(v, b));
            rest[i] += static_cast<double>(t.rest);
            tops[i] += static_cast<double>(t.top);
          },
          nothing);
      over_lines(rest, Plus{}, scratch);
      over_lines(tops, Plus{}, scratch);
      second = true;  // the rest of a column that needs it stands in `total` with a minus, which never settles
#pragma unroll
      for (int i = 0; i < n; ++i) total[i] = R(most[i]).settles(total[i]) ? total[i] : -rest[i];
    }
    Two<C> both[n];
    bool plain[n];
#pragma unroll
    for (int i = 0; i < n; ++i) {
      R r(most[i]);
      if (!second || r.settles(total[i]))
        r.set(total[i]);
      else
        r.set(tops[i], -total[i]);
      both[i] = r.both;
      plain[i] = r.plain;
    }
    Pack<T, n> result;
    over(
        [&](int i, C v, C b) {
          R r(most[i]);
          r.both = both[i];
          r.plain = plain[i];
          result.v[i] = narrow<T>(r.result(r.element(v, b)));
        },
        [&](int64_t c) { store(ys + p.base + c * s.inner, result, p.left, s.whole); });
  }
}

template <class T, bool log, int n>
__global__ void __launch_bounds__(block_threads)
    backward_columns_kernel(const Columns s, const T* grads, const T* ys, T* grad_xs) {
  using C = compute<T>;
  __shared__ double scratch[block_threads * n];
  for (int64_t unit = blockIdx.x; unit < s.units; unit += gridDim.x) {
    const Spot p = spot<n>(s, unit);
    double total[n] = {};
    for (int64_t c = threadIdx.x / warp; c < s.channels; c += lines) {
      const int64_t at = p.base + c * s.inner;
      const Pack<T, n> g = load<T, n>(grads + at, p.left, s.whole), y = load<T, n>(ys + at, p.left, s.whole);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const C v = widen<C>(g.v[i]);
        total[i] += static_cast<double>(log ? v : v * widen<C>(y.v[i]));
      }
    }
    over_lines(total, Plus{}, scratch);
    for (int64_t c = threadIdx.x / warp; c < s.channels; c += lines) {
      const int64_t at = p.base + c * s.inner;
      const Pack<T, n> g = load<T, n>(grads + at, p.left, s.whole), y = load<T, n>(ys + at, p.left, s.whole);
      Pack<T, n> result;
#pragma unroll
      for (int i = 0; i < n; ++i)
        result.v[i] = narrow<T>(gradient_of(widen<C>(g.v[i]), widen<C>(y.v[i]), static_cast<C>(total[i]), log));
      store(grad_xs + at, result, p.left, s.whole);
    }
  }
}

// ---- launchers ------------------------------------------------------------------------------------------------------

unsigned blocks_for(int64_t units) {
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return static_cast<unsigned>(std::min<int64_t>(units, int64_t{processors} * 32));
}

template <class T>
Rows rows_of(const Shape& s, const Vector& bias, std::initializer_list<const void*> pointers) {
  constexpr int n = per_thread<T>;
  return {s.outer, s.channels, s.channels % n == 0 && aligned(16, pointers) ? n : INT32_MAX,
          aligned(16, {bias.data}) ? n : INT32_MAX};
}
template <class T>
Columns columns_of(const Shape& s, std::initializer_list<const void*> pointers, int n) {
  const int64_t wide = warp * n, across = (s.inner + wide - 1) / wide;
  return {s.channels, s.inner, across, s.outer * across, s.inner % n == 0 && aligned(16, pointers) ? n : INT32_MAX};
}
// A warp for a row that fits into its registers, else a block.
template <class T>
bool short_row(const Shape& s) {
  return s.channels <= kept * static_cast<int64_t>(warp) * per_thread<T>;
}
// Columns of a lane: a pack of them, but one where that would leave lanes idle.
template <class T>
bool single(const Shape& s) {
  return s.inner < static_cast<int64_t>(warp) * per_thread<T> / 2 || s.inner % per_thread<T> != 0;
}

template <class T, bool log>
void forward(const SoftmaxArgs& a, Stream stream) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const Shape& s = a.shape;
  if (s.inner == 1) {
    const Rows rows = rows_of<T>(s, a.bias, {x, y});
    if (short_row<T>(s))
      rows_kernel<T, log, warp>
          <<<blocks_for((s.outer + lines - 1) / lines), block_threads, 0, stream>>>(rows, x, a.bias, y);
    else
      rows_kernel<T, log, block_threads><<<blocks_for(s.outer), block_threads, 0, stream>>>(rows, x, a.bias, y);
    return;
  }
  constexpr int n = per_thread<T> > 4 ? 4 : per_thread<T>;
  const Columns c = columns_of<T>(s, {x, y}, single<T>(s) ? 1 : n);
  if (single<T>(s))
    columns_kernel<T, log, 1><<<blocks_for(c.units), block_threads, 0, stream>>>(c, x, a.bias, y);
  else
    columns_kernel<T, log, n><<<blocks_for(c.units), block_threads, 0, stream>>>(c, x, a.bias, y);
}

template <class T, bool log>
void backward(const SoftmaxBackwardArgs& a, Stream stream) {
  const T *grad = static_cast<const T*>(a.grad), *y = static_cast<const T*>(a.y);
  T* grad_x = static_cast<T*>(a.grad_x);
  const Shape& s = a.shape;
  if (s.inner == 1) {
    const Rows rows = rows_of<T>(s, {}, {grad, y, grad_x});
    if (short_row<T>(s))
      backward_rows_kernel<T, log, warp>
          <<<blocks_for((s.outer + lines - 1) / lines), block_threads, 0, stream>>>(rows, grad, y, grad_x);
    else
      backward_rows_kernel<T, log, block_threads>
          <<<blocks_for(s.outer), block_threads, 0, stream>>>(rows, grad, y, grad_x);
    return;
  }
  constexpr int n = per_thread<T> > 4 ? 4 : per_thread<T>;
  const Columns c = columns_of<T>(s, {grad, y, grad_x}, single<T>(s) ? 1 : n);
  if (single<T>(s))
    backward_columns_kernel<T, log, 1><<<blocks_for(c.units), block_threads, 0, stream>>>(c, grad, y, grad_x);
  else
    backward_columns_kernel<T, log, n><<<blocks_for(c.units), block_threads, 0, stream>>>(c, grad, y, grad_x);
}

template <class Args, class F>
void with_storage(const Args& a, F f) {
  switch (a.dtype) {
    case DType::float32: return f(float{});
    case DType::float64: return f(double{});
    case DType::bfloat16: return f(bfloat16{});
    default: return f(float16{});
  }
}

}  // namespace

void softmax(const SoftmaxArgs& args, Stream stream) {
  if (args.shape.numel() == 0) return;
  check(args.shape);
  with_storage(args, [&](auto t) {
    args.log ? forward<decltype(t), true>(args, stream) : forward<decltype(t), false>(args, stream);
  });
}

int64_t workspace_bytes(const SoftmaxBackwardArgs& args) {
  return args.grad_bias.data ? sum_bytes(args.shape, args.dtype, args.grad_x) : 0;
}

void softmax_backward(const SoftmaxBackwardArgs& args, void* workspace, Stream stream) {
  if (args.shape.numel() == 0) return fill_zero(args.grad_bias, args.shape.channels, stream);
  check(args.shape);
  with_storage(args, [&](auto t) {
    args.log ? backward<decltype(t), true>(args, stream) : backward<decltype(t), false>(args, stream);
  });
  if (args.grad_bias.data) sum_channels(args.shape, args.dtype, args.grad_x, args.grad_bias, workspace, stream);
}

}  // namespace fusedact::cuda
