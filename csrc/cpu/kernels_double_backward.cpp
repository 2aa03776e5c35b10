// The segments of the second derivative, from the saved input or output. Compiled once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <template <class> class A, class S, Saved kind>
constexpr DoubleBackwardSegment segment() {
  using F = A<Pack<double>>;
  constexpr bool exists = kind == Saved::input || requires { &F::invertible; };
  if constexpr (exists) return double_backward_segment<A, S, kind>;
  return nullptr;
}

constexpr auto from_input = make_table<DoubleBackwardSegment>(
    AllActivations{}, []<template <class> class A, class S>() { return segment<A, S, Saved::input>(); });
constexpr auto from_output = make_table<DoubleBackwardSegment>(
    AllActivations{}, []<template <class> class A, class S>() { return segment<A, S, Saved::output>(); });

}  // namespace

DoubleBackwardTable FUSEDACT_CPU_CAPABILITY::double_backward_table(Saved kind) {
  return as_table(kind == Saved::input ? from_input : from_output);
}
}  // namespace fusedact::cpu
