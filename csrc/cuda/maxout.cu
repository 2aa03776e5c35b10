// Maxout, forward and backward: the greatest of several pieces, and which it was.
#include "../math.h"
#include "../maxout/kernels.h"
#include "drive.h"
#include "pack.cuh"

namespace fusedact::cuda {
namespace {

constexpr uint32_t warp = 32, lines = block_threads / warp;

template <class T>
using compute = std::conditional_t<sizeof(T) == 8, double, float>;

// The best so far: the first of equals; NaN beats all numbers, the first NaN all others. As torch.max.
template <class C>
struct Best {
  C value;
  uint32_t which;
  FUSEDACT_DEVICE void meet(C v, uint32_t piece) {
    const bool better = v > value || (v != v && value == value);
    value = better ? v : value;
    which = better ? piece : which;
  }
};

struct Cut {
  int64_t channels, pieces, outputs, inner;
  int64_t count;   // of results, or of elements of x
  int64_t across;  // units in a row of inner elements
  int64_t units;
  int32_t whole;
};

template <class C, class T>
FUSEDACT_DEVICE C with_bias(T x, const Vector& bias, int64_t channel) {
  const C v = widen<C>(x);
  return bias.extent == Extent::none ? v : v + value_at<C, T>(bias, static_cast<uint32_t>(channel));
}

// Element e of a tensor whose rows have `channels`: its place in the row.
FUSEDACT_DEVICE int64_t place_in_row(int64_t e, int64_t channels) {
  return e <= UINT32_MAX ? static_cast<int64_t>(static_cast<uint32_t>(e) % static_cast<uint32_t>(channels))
                         : e % channels;
}

// ---- pieces side by side --------------------------------------------------------------------------------------------

// A thread has n elements of x, and their n / pieces results.
template <class T, int pieces>
__global__ void __launch_bounds__(block_threads)
    packed_kernel(const Cut s, const T* xs, const Vector bias, T* ys, uint8_t* indices) {
  using C = compute<T>;
  constexpr int n = per_thread<T>, fewer = n / pieces;
  const int32_t whole = s.whole / pieces;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_threads * n;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x) * n; at < s.count; at += stride) {
    const auto left = static_cast<int32_t>(min(s.count - at, int64_t{n}));
    const Pack<T, n> x = load<T, n>(xs + at, left, s.whole);
    int64_t channel = place_in_row(at, s.channels);
    Pack<T, fewer> y;
    Pack<uint8_t, fewer> index;
#pragma unroll
    for (int o = 0; o < fewer; ++o) {
      Best<C> best{};
#pragma unroll
      for (int j = 0; j < pieces; ++j) {
        const C v = o * pieces < left ? with_bias<C>(x.v[o * pieces + j], bias, channel) : C(0);
        if (j == 0)
          best = {v, 0};
        else
          best.meet(v, j);
        if (++channel == s.channels) channel = 0;
      }
      y.v[o] = narrow<T>(best.value);
      index.v[o] = static_cast<uint8_t>(best.which);
    }
    store(ys + at / pieces, y, left / pieces, whole);
    store(indices + at / pieces, index, left / pieces, whole);
  }
}

// A thread has one result.
template <class T>
__global__ void __launch_bounds__(block_threads)
    single_kernel(const Cut s, const T* xs, const Vector bias, T* ys, uint8_t* indices) {
  using C = compute<T>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_threads;
  const auto pieces = static_cast<uint32_t>(s.pieces);
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; o < s.count; o += stride) {
    const T* x = xs + o * s.pieces;
    const int64_t channel = place_in_row(o, s.outputs) * s.pieces;
    Best<C> best{with_bias<C>(x[0], bias, channel), 0};
    for (uint32_t j = 1; j < pieces; ++j) best.meet(with_bias<C>(x[j], bias, channel + j), j);
    ys[o] = narrow<T>(best.value);
    indices[o] = static_cast<uint8_t>(best.which);
  }
}

