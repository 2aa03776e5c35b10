// The backward segments of every activation and dtype, from each thing that can be saved. Compiled once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <template <class> class A, class S, Saved kind>
constexpr BackwardSegment segment() {
  using F = A<Pack<compute_for<A, S>>>;
  constexpr bool exists = kind == Saved::input || (kind == Saved::output && requires { &F::invertible; }) ||
                          (kind == Saved::mask && requires(F f) { f.inner_gradient({}); });
  if constexpr (exists) return backward_segment<A, S, kind>;
  return nullptr;
}

constexpr auto from_input = make_table<BackwardSegment>(
    AllActivations{}, []<template <class> class A, class S>() { return segment<A, S, Saved::input>(); });
constexpr auto from_output = make_table<BackwardSegment>(
    AllActivations{}, []<template <class> class A, class S>() { return segment<A, S, Saved::output>(); });
constexpr auto from_mask = make_table<BackwardSegment>(
    AllActivations{}, []<template <class> class A, class S>() { return segment<A, S, Saved::mask>(); });

}  // namespace

BackwardTable FUSEDACT_CPU_CAPABILITY::backward_table(Saved kind) {
  return as_table(kind == Saved::input ? from_input : kind == Saved::output ? from_output : from_mask);
}
}  // namespace fusedact::cpu
