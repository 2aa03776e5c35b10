// Every row on several threads at once, for ThreadSanitizer: std::thread drives the kernels, for libgomp's barriers are nothing
// that TSan understands. Callers call at the same time, and each call runs on threads of its own; the bits are one thread's.
//
//   proof_threads [ROUNDS]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "../../csrc/registry.h"
#include "rows.h"

namespace proof {
namespace {

using namespace fusedact;

// Whatever thread is free takes the next grain.
void on_threads(int64_t count, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t)) {
  std::atomic<int64_t> next{0};
  auto work = [&] {
    for (int64_t begin; (begin = next.fetch_add(grain)) < count;) body(context, begin, std::min(begin + grain, count));
  };
  std::thread others[2] = {std::thread(work), std::thread(work)};
  work();
  for (auto& t : others) t.join();
}

struct Results {
  std::vector<float> y, grad_x, grad_bias, grad_grad, grad_grad_x, second_bias, grad_weight;
  std::vector<uint8_t> mask;
  bool operator==(const Results& o) const {
    auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])));
    };
    return same(y, o.y) && same(grad_x, o.grad_x) && same(grad_bias, o.grad_bias) && same(grad_grad, o.grad_grad) &&
           same(grad_grad_x, o.grad_grad_x) && same(second_bias, o.second_bias) && same(grad_weight, o.grad_weight) &&
           same(mask, o.mask);
  }
};

struct Inputs {
  Shape shape;
  std::vector<float> x, grad, u, bias;
};

Inputs inputs(Shape shape) {
  Inputs in{shape, {}, {}, {}, {}};
  auto fill = [seed = 1u](std::vector<float>& v, int64_t count) mutable {
    v.resize(count);
    for (float& f : v) f = static_cast<float>((seed = seed * 1664525u + 1013904223u) >> 8) / 0x1p21f - 4;
  };
  fill(in.x, shape.numel());
  fill(in.grad, shape.numel());
  fill(in.u, shape.numel());
  fill(in.bias, shape.channels);
  return in;
}

Results call(const Row& row, const Inputs& in, Parallel parallel) {
  const Activation& a = *find_activation(row.name);
  const int64_t n = in.shape.numel(), channels = in.shape.channels;
  Scalars scalars;
  scalars.params = row.params.data();
  const Vector bias{in.bias.data(), DType::float32, Extent::channel};
  const double first = row.params.empty() ? 0 : row.params[0];
  const std::vector<float> slope(channels, static_cast<float>(first));
  const Vector weight{slope.data(), DType::float32, a.weight ? Extent::channel : Extent::none};
  Results r;
  for (auto* v : {&r.y, &r.grad_x, &r.grad_grad, &r.grad_grad_x}) v->resize(n);
  for (auto* v : {&r.grad_bias, &r.second_bias, &r.grad_weight}) v->resize(channels);
  r.mask.resize(a.masked ? mask_bytes(n) : 0);
  const auto f32 = DType::float32;
  cpu::forward(
      a, {in.shape, f32, in.x.data(), bias, weight, scalars, r.y.data(), a.masked ? r.mask.data() : nullptr, parallel});
  cpu::backward(a, {in.shape,
                    f32,
                    Saved::input,
                    in.grad.data(),
                    in.x.data(),
                    bias,
                    weight,
                    scalars,
                    r.grad_x.data(),
                    {r.grad_bias.data(), f32},
                    {a.weight ? r.grad_weight.data() : nullptr, f32},
                    parallel});
  cpu::double_backward(a, {in.shape,
                           f32,
                           Saved::input,
                           in.u.data(),
                           in.grad.data(),
                           in.x.data(),
                           bias,
                           scalars,
                           r.grad_grad.data(),
                           r.grad_grad_x.data(),
                           {r.second_bias.data(), f32},
                           parallel});
  return r;
}

int run(int rounds) {
  std::atomic<int> wrong{0};
  // Beyond the grain of each way to cut: along, with a long inner side, with short last rows, one channel.
  for (Shape shape : {Shape{301, 517, 1}, Shape{5, 7, 5003}, Shape{90001, 3, 1}, Shape{1, 1, 200003}}) {
    const Inputs in = inputs(shape);
    for (int round = 0; round < rounds; ++round) {
      std::atomic<size_t> next{0};
      auto caller = [&] {
        for (size_t k; (k = next++) < rows.size();)
          if (!(call(rows[k], in, {on_threads}) == call(rows[k], in, {})))
            std::printf("%s [%lld, %lld, %lld]: threads change bits\n", rows[k].name,
                        static_cast<long long>(shape.outer), static_cast<long long>(shape.channels),
                        static_cast<long long>(shape.inner)),
                ++wrong;
      };
      std::thread other(caller);
      caller();
      other.join();
    }
  }
  std::printf("%zu rows, %d wrong\n", rows.size(), wrong.load());
  return wrong ? 1 : 0;
}

}  // namespace
}  // namespace proof

int main(int argc, char** argv) { return proof::run(argc > 1 ? std::atoi(argv[1]) : 1); }