// n elements of grad_x, of n / pieces results.
template <class T, int pieces>
__global__ void __launch_bounds__(block_threads)
    unpacked_kernel(const Cut s, const T* grads, const uint8_t* indices, T* grad_xs) {
  constexpr int n = per_thread<T>, fewer = n / pieces;
  const int32_t whole = s.whole / pieces;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_threads * n;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x) * n; at < s.count; at += stride) {
    const auto left = static_cast<int32_t>(min(s.count - at, int64_t{n}));
    const Pack<T, fewer> grad = load<T, fewer>(grads + at / pieces, left / pieces, whole);
    const Pack<uint8_t, fewer> index = load<uint8_t, fewer>(indices + at / pieces, left / pieces, whole);
    Pack<T, n> result;
#pragma unroll
    for (int i = 0; i < n; ++i) result.v[i] = index.v[i / pieces] == i % pieces ? grad.v[i / pieces] : T(0.0f);
    store(grad_xs + at, result, left, s.whole);
  }
}

// n elements of grad_x, where results do not lie so.
template <class T>
__global__ void __launch_bounds__(block_threads)
    scatter_kernel(const Cut s, const T* grads, const uint8_t* indices, T* grad_xs) {
  constexpr int n = per_thread<T>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_threads * n;
  const auto pieces = static_cast<uint32_t>(s.pieces);
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x) * n; at < s.count; at += stride) {
    int64_t from = at <= UINT32_MAX ? static_cast<int64_t>(static_cast<uint32_t>(at) / pieces) : at / pieces;
    auto piece = static_cast<uint32_t>(at - from * pieces);
    Pack<T, n> result;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool there = at + i < s.count;
      result.v[i] = there && indices[from] == piece ? grads[from] : T(0.0f);
      if (++piece == pieces) {
        piece = 0;
        ++from;
      }
    }
    store(grad_xs + at, result, static_cast<int32_t>(min(s.count - at, int64_t{n})), s.whole);
  }
}

// ---- pieces apart, results side by side -----------------------------------------------------------------------------

