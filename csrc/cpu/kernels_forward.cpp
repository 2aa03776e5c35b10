// The forward segments of every activation and dtype. Compiled once per ISA, FUSEDACT_CPU_CAPABILITY naming it.
#include "loops.h"

namespace fusedact::cpu {
namespace {
constexpr auto table = make_table<ForwardSegment>(
    AllActivations{}, []<template <class> class A, class S>() -> ForwardSegment { return forward_segment<A, S>; });
}
ForwardTable FUSEDACT_CPU_CAPABILITY::forward_table() { return as_table(table); }
}  // namespace fusedact::cpu
