// The contract between the operators and the back ends: plain structs of pointers, shapes and scalars.
// Knows nothing of torch, of SIMD, of CUDA or of any activation's formula.
#pragma once

#include <cstdint>
#include <string_view>

struct CUstream_st;

namespace fusedact {

enum class DType : uint8_t { float32, float64, bfloat16, float16 };
inline constexpr int dtype_count = 4;

// What backward reads in place of the pre-activation v = x + bias.
enum class Saved : uint8_t {
  input,   // x itself; v is recomputed, in the compute type, without a rounding in between
  output,  // y, for activations whose derivative follows from it
  mask,    // one bit per element, for piecewise-linear ones: 1 where the derivative is the outer slope
};

// A dense tensor in the order of its memory. The bias runs along `channels`: inner == 1 for a Linear or a
// channels_last image, inner == H * W for NCHW. Without a bias or a per-channel weight: {1, 1, numel}.
struct Shape {
  int64_t outer = 1, channels = 1, inner = 1;
  int64_t numel() const { return outer * channels * inner; }
};

// How many elements a tensor parameter (PReLU's weight, Swish's beta, RReLU's noise) has.
enum class Extent : uint8_t {
  none,     // the parameter is the first of the scalar ones
  one,      // a tensor with one element, for all
  channel,  // [channels]
  full,     // one per element of x; always in the compute type, and without a gradient
};

// A dense vector parameter. `dtype` may differ from x's: float32 beside 16-bit x.
struct Vector {
  const void* data = nullptr;
  DType dtype = DType::float32;
  Extent extent = Extent::none;
};

// Where a gradient that is summed over all but the channels goes; null if nobody asked for it.
struct Sum {
  void* data = nullptr;
  DType dtype = DType::float32;
};

// y = clamp(gain * act(x + bias), clamp_min, clamp_max); "no clamp" is [-inf, inf].
struct Scalars {
  const double* params = nullptr;  // [Activation::params]
  double gain = 1.0;
  double clamp_min = 0.0, clamp_max = 0.0;
  bool clamped = false;
};

// Calls body(context, begin, end) over disjoint ranges that cover [0, count), each but the last a multiple of
// `grain` long, possibly on several threads. The torch library passes at::parallel_for; a C++ test its own.
struct Parallel {
  void (*run)(int64_t count, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t)) = nullptr;
};

struct ForwardArgs {
  Shape shape;
  DType dtype = DType::float32;  // of x and y
  const void* x = nullptr;       // [outer, channels, inner]
  Vector bias;                   // [channels], or absent
  Vector weight;
  Scalars scalars;
  void* y = nullptr;        // [outer, channels, inner]; may be x
  uint8_t* mask = nullptr;  // [mask_bytes(numel)], written if not null; bit i of byte j is element 8 j + i
  Parallel parallel;
};

struct BackwardArgs {
  Shape shape;
  DType dtype = DType::float32;  // of grad, of saved unless it is a mask, and of grad_x
  Saved saved_kind = Saved::input;
  const void* grad = nullptr;   // [outer, channels, inner]
  const void* saved = nullptr;  // x or y [outer, channels, inner], or the mask
  Vector bias;                  // used with Saved::input only
  Vector weight;
  Scalars scalars;
  void* grad_x = nullptr;  // [outer, channels, inner]; may be grad
  Sum grad_bias;           // [channels]
  Sum grad_weight;         // [channels] or [1], as weight.extent says; with Saved::input only
  Parallel parallel;
};

// The derivative of the backward pass: with r = grad * f'(v), and u the gradient that came in for r,
//   grad_grad = u * f'(v),  grad_x = u * grad * f''(v),  grad_bias = sum of grad_x over all but the channels.
// With Saved::output, f' is a function h of y, and grad_x stands for u * grad * h'(y), the gradient of y.
// Computed in float64 for every dtype. Not for activations with a tensor parameter.
struct DoubleBackwardArgs {
  Shape shape;
  DType dtype = DType::float32;
  Saved saved_kind = Saved::input;  // input or output
  const void* u = nullptr;          // [outer, channels, inner]
  const void* grad = nullptr;       // [outer, channels, inner]
  const void* saved = nullptr;      // [outer, channels, inner]
  Vector bias;
  Scalars scalars;
  void* grad_grad = nullptr;  // [outer, channels, inner]
  void* grad_x = nullptr;     // [outer, channels, inner]
  Sum grad_bias;              // [channels]
  Parallel parallel;
};

inline constexpr int64_t mask_bytes(int64_t numel) { return (numel + 7) / 8; }

// What is known of an activation at run time, read off its struct in activations.h.
struct Activation {
  std::string_view name;
  int index;                                 // its place in the type list; the back ends' tables have the same order
  int params;                                // how many scalar parameters
  bool weight;                               // the first parameter may be a tensor, and learns
  bool masked;                               // piecewise linear: Saved::mask is exact
  bool cheap;                                // memory sets the pace of forward
  bool wide;                                 // float32 and 16-bit are computed in float64
  bool output;                               // Saved::output is possible for some parameters ...
  bool (*invertible)(const double* params);  // ... namely where this is true
};

namespace cpu {
void forward(const Activation&, const ForwardArgs&);
void backward(const Activation&, const BackwardArgs&);
void double_backward(const Activation&, const DoubleBackwardArgs&);
const char* capability();  // the ISA in use: "default", "avx2" or "avx512"; FUSEDACT_CPU_CAPABILITY overrides it
}  // namespace cpu

// In builds with CUDA. Everything is queued on the stream, which belongs to the current device; nothing waits for it. The
// caller brings the workspace (any contents, aligned to 16 bytes) and asks the runtime for launch errors.
namespace cuda {
using Stream = CUstream_st*;  // cudaStream_t
void forward(const Activation&, const ForwardArgs&, Stream);
int64_t workspace_bytes(const Activation&, const BackwardArgs&);
void backward(const Activation&, const BackwardArgs&, void* workspace, Stream);
int64_t workspace_bytes(const Activation&, const DoubleBackwardArgs&);
void double_backward(const Activation&, const DoubleBackwardArgs&, void* workspace, Stream);
const char* architectures();  // what the kernels were compiled for, as TORCH_CUDA_ARCH_LIST has it
int kernel_count();
}  // namespace cuda

}  // namespace fusedact