struct Spot {
  int64_t unit;    // [outer, output]
  int64_t column;  // of a thread's first element
  int32_t left;
};
template <int n>
FUSEDACT_DEVICE Spot spot(const Cut& s, int64_t tile) {
  const int64_t group = tile / s.across;
  const int64_t unit = group * lines + threadIdx.x / warp;
  const int64_t column = ((tile - group * s.across) * warp + threadIdx.x % warp) * n;
  return {unit, column, unit < s.count ? static_cast<int32_t>(max(int64_t{0}, min(s.inner - column, int64_t{n}))) : 0};
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    apart_kernel(const Cut s, const T* xs, const Vector bias, T* ys, uint8_t* indices) {
  using C = compute<T>;
  constexpr int n = per_thread<T>;
  const auto pieces = static_cast<uint32_t>(s.pieces);
  for (int64_t tile = blockIdx.x; tile < s.units; tile += gridDim.x) {
    const Spot p = spot<n>(s, tile);
    if (p.left == 0) continue;
    const int64_t channel = place_in_row(p.unit, s.outputs) * s.pieces;
    Best<C> best[n];
    for (uint32_t j = 0; j < pieces; ++j) {
      const Pack<T, n> x = load<T, n>(xs + (p.unit * s.pieces + j) * s.inner + p.column, p.left, s.whole);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const C v = with_bias<C>(x.v[i], bias, channel + j);
        if (j == 0)
          best[i] = {v, 0};
        else
          best[i].meet(v, j);
      }
    }
    Pack<T, n> y;
    Pack<uint8_t, n> index;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      y.v[i] = narrow<T>(best[i].value);
      index.v[i] = static_cast<uint8_t>(best[i].which);
    }
    store(ys + p.unit * s.inner + p.column, y, p.left, s.whole);
    store(indices + p.unit * s.inner + p.column, index, p.left, s.whole);
  }
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    spread_kernel(const Cut s, const T* grads, const uint8_t* indices, T* grad_xs) {
  constexpr int n = per_thread<T>;
  const auto pieces = static_cast<uint32_t>(s.pieces);
  for (int64_t tile = blockIdx.x; tile < s.units; tile += gridDim.x) {
    const Spot p = spot<n>(s, tile);
    if (p.left == 0) continue;
    const Pack<T, n> grad = load<T, n>(grads + p.unit * s.inner + p.column, p.left, s.whole);
    const Pack<uint8_t, n> index = load<uint8_t, n>(indices + p.unit * s.inner + p.column, p.left, s.whole);
    for (uint32_t j = 0; j < pieces; ++j) {
      Pack<T, n> result;
#pragma unroll
      for (int i = 0; i < n; ++i) result.v[i] = index.v[i] == j ? grad.v[i] : T(0.0f);
      store(grad_xs + (p.unit * s.pieces + j) * s.inner + p.column, result, p.left, s.whole);
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
int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
Cut cut_of(const Shape& s, int64_t pieces, std::initializer_list<const void*> pointers, const uint8_t* indices) {
  constexpr int n = per_thread<T>;
  Cut c{s.channels, pieces, s.channels / pieces, s.inner, s.numel(), 1, 0, 0};
  bool whole = aligned(16, pointers) && aligned(n, {indices});
  if (s.inner > 1) {
    c.count = s.outer * c.outputs;
    c.across = up(s.inner, warp * n);
    c.units = up(c.count, lines) * c.across;
    whole = whole && s.inner % n == 0;
  }
  c.whole = whole ? n : INT32_MAX;
  return c;
}

// f<pieces>(), if so many divide a thread's n elements.
template <int n, class F>
bool with_pieces(int64_t pieces, F f) {
  const auto one = [&]<int some>() {
    if constexpr (n % some == 0) {
      if (pieces == some) f.template operator()<some>();
      return pieces == some;
    }
    return false;
  };
  return one.template operator()<1>() || one.template operator()<2>() || one.template operator()<4>() ||
         one.template operator()<8>();
}

template <class T>
void forward(const MaxoutArgs& a, Stream stream) {
  constexpr int n = per_thread<T>;
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const bool apart = a.shape.inner > 1;
  Cut c = cut_of<T>(a.shape, a.pieces, {x, y}, a.indices);
  const auto packed = [&](auto kernel) {
    kernel<<<blocks_for(up(c.count, block_threads * n)), block_threads, 0, stream>>>(c, x, a.bias, y, a.indices);
  };
  if (apart) {
    apart_kernel<T><<<blocks_for(c.units), block_threads, 0, stream>>>(c, x, a.bias, y, a.indices);
  } else if (!with_pieces<n>(a.pieces, [&]<int pieces>() { packed(packed_kernel<T, pieces>); })) {
    c.count /= a.pieces;
    single_kernel<T><<<blocks_for(up(c.count, block_threads)), block_threads, 0, stream>>>(c, x, a.bias, y, a.indices);
  }
}

template <class T>
void backward(const MaxoutBackwardArgs& a, Stream stream) {
  constexpr int n = per_thread<T>;
  const T* grad = static_cast<const T*>(a.grad);
  T* grad_x = static_cast<T*>(a.grad_x);
  Cut c = cut_of<T>(a.shape, a.pieces, {grad, grad_x}, a.indices);
  const auto blocks = blocks_for(up(c.count, block_threads * n));
  if (a.shape.inner > 1) {
    spread_kernel<T><<<blocks_for(c.units), block_threads, 0, stream>>>(c, grad, a.indices, grad_x);
  } else if (!with_pieces<n>(a.pieces, [&]<int pieces>() {
               unpacked_kernel<T, pieces><<<blocks, block_threads, 0, stream>>>(c, grad, a.indices, grad_x);
             })) {
    c.whole = aligned(16, {grad_x}) ? n : INT32_MAX;  // which reads its gradients one by one
    scatter_kernel<T><<<blocks, block_threads, 0, stream>>>(c, grad, a.indices, grad_x);
  }
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

void maxout(const MaxoutArgs& args, Stream stream) {
  if (args.shape.numel() == 0) return;
  check(args.shape);
  with_storage(args, [&](auto t) { forward<decltype(t)>(args, stream); });
}

int64_t workspace_bytes(const MaxoutBackwardArgs& args) {
  return args.grad_bias.data ? sum_bytes(args.shape, args.dtype, args.grad_x) : 0;
}

void maxout_backward(const MaxoutBackwardArgs& args, void* workspace, Stream stream) {
  if (args.shape.numel() == 0) return fill_zero(args.grad_bias, args.shape.channels, stream);
  check(args.shape);
  with_storage(args, [&](auto t) { backward<decltype(t)>(args, stream); });
  if (args.grad_bias.data) sum_channels(args.shape, args.dtype, args.grad_x, args.grad_bias, workspace, stream);
}

}  // namespace fusedact::cuda
