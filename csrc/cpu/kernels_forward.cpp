// The forward runs of every activation. Compiled once per ISA, FUSEDACT_CPU_CAPABILITY naming it.
#include "loops.h"

namespace fusedact::cpu {
namespace {

constexpr auto table = make_table<ForwardRun>(AllActivations{}, []<template <class> class A, class S>() {
  if constexpr (exists<A, S>)
    return Function<ForwardRun>(forward_run<A, S>);
  else
    return Function<ForwardRun>(nullptr);
});

}  // namespace
Table<ForwardRun> FUSEDACT_CPU_CAPABILITY::forward_table() { return as_table<ForwardRun>(table); }
}  // namespace fusedact::cpu
