// The backward runs of every activation, from each thing that can be saved. Compiled once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <template <class> class A, class V, Saved kind>
constexpr Function<BackwardRun> run() {
  using F = A<V>;
  constexpr bool follows = kind == Saved::input || (kind == Saved::output && requires { &F::invertible; }) ||
                           (kind == Saved::mask && requires(F f, V g) { f.inner_gradient(g); });
  if constexpr (follows && exists<A, V>) return backward_run<A, V, kind>;
  return nullptr;
}
template <Saved kind>
constexpr auto table =
    make_table<BackwardRun>(AllActivations{}, []<template <class> class A, class V>() { return run<A, V, kind>(); });

}  // namespace

Table<BackwardRun> FUSEDACT_CPU_CAPABILITY::backward_table(Saved kind) {
  switch (kind) {
    case Saved::input: return as_table<BackwardRun>(table<Saved::input>);
    case Saved::output: return as_table<BackwardRun>(table<Saved::output>);
    default: return as_table<BackwardRun>(table<Saved::mask>);
  }
}
}  // namespace fusedact::cpu
