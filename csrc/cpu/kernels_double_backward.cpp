// The runs of the second derivative, from the saved input or output. Once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <template <class> class A, class V, Saved kind>
constexpr Function<DoubleBackwardRun> run() {
  constexpr bool follows = kind == Saved::input || requires { &A<V>::invertible; };
  constexpr bool computed = std::is_same_v<V, Pack<double>> || (std::is_same_v<V, Pack<float>> && A<V>::bends_in_float);
  if constexpr (follows && computed) return double_backward_run<A, V, kind>;
  return nullptr;
}
template <Saved kind>
constexpr auto table = make_table<DoubleBackwardRun>(
    AllActivations{}, []<template <class> class A, class V>() { return run<A, V, kind>(); });

}  // namespace

Table<DoubleBackwardRun> FUSEDACT_CPU_CAPABILITY::double_backward_table(Saved kind) {
  return kind == Saved::input ? as_table<DoubleBackwardRun>(table<Saved::input>)
                              : as_table<DoubleBackwardRun>(table<Saved::output>);
}
}  // namespace fusedact::cpu
