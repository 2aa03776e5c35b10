// The backward runs of every activation, from each thing that can be saved. Compiled once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <template <class> class A, class T, Saved kind>
constexpr Function<BackwardRun> run() {
  using F = A<Pack<T>>;
  constexpr bool exists = kind == Saved::input || (kind == Saved::output && requires { &F::invertible; }) ||
                          (kind == Saved::mask && requires(F f, Pack<T> g) { f.inner_gradient(g); });
  if constexpr (exists && !(F::wide && sizeof(T) == 4)) return backward_run<A, T, kind>;
  return nullptr;
}
template <Saved kind>
constexpr auto table =
    make_table<BackwardRun>(AllActivations{}, []<template <class> class A, class T>() { return run<A, T, kind>(); });

}  // namespace

Table<BackwardRun> FUSEDACT_CPU_CAPABILITY::backward_table(Saved kind) {
  switch (kind) {
    case Saved::input: return as_table<BackwardRun>(table<Saved::input>);
    case Saved::output: return as_table<BackwardRun>(table<Saved::output>);
    default: return as_table<BackwardRun>(table<Saved::mask>);
  }
}
}  // namespace fusedact::cpu
