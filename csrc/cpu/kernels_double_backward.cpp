// The runs of the second derivative, from the saved input or output. Once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <template <class> class A, class S, Saved kind>
constexpr Function<DoubleBackwardRun> run() {
  using F = A<PackOf<S>>;
  constexpr bool follows = kind == Saved::input || requires { &F::invertible; };
  constexpr bool computed = std::is_same_v<S, double> || (std::is_same_v<S, float> && F::bends_in_float);
  if constexpr (follows && computed) return double_backward_run<A, S, kind>;
  return nullptr;
}
template <Saved kind>
constexpr auto table = make_table<DoubleBackwardRun>(
    AllActivations{}, []<template <class> class A, class S>() { return run<A, S, kind>(); });

}  // namespace

Table<DoubleBackwardRun> FUSEDACT_CPU_CAPABILITY::double_backward_table(Saved kind) {
  return kind == Saved::input ? as_table<DoubleBackwardRun>(table<Saved::input>)
                              : as_table<DoubleBackwardRun>(table<Saved::output>);
}
}  // namespace fusedact::cpu
