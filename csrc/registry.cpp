// The run-time facts of each activation, read off the structs in activations.h. Knows no kernel.
#include "registry.h"

#include <array>
#include <utility>

#include "activations.h"

namespace fusedact {
namespace {

template <template <class> class A>
constexpr Activation describe(int index) {
  using F = A<float>;
  constexpr bool output = requires { &F::invertible; };
  Activation a{F::name, index, F::params, false, false, F::cheap, F::wide, output, nullptr};
  a.weight = std::is_constructible_v<F, const double*, float>;
  a.masked = requires(F f, float x) { f.is_outer(x); };
  if constexpr (output) a.invertible = &F::invertible;
  return a;
}

template <template <class> class... A>
constexpr auto describe_all(TypeList<A...>) {
  int index = 0;
  return std::array<Activation, sizeof...(A)>{describe<A>(index++)...};
}

constexpr auto all = describe_all(AllActivations{});

}  // namespace

std::span<const Activation> activations() { return all; }

const Activation* find_activation(std::string_view name) {
  for (const Activation& a : all)
    if (a.name == name) return &a;
  return nullptr;
}

}  // namespace fusedact
