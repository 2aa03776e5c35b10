// The forward runs of every activation. Compiled once per ISA, FUSEDACT_CPU_CAPABILITY naming it.
#include "loops.h"

namespace fusedact::cpu {
namespace {

// A `wide` activation is computed in float64 only.
constexpr auto table = make_table<ForwardRun>(AllActivations{}, []<template <class> class A, class T>() {
  if constexpr (A<T>::wide && sizeof(T) == 4)
    return Function<ForwardRun>(nullptr);
  else
    return Function<ForwardRun>(forward_run<A, T>);
});

}  // namespace
Table<ForwardRun> FUSEDACT_CPU_CAPABILITY::forward_table() { return as_table<ForwardRun>(table); }
}  // namespace fusedact::cpu
