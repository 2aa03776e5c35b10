// Which ISA's kernels run: the widest that the processor has, unless FUSEDACT_CPU_CAPABILITY names a narrower one.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "segments.h"

namespace fusedact::cpu {
namespace {

#define FUSEDACT_KERNELS(label, isa) \
  assemble(label, isa::forward_table(), isa::backward_table, isa::double_backward_table, isa::widen, isa::narrow)

Kernels assemble(const char* label, Table<ForwardRun> forward, Table<BackwardRun> (*backward)(Saved),
                 Table<DoubleBackwardRun> (*double_backward)(Saved), Convert (*widen)(DType, bool),
                 Convert (*narrow)(DType, bool)) {
  Kernels k{label,
            forward,
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

Kernels choose() {
  const char* asked = std::getenv("FUSEDACT_CPU_CAPABILITY");
  const std::string want = asked ? asked : "";
  if (!want.empty() && want != "default" && want != "avx2" && want != "avx512")
    throw std::runtime_error("FUSEDACT_CPU_CAPABILITY is '" + want + "', expected default, avx2 or avx512");
#if defined(FUSEDACT_HAS_AVX2)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  const bool avx2 = false;
#endif
#if defined(FUSEDACT_HAS_AVX512)
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  const bool avx512 = false;
#endif
  if ((want == "avx2" && !avx2) || (want == "avx512" && !avx512))
    throw std::runtime_error("FUSEDACT_CPU_CAPABILITY is '" + want + "', which this processor or this build lacks");
#if defined(FUSEDACT_HAS_AVX512)
  if (avx512 && (want.empty() || want == "avx512")) return FUSEDACT_KERNELS("avx512", avx512);
#endif
#if defined(FUSEDACT_HAS_AVX2)
  if (avx2 && want != "default") return FUSEDACT_KERNELS("avx2", avx2);
#endif
  return FUSEDACT_KERNELS("default", default_);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

const char* capability() { return kernels().capability; }

}  // namespace fusedact::cpu
