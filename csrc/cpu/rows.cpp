// Per-channel values in float64: read one at a time whatever their dtype, and written with one rounding.
#include "rows.h"

#include <bit>
#include <cmath>
#include <limits>

namespace fusedact::cpu {
namespace {

float from_bfloat16(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }
float from_half(uint16_t h) {
  const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023, sign = static_cast<uint32_t>(h & 0x8000) << 16;
  if (exponent == 0) {
    const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(tiny) | sign);
  }
  const uint32_t e = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | e << 23 | mantissa << 13);
}
uint16_t to_bfloat16(double v) {
  const float f = static_cast<float>(v);
  uint32_t b = std::bit_cast<uint32_t>(f);
  if (f != f) return 0x7fc0;
  const double back = f;  // to odd, so that the value is rounded once
  if (back != v && std::abs(back) <= std::numeric_limits<float>::max())
    b = (std::abs(back) > std::abs(v) ? b - 1 : b) | 1;
  return static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
uint16_t to_half(double v) {
  const uint64_t bits = std::bit_cast<uint64_t>(v);
  const auto sign = static_cast<uint16_t>(bits >> 48 & 0x8000);
  const double a = std::abs(v);
  if (!(a == a)) return sign | 0x7e00;
  if (a >= 65520.0) return sign | 0x7c00;
  if (a < 0x1p-14) return sign | static_cast<uint16_t>(std::nearbyint(a * 0x1p24));
  const int e = std::ilogb(a);
  const auto m = static_cast<uint32_t>(std::nearbyint(std::ldexp(a, 10 - e)));  // 1024 .. 2048
  return sign | static_cast<uint16_t>((static_cast<uint32_t>(e + 15) << 10) + (m - 1024));
}

}  // namespace

double value_at(const Vector& v, int64_t i) {
  switch (v.dtype) {
    case DType::float32: return static_cast<const float*>(v.data)[i];
    case DType::float64: return static_cast<const double*>(v.data)[i];
    case DType::bfloat16: return from_bfloat16(static_cast<const uint16_t*>(v.data)[i]);
    case DType::float16: return from_half(static_cast<const uint16_t*>(v.data)[i]);
  }
  return 0;
}

void put(const Sum& sum, const double* values, int64_t count, int64_t from) {
  if (!sum.data) return;
  switch (sum.dtype) {
    case DType::float32:
      std::transform(values, values + count, static_cast<float*>(sum.data) + from,
                     [](double v) { return static_cast<float>(v); });
      break;
    case DType::float64: std::copy_n(values, count, static_cast<double*>(sum.data) + from); break;
    case DType::bfloat16:
      std::transform(values, values + count, static_cast<uint16_t*>(sum.data) + from, to_bfloat16);
      break;
    case DType::float16:
      std::transform(values, values + count, static_cast<uint16_t*>(sum.data) + from, to_half);
      break;
  }
}

void zero(const Sum& sum, int64_t count) { put(sum, std::vector<double>(sum.data ? count : 0).data(), count); }

}  // namespace fusedact::cpu
