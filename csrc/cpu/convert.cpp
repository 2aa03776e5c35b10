// Runs between storage and compute types: widening is exact, narrowing rounds once, to nearest even. Once per ISA.
#include "loops.h"

namespace fusedact::cpu {
namespace {

template <class S, class T>
void widen_run(const void* from, void* to, int64_t count, bool) {
  const S* s = static_cast<const S*>(from);
  T* t = static_cast<T*>(to);
  constexpr int n = Pack<T>::size;
  int64_t i = 0;
  for (; i + n <= count; i += n) store(t + i, load<T>(s + i));
  if (i < count) store(t + i, load<T>(s + i, static_cast<int>(count - i)), static_cast<int>(count - i));
}

template <class S, class T>
void narrow_run(const void* from, void* to, int64_t count, bool stream) {
  const T* t = static_cast<const T*>(from);
  S* s = static_cast<S*>(to);
  for_packs<T>(count,
               [&](int64_t i, auto width) FUSEDACT_LAMBDA { write(s + i, read<T>(t + i, width), width, stream); });
}

#define FUSEDACT_CONVERSION(function)                                                  \
  template <class T>                                                                   \
  Convert function##_for(DType dtype) {                                                \
    switch (dtype) {                                                                   \
      case DType::float32: return sizeof(T) == 4 ? nullptr : function##_run<float, T>; \
      case DType::float64: return nullptr;                                             \
      case DType::bfloat16: return function##_run<BFloat16, T>;                        \
      case DType::float16: return function##_run<Half, T>;                             \
    }                                                                                  \
    return nullptr;                                                                    \
  }
FUSEDACT_CONVERSION(widen)
FUSEDACT_CONVERSION(narrow)
#undef FUSEDACT_CONVERSION

}  // namespace

Convert FUSEDACT_CPU_CAPABILITY::widen(DType dtype, bool to_double) {
  return to_double ? widen_for<double>(dtype) : widen_for<float>(dtype);
}
Convert FUSEDACT_CPU_CAPABILITY::narrow(DType dtype, bool from_double) {
  return from_double ? narrow_for<double>(dtype) : narrow_for<float>(dtype);
}
}  // namespace fusedact::cpu
