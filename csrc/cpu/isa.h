// Which ISA's kernels run, and how a family of kernels takes its own of that ISA. Knows no kernel.
#pragma once

#include <cstdint>

namespace fusedact::cpu {

enum class Isa : uint8_t { default_, avx2, avx512 };

// Chosen once: the widest that processor and build have, unless FUSEDACT_CPU_CAPABILITY names a narrower one.
Isa isa();

}  // namespace fusedact::cpu

// default_::name, avx2::name or avx512::name, as isa() says: for functions declared in a namespace per ISA.
#if defined(FUSEDACT_HAS_AVX512)
#define FUSEDACT_IF_AVX512(name) isa() == Isa::avx512 ? avx512::name:
#else
#define FUSEDACT_IF_AVX512(name)
#endif
#if defined(FUSEDACT_HAS_AVX2)
#define FUSEDACT_IF_AVX2(name) isa() == Isa::avx2 ? avx2::name:
#else
#define FUSEDACT_IF_AVX2(name)
#endif
#define FUSEDACT_OF_ISA(name) (FUSEDACT_IF_AVX512(name) FUSEDACT_IF_AVX2(name) default_::name)
