// The backward runs of every activation, from each thing that can be saved. Compiled once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <template <class> class A, class S, Saved kind>
constexpr Function<BackwardRun> run() {
  using V = PackOf<S>;
  using F = A<V>;
  constexpr bool follows = kind == Saved::input || (kind == Saved::output && requires { &F::invertible; }) ||
                           (kind == Saved::mask && requires(F f, V g) { f.inner_gradient(g); });
  if constexpr (follows && exists<A, S>) return backward_run<A, S, kind>;
  return nullptr;
}
template <Saved kind>
constexpr auto table =
    make_table<BackwardRun>(AllActivations{}, []<template <class> class A, class S>() { return run<A, S, kind>(); });

}  // namespace

Table<BackwardRun> FUSEDACT_CPU_CAPABILITY::backward_table(Saved kind) {
  switch (kind) {
    case Saved::input: return as_table<BackwardRun>(table<Saved::input>);
    case Saved::output: return as_table<BackwardRun>(table<Saved::output>);
    default: return as_table<BackwardRun>(table<Saved::mask>);
  }
}
}  // namespace fusedact::cpu
