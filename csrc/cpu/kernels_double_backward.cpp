// The runs of the second derivative, from the saved input or output, in float64 whatever the dtype. Once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <template <class> class A, class T, Saved kind>
constexpr Function<DoubleBackwardRun> run() {
  constexpr bool exists = kind == Saved::input || requires { &A<Pack<T>>::invertible; };
  if constexpr (exists && sizeof(T) == 8) return double_backward_run<A, kind>;
  return nullptr;
}
template <Saved kind>
constexpr auto table = make_table<DoubleBackwardRun>(
    AllActivations{}, []<template <class> class A, class T>() { return run<A, T, kind>(); });

}  // namespace

Table<DoubleBackwardRun> FUSEDACT_CPU_CAPABILITY::double_backward_table(Saved kind) {
  return kind == Saved::input ? as_table<DoubleBackwardRun>(table<Saved::input>)
                              : as_table<DoubleBackwardRun>(table<Saved::output>);
}
}  // namespace fusedact::cpu
