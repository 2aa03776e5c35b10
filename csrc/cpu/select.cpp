// The choice of an ISA, and the tables of its kernels.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "segments.h"
#if defined(FUSEDACT_HAS_AVX2) || defined(FUSEDACT_HAS_AVX512)
#include <cpuid.h>
#endif

namespace fusedact::cpu {
namespace {

Isa choose() {
  const char* asked = std::getenv("FUSEDACT_CPU_CAPABILITY");
  const std::string want = asked ? asked : "";
  if (!want.empty() && want != "default" && want != "avx2" && want != "avx512")
    throw std::runtime_error("FUSEDACT_CPU_CAPABILITY is '" + want + "', expected default, avx2 or avx512");
#if defined(FUSEDACT_HAS_AVX2) || defined(FUSEDACT_HAS_AVX512)
  unsigned a, b, c = 0, d;  // clang's __builtin_cpu_supports knows no "f16c" before 17
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
#else
  const bool avx2 = false;
#endif
#if defined(FUSEDACT_HAS_AVX512)
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  const bool avx512 = false;
#endif
#if !defined(FUSEDACT_HAS_AVX2)
  if (want == "avx2") throw std::runtime_error("FUSEDACT_CPU_CAPABILITY is 'avx2', which this build lacks");
#endif
  if ((want == "avx2" && !avx2) || (want == "avx512" && !avx512))
    throw std::runtime_error("FUSEDACT_CPU_CAPABILITY is '" + want + "', which this processor or this build lacks");
#if defined(FUSEDACT_HAS_AVX512)
  if (avx512 && (want.empty() || want == "avx512")) return Isa::avx512;
#endif
#if defined(FUSEDACT_HAS_AVX2)
  if (avx2 && want != "default") return Isa::avx2;
#endif
  return Isa::default_;
}

Kernels assemble() {
  const auto backward = FUSEDACT_OF_ISA(backward_table);
  const auto double_backward = FUSEDACT_OF_ISA(double_backward_table);
  const auto widen = FUSEDACT_OF_ISA(widen), narrow = FUSEDACT_OF_ISA(narrow);
  Kernels k{FUSEDACT_OF_ISA(forward_table)(),
            {backward(Saved::input), backward(Saved::output), backward(Saved::mask)},
            {double_backward(Saved::input), double_backward(Saved::output)},
            {},
            {}};
  for (int dtype = 0; dtype < dtype_count; ++dtype)
    for (int wide = 0; wide < 2; ++wide) {
      k.widen[dtype][wide] = widen(static_cast<DType>(dtype), wide);
      k.narrow[dtype][wide] = narrow(static_cast<DType>(dtype), wide);
    }
  return k;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* capability() {
  constexpr const char* names[] = {"default", "avx2", "avx512"};
  return names[static_cast<int>(isa())];
}

const Kernels& kernels() {
  static const Kernels assembled = assemble();
  return assembled;
}

}  // namespace fusedact::cpu
