// A SIMD pack: four native vectors of float or double, in flight together, with the operations that math.h asks for;
// and the loads and stores that widen from and narrow to the 16-bit types.
//
// Knows no activation and no loop. Everything is in an unnamed namespace: this header is compiled once per ISA, and no
// symbol of one ISA may be taken for another's. GCC's vector types give arithmetic, comparison and ?: on every
// machine; the few intrinsics below are what they do not give.
#pragma once

#include <cstring>
#include <iterator>
#include <type_traits>

#include "../math.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fusedact {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

#define FUSEDACT_INLINE [[gnu::always_inline]] inline
#define FUSEDACT_LAMBDA __attribute__((always_inline))

template <class T>
using int_of = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <class T, int n>
struct vector_of {
  using type [[gnu::vector_size(n * sizeof(T))]] = T;
};
template <class T, int n>
using Lanes = typename vector_of<T, n>::type;
template <class T>
using Native = Lanes<T, vector_bytes / sizeof(T)>;

// ---- one native vector: what the compiler's vectors lack ------------------------------------------------------------

#if defined(__AVX512F__)
FUSEDACT_INLINE Native<float> native_fma(Native<float> a, Native<float> b, Native<float> c) {
  return _mm512_fmadd_ps(a, b, c);
}
FUSEDACT_INLINE Native<double> native_fma(Native<double> a, Native<double> b, Native<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
FUSEDACT_INLINE Native<float> native_sqrt(Native<float> a) { return _mm512_sqrt_ps(a); }
FUSEDACT_INLINE Native<double> native_sqrt(Native<double> a) { return _mm512_sqrt_pd(a); }
FUSEDACT_INLINE uint32_t native_bits(Native<int32_t> m) { return _mm512_movepi32_mask((__m512i)m); }
FUSEDACT_INLINE uint32_t native_bits(Native<int64_t> m) { return _mm512_movepi64_mask((__m512i)m); }
#elif defined(__AVX2__)
FUSEDACT_INLINE Native<float> native_fma(Native<float> a, Native<float> b, Native<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
FUSEDACT_INLINE Native<double> native_fma(Native<double> a, Native<double> b, Native<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
FUSEDACT_INLINE Native<float> native_sqrt(Native<float> a) { return _mm256_sqrt_ps(a); }
FUSEDACT_INLINE Native<double> native_sqrt(Native<double> a) { return _mm256_sqrt_pd(a); }
FUSEDACT_INLINE uint32_t native_bits(Native<int32_t> m) { return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m)); }
FUSEDACT_INLINE uint32_t native_bits(Native<int64_t> m) {
  return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)m));
}
#elif defined(__SSE2__)
FUSEDACT_INLINE Native<float> native_sqrt(Native<float> a) { return _mm_sqrt_ps(a); }
FUSEDACT_INLINE Native<double> native_sqrt(Native<double> a) { return _mm_sqrt_pd(a); }
FUSEDACT_INLINE uint32_t native_bits(Native<int32_t> m) { return static_cast<uint32_t>(_mm_movemask_ps((__m128)m)); }
FUSEDACT_INLINE uint32_t native_bits(Native<int64_t> m) { return static_cast<uint32_t>(_mm_movemask_pd((__m128d)m)); }
#else
template <class N>
FUSEDACT_INLINE N native_sqrt(N a) {
  for (unsigned i = 0; i < sizeof(N) / sizeof(a[0]); ++i) a[i] = std::sqrt(a[i]);
  return a;
}
template <class N>
FUSEDACT_INLINE uint32_t native_bits(N m) {
  uint32_t bits = 0;
  for (unsigned i = 0; i < sizeof(N) / sizeof(m[0]); ++i) bits |= static_cast<uint32_t>(m[i] & 1) << i;
  return bits;
}
#endif

// a > b ? a : b and a < b ? a : b: b where either is NaN, as the x86 instructions have it.
#if defined(__AVX512F__)
FUSEDACT_INLINE Native<float> native_max(Native<float> a, Native<float> b) { return _mm512_max_ps(a, b); }
FUSEDACT_INLINE Native<double> native_max(Native<double> a, Native<double> b) { return _mm512_max_pd(a, b); }
FUSEDACT_INLINE Native<float> native_min(Native<float> a, Native<float> b) { return _mm512_min_ps(a, b); }
FUSEDACT_INLINE Native<double> native_min(Native<double> a, Native<double> b) { return _mm512_min_pd(a, b); }
#elif defined(__AVX2__)
FUSEDACT_INLINE Native<float> native_max(Native<float> a, Native<float> b) { return _mm256_max_ps(a, b); }
FUSEDACT_INLINE Native<double> native_max(Native<double> a, Native<double> b) { return _mm256_max_pd(a, b); }
FUSEDACT_INLINE Native<float> native_min(Native<float> a, Native<float> b) { return _mm256_min_ps(a, b); }
FUSEDACT_INLINE Native<double> native_min(Native<double> a, Native<double> b) { return _mm256_min_pd(a, b); }
#elif defined(__SSE2__)
FUSEDACT_INLINE Native<float> native_max(Native<float> a, Native<float> b) { return _mm_max_ps(a, b); }
FUSEDACT_INLINE Native<double> native_max(Native<double> a, Native<double> b) { return _mm_max_pd(a, b); }
FUSEDACT_INLINE Native<float> native_min(Native<float> a, Native<float> b) { return _mm_min_ps(a, b); }
FUSEDACT_INLINE Native<double> native_min(Native<double> a, Native<double> b) { return _mm_min_pd(a, b); }
#else
template <class N>
FUSEDACT_INLINE N native_max(N a, N b) {
  return a > b ? a : b;
}
template <class N>
FUSEDACT_INLINE N native_min(N a, N b) {
  return a < b ? a : b;
}
#endif

// What a comparison of two vectors gives, one bit or one lane of ones for each of theirs, and a choice by it.
#if defined(__AVX512F__)
template <class T>
using NativeMask = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>;
template <int predicate>
FUSEDACT_INLINE __mmask16 native_compare(Native<float> a, Native<float> b) {
  return _mm512_cmp_ps_mask(a, b, predicate);
}
template <int predicate>
FUSEDACT_INLINE __mmask8 native_compare(Native<double> a, Native<double> b) {
  return _mm512_cmp_pd_mask(a, b, predicate);
}
FUSEDACT_INLINE Native<float> native_select(__mmask16 m, Native<float> a, Native<float> b) {
  return _mm512_mask_blend_ps(m, b, a);
}
FUSEDACT_INLINE Native<double> native_select(__mmask8 m, Native<double> a, Native<double> b) {
  return _mm512_mask_blend_pd(m, b, a);
}
FUSEDACT_INLINE uint32_t native_bits(__mmask16 m) { return m; }
FUSEDACT_INLINE uint32_t native_bits(__mmask8 m) { return m; }
#else
template <class T>
using NativeMask = Native<int_of<T>>;
template <class N, class M>
FUSEDACT_INLINE N native_select(M m, N a, N b) {
  return m ? a : b;
}
#endif

#if defined(__AVX2__)
constexpr bool native_fma_rounds_once = true;
template <class N>
FUSEDACT_INLINE N native_fma_exact(N a, N b, N c) {
  return native_fma(a, b, c);
}
#elif defined(__ARM_FEATURE_FMA)
constexpr bool native_fma_rounds_once = true;
template <class N>
FUSEDACT_INLINE N native_fma(N a, N b, N c) {
  for (unsigned i = 0; i < sizeof(N) / sizeof(a[0]); ++i) a[i] = std::fma(a[i], b[i], c[i]);
  return a;
}
template <class N>
FUSEDACT_INLINE N native_fma_exact(N a, N b, N c) {
  return native_fma(a, b, c);
}
#else
constexpr bool native_fma_rounds_once = false;
template <class N>
FUSEDACT_INLINE N native_fma(N a, N b, N c) {
  return a * b + c;
}
// Dekker and Veltkamp: a b = p + e exactly while nothing overflows. Used where c cancels p.
template <class N>
FUSEDACT_INLINE N native_fma_exact(N a, N b, N c) {
  using T = std::remove_reference_t<decltype(a[0])>;
  const T splitter = sizeof(T) == 4 ? T(4097) : T(134217729);
  N sa = a * splitter, sb = b * splitter;
  N ah = sa - (sa - a), bh = sb - (sb - b);
  N al = a - ah, bl = b - bh;
  N p = a * b;
  N e = ((ah * bh - p) + ah * bl + al * bh) + al * bl;
  N sum = p + c;
  return sum + (((p - sum) + c) + e);
}
#endif

// ---- the pack -------------------------------------------------------------------------------------------------------

// Four members by name, not an array: the compiler keeps them in registers.
template <class N>
struct Quad {
  N a, b, c, d;
};
template <class F, class... Q>
FUSEDACT_INLINE auto each(F f, const Q&... q) {
  using N = decltype(f(q.a...));
  return Quad<N>{f(q.a...), f(q.b...), f(q.c...), f(q.d...)};
}

template <class T>
struct Mask {
  Quad<NativeMask<T>> v;
};

// A `brief` pack is computed for a result of 16 bits: math.h has shorter formulas for it.
template <class T, bool brief = false>
struct Pack {
  using scalar = T;
  static constexpr bool for_16_bits = brief;
  static constexpr bool without_fma = !native_fma_rounds_once;
  static constexpr bool looks_up = sizeof(T) == 4 && vector_bytes == 64;
  static constexpr bool reads_rows = sizeof(T) == 4 && vector_bytes == 32;
  static constexpr int native = vector_bytes / sizeof(T);
  static constexpr int size = 4 * native;
  Quad<Native<T>> v;

  Pack() = default;
  FUSEDACT_INLINE Pack(Quad<Native<T>> q) : v(q) {}
  FUSEDACT_INLINE Pack(Pack<T, !brief> other) : v(other.v) {}
  template <class S>
    requires std::is_arithmetic_v<S>
  FUSEDACT_INLINE explicit Pack(S s) {
    Native<T> n = Native<T>{} + static_cast<T>(s);
    if (s == 0) n = Native<T>{};
    v = {n, n, n, n};
  }
};

#define FUSEDACT_OPERATOR(op)                                                      \
  template <class T, bool brief>                                                   \
  FUSEDACT_INLINE Pack<T, brief> operator op(Pack<T, brief> a, Pack<T, brief> b) { \
    return each([](auto x, auto y) FUSEDACT_LAMBDA { return x op y; }, a.v, b.v);  \
  }
FUSEDACT_OPERATOR(+)
FUSEDACT_OPERATOR(-)
FUSEDACT_OPERATOR(*)
FUSEDACT_OPERATOR(/)
#undef FUSEDACT_OPERATOR
#if defined(__AVX512F__)
#define FUSEDACT_COMPARED(x, op, y, predicate) native_compare<predicate>(x, y)
#else  // The cast changes no bit: clang compares doubles to long long where int64_t is long.
#define FUSEDACT_COMPARED(x, op, y, predicate) (Native<int_of<T>>)(x op y)
#endif
#define FUSEDACT_OPERATOR(op, predicate)                                                                            \
  template <class T, bool brief>                                                                                    \
  FUSEDACT_INLINE Mask<T> operator op(Pack<T, brief> a, Pack<T, brief> b) {                                         \
    return {each([](auto x, auto y) FUSEDACT_LAMBDA { return FUSEDACT_COMPARED(x, op, y, predicate); }, a.v, b.v)}; \
  }
FUSEDACT_OPERATOR(<, _CMP_LT_OQ)
FUSEDACT_OPERATOR(<=, _CMP_LE_OQ)
FUSEDACT_OPERATOR(>, _CMP_GT_OQ)
FUSEDACT_OPERATOR(>=, _CMP_GE_OQ)
FUSEDACT_OPERATOR(==, _CMP_EQ_OQ)
FUSEDACT_OPERATOR(!=, _CMP_NEQ_UQ)
#undef FUSEDACT_OPERATOR
#undef FUSEDACT_COMPARED
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> operator-(Pack<T, brief> a) {
  return each([](auto x) FUSEDACT_LAMBDA { return -x; }, a.v);
}
template <class T>
FUSEDACT_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) {
  return {each([](NativeMask<T> x, NativeMask<T> y) FUSEDACT_LAMBDA { return NativeMask<T>(x & y); }, a.v, b.v)};
}
template <class T>
FUSEDACT_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) {
  return {each([](NativeMask<T> x, NativeMask<T> y) FUSEDACT_LAMBDA { return NativeMask<T>(x | y); }, a.v, b.v)};
}

template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> select(Mask<T> m, Pack<T, brief> a, Pack<T, brief> b) {
  return each([](auto k, auto x, auto y) FUSEDACT_LAMBDA { return native_select(k, x, y); }, m.v, a.v, b.v);
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> if_negative(Pack<T, brief> x, Pack<T, brief> a, Pack<T, brief> b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return each([](auto n, auto p, auto q) FUSEDACT_LAMBDA { return (Native<T>)_mm256_blendv_ps(q, p, n); }, x.v, a.v,
                b.v);
#endif
  return select(x < Pack<T, brief>(0), a, b);
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> fma(Pack<T, brief> a, Pack<T, brief> b, Pack<T, brief> c) {
  return each([](auto x, auto y, auto z) FUSEDACT_LAMBDA { return native_fma(x, y, z); }, a.v, b.v, c.v);
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> fma_exact(Pack<T, brief> a, Pack<T, brief> b, Pack<T, brief> c) {
  return each([](auto x, auto y, auto z) FUSEDACT_LAMBDA { return native_fma_exact(x, y, z); }, a.v, b.v, c.v);
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> sqrt(Pack<T, brief> x) {
  return each([](auto n) FUSEDACT_LAMBDA { return native_sqrt(n); }, x.v);
}
template <class T>
constexpr int_of<T> sign_bit = static_cast<int_of<T>>(std::make_unsigned_t<int_of<T>>(1) << (8 * sizeof(T) - 1));
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> abs(Pack<T, brief> x) {
  return each([](auto n) FUSEDACT_LAMBDA { return (Native<T>)((Native<int_of<T>>)n & ~sign_bit<T>); }, x.v);
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> copysign(Pack<T, brief> x, Pack<T, brief> sign) {
  return each(
      [](auto n, auto s) FUSEDACT_LAMBDA {
        using I = Native<int_of<T>>;
        return (Native<T>)(((I)n & ~sign_bit<T>) | ((I)s & sign_bit<T>));
      },
      x.v, sign.v);
}
// 2^(n + offset), where t = n + table<T>::magic, which has the exponent's bias in it.
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> exponent(Pack<T, brief> t, int offset) {
  return each(
      [offset](auto n) FUSEDACT_LAMBDA {
        using U = std::make_unsigned_t<int_of<T>>;
        return (Native<T>)(((Native<U>)n + static_cast<U>(offset)) << (sizeof(T) == 4 ? 23 : 52));
      },
      t.v);
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> at_least(Pack<T, brief> x, Pack<T, brief> low) {
  return each([](auto n, auto l) FUSEDACT_LAMBDA { return native_max(l, n); }, x.v, low.v);
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> at_most(Pack<T, brief> x, Pack<T, brief> high) {
  return each([](auto n, auto h) FUSEDACT_LAMBDA { return native_min(h, n); }, x.v, high.v);
}
#if defined(__AVX512F__)
// For each lane the entry of a table of 32 whose number is in its low bits.
template <bool brief>
FUSEDACT_INLINE Pack<float, brief> look_up(Pack<float, brief> t, const float (&table)[32]) {
  const __m512 first = _mm512_load_ps(table), second = _mm512_load_ps(table + 16);
  return each([&](auto n) FUSEDACT_LAMBDA { return (Native<float>)_mm512_permutex2var_ps(first, (__m512i)n, second); },
              t.v);
}
// The last bit of the exponent and the first four of the mantissa, in the low bits.
template <bool brief>
FUSEDACT_INLINE Pack<float, brief> octave_and_sixteenth(Pack<float, brief> x) {
  return each([](auto n) FUSEDACT_LAMBDA { return (Native<float>)_mm512_srli_epi32((__m512i)n, 19); }, x.v);
}
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
// For each lane the row of its number n, the one next to x per_unit, in any table of so many rows: where it begins, in bytes,
// and x - n / per_unit. The places go through memory, two in a word: vectors have no faster way to addresses.
template <bool brief>
struct Rows {
  alignas(32) uint64_t places[16];
  Pack<float, brief> rest;
};
template <class Table, bool brief>
FUSEDACT_INLINE Rows<brief> rows_of(Pack<float, brief> x) {
  using P = Pack<float, brief>;
  constexpr float magic = 0x1.8p23f / Table::per_unit;
  constexpr int last = 16 * (static_cast<int>(std::size(Table::row)) - 1);
  const P t = x + P(magic);  // n is in its low bits
  Rows<brief> rows;
  rows.rest = x - (t - P(magic));
  auto place = [&](int k, Native<float> n) FUSEDACT_LAMBDA {
    const __m256i bytes = _mm256_and_si256(_mm256_slli_epi32((__m256i)n, 4), _mm256_set1_epi32(last));
    _mm256_store_si256((__m256i*)rows.places + k, bytes);
  };
  place(0, t.v.a), place(1, t.v.b), place(2, t.v.c), place(3, t.v.d);
  asm("" : "+m"(rows.places));  // or g++ takes the lanes out of the vectors one by one
  return rows;
}
// The cubics in what is left of x, whose coefficients are the rows.
template <class Table, bool brief>
FUSEDACT_INLINE Pack<float, brief> cubic(const Rows<brief>& rows) {
  auto read = [](uint64_t place)
                  FUSEDACT_LAMBDA { return _mm_load_ps((const float*)((const char*)Table::row + place)); };
  auto two = [&](uint64_t first, uint64_t second)
                 FUSEDACT_LAMBDA { return _mm256_insertf128_ps(_mm256_castps128_ps256(read(first)), read(second), 1); };
  auto of = [&](int k, Native<float> r) FUSEDACT_LAMBDA {
    const uint64_t *lane = rows.places + 4 * k, a = lane[0], b = lane[1], c = lane[2], d = lane[3];
    const __m256 row04 = two((uint32_t)a, (uint32_t)c), row15 = two(a >> 32, c >> 32);
    const __m256 row26 = two((uint32_t)b, (uint32_t)d), row37 = two(b >> 32, d >> 32);
    const __m256 low01 = _mm256_unpacklo_ps(row04, row15), low23 = _mm256_unpacklo_ps(row26, row37);
    const __m256 high01 = _mm256_unpackhi_ps(row04, row15), high23 = _mm256_unpackhi_ps(row26, row37);
    const __m256 c0 = _mm256_shuffle_ps(low01, low23, 0x44), c1 = _mm256_shuffle_ps(low01, low23, 0xee);
    const __m256 c2 = _mm256_shuffle_ps(high01, high23, 0x44), c3 = _mm256_shuffle_ps(high01, high23, 0xee);
    auto y = (Native<float>)_mm256_fmadd_ps(_mm256_fmadd_ps(_mm256_fmadd_ps(c3, r, c2), r, c1), r, c0);
    asm volatile("" : "+x"(y) : : "memory");  // one vector after the other, or too much of four is in flight
    return y;
  };
  const auto& r = rows.rest.v;
  return Quad<Native<float>>{of(0, r.a), of(1, r.b), of(2, r.c), of(3, r.d)};
}
#endif
template <class T>
FUSEDACT_INLINE bool any(Mask<T> m) {
  return native_bits(static_cast<NativeMask<T>>((m.v.a | m.v.b) | (m.v.c | m.v.d))) != 0;
}
// x as another value, which a call may take by value without keeping x in memory.
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> apart(Pack<T, brief> x) {
#if defined(__x86_64__)
  return each(
      [](auto n) FUSEDACT_LAMBDA {
        asm("" : "+v"(n));
        return n;
      },
      x.v);
#else
  return x;
#endif
}
// Lane by lane through the C library: full range reduction, rarely wanted.
template <class T, bool brief, class F>
FUSEDACT_INLINE Pack<T, brief> lanewise(F f, Pack<T, brief> x) {
  T lane[Pack<T>::size];
  std::memcpy(lane, &x.v, sizeof lane);
  for (T& l : lane) l = f(l);
  std::memcpy(&x.v, lane, sizeof lane);
  return x;
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> sin(Pack<T, brief> x) {
  return lanewise([](T l) { return std::sin(l); }, x);
}
template <class T, bool brief>
FUSEDACT_INLINE Pack<T, brief> cos(Pack<T, brief> x) {
  return lanewise([](T l) { return std::cos(l); }, x);
}

// One bit per lane, lane 0 lowest. At most 64 lanes (AVX-512, float).
template <class T>
FUSEDACT_INLINE uint64_t bits(Mask<T> m) {
  constexpr int n = Pack<T>::native;
  return native_bits(m.v.a) | static_cast<uint64_t>(native_bits(m.v.b)) << n |
         static_cast<uint64_t>(native_bits(m.v.c)) << 2 * n | static_cast<uint64_t>(native_bits(m.v.d)) << 3 * n;
}
template <class T>
FUSEDACT_INLINE Mask<T> mask_from_bits(uint64_t word) {
  constexpr int n = Pack<T>::native;
#if defined(__AVX512F__)
  auto part = [&](int k) FUSEDACT_LAMBDA { return static_cast<NativeMask<T>>(word >> (k * n)); };
#else
  using I = Native<int_of<T>>;
  I lane;
  for (int i = 0; i < n; ++i) lane[i] = int_of<T>(1) << i;
  auto part = [&](int k) FUSEDACT_LAMBDA {
    return (I)(((I{} + static_cast<int_of<T>>((word >> (k * n)) & ((1ull << n) - 1))) & lane) != 0);
  };
#endif
  return {{part(0), part(1), part(2), part(3)}};
}

// ---- storage types and conversion -----------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
// What a dtype is computed in.
template <class S>
using compute_of = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class To, int n, class From>
FUSEDACT_INLINE auto converted(const void* p) {
  Lanes<From, n> source;
  std::memcpy(&source, p, sizeof source);
  return __builtin_convertvector(source, Lanes<To, n>);
}

// n consecutive elements, n the lanes of Native<T>, from unaligned memory.
template <class T>
FUSEDACT_INLINE Native<T> native_load(const T* p) {
  Native<T> n;
  std::memcpy(&n, p, sizeof n);
  return n;
}
template <class T>
FUSEDACT_INLINE Native<T> native_load(const std::conditional_t<sizeof(T) == 8, float, double>* p) {
  using S = std::conditional_t<sizeof(T) == 8, float, double>;
  return converted<T, Pack<T>::native, S>(p);
}
// float16's bits in the low halves of lanes, by integer arithmetic: where the machine has no instruction.
template <class U>
FUSEDACT_INLINE auto from_half_bits(U h) {
  using F = Lanes<float, sizeof(U) / 4>;
  U magnitude = h & 0x7fff, exponent_moved = (magnitude << 13) + (112u << 23);
  F tiny = (F)(exponent_moved + (1u << 23)) - 0x1p-14f;  // no subnormal on the way, so flushing them does no harm
  U bits = magnitude < 0x400 ? (U)tiny : magnitude < 0x7c00 ? exponent_moved : exponent_moved | 0x7f800000u;
  return (F)(bits | (h & 0x8000) << 16);
}
template <class F>
FUSEDACT_INLINE auto to_half_bits(F x) {
  using U = Lanes<uint32_t, sizeof(F) / 4>;
  U bits = (U)x, magnitude = bits & 0x7fffffffu;
  U normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;  // to nearest, ties to even
  U tiny = (U)((F)magnitude + 0.5f) - (U)(F{} + 0.5f);  // the last bit of 0.5 is half's smallest step: the sum rounds
  U finite = magnitude < 0x38800000u ? tiny : normal;
  U r = magnitude < 0x477ff000u ? finite : magnitude <= 0x7f800000u ? (U)(U{} + 0x7c00) : (U)(U{} + 0x7e00);
  return r | (bits >> 16 & 0x8000);
}
template <class T>
FUSEDACT_INLINE Native<T> native_load(const BFloat16* p) {
  constexpr int n = Pack<T>::native;
  if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)  // g++ converts in two halves: 0.10 instead of 0.05 ns per element
    return (Native<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
    return (Native<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
    return (Native<float>)(converted<uint32_t, n, uint16_t>(p) << 16);
#endif
  } else {
    Lanes<float, n> f = (Lanes<float, n>)(converted<uint32_t, n, uint16_t>(p) << 16);
    return __builtin_convertvector(f, Native<double>);
  }
}
template <class T>
FUSEDACT_INLINE Native<T> native_load(const Half* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  if constexpr (sizeof(T) == 4) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  auto f = from_half_bits(converted<uint32_t, Pack<T>::native, uint16_t>(p));
  return __builtin_convertvector(f, Native<T>);
}

template <class T>
FUSEDACT_INLINE void native_store(T* p, Native<T> x) {
  std::memcpy(p, &x, sizeof x);
}
template <class T>
FUSEDACT_INLINE void native_store(std::conditional_t<sizeof(T) == 8, float, double>* p, Native<T> x) {
  using S = std::conditional_t<sizeof(T) == 8, float, double>;
  auto t = __builtin_convertvector(x, Lanes<S, Pack<T>::native>);
  std::memcpy(p, &t, sizeof t);
}
// float64 -> 16 bit goes through float32 rounded to odd, so that the value is rounded once.
FUSEDACT_INLINE auto to_float_odd(Native<double> x) {
  constexpr int n = Pack<double>::native;
  using F = Lanes<float, n>;
  using I = Lanes<int32_t, n>;
  F f = __builtin_convertvector(x, F);
  Native<double> back = __builtin_convertvector(f, Native<double>);
  using L = Native<int64_t>;
  L away = ((L)(back > x) & (L)(x > 0)) | ((L)(back < x) & (L)(x < 0));  // rounded away from zero: step back, then odd
  L inexact = (L)(back != x) & (L)(x == x);
  I step = __builtin_convertvector(away, I), odd = __builtin_convertvector(inexact, I) & 1;
  return (F)(((I)f + step) | odd);
}
template <class F>
FUSEDACT_INLINE auto rounded_to_bfloat16(F x) {
  using U = Lanes<uint32_t, sizeof(F) / 4>;
  U b = (U)x;
  U r = (b + 0x7fff + ((b >> 16) & 1)) >> 16;  // to nearest, ties to even
  return x == x ? r : (U)(U{} + 0x7fc0);
}
template <class F>
FUSEDACT_INLINE auto to_bfloat16(F x) {
  return __builtin_convertvector(rounded_to_bfloat16(x), Lanes<uint16_t, sizeof(F) / 4>);
}
template <class T>
FUSEDACT_INLINE void native_store(BFloat16* p, Native<T> x) {
  if constexpr (sizeof(T) == 4) {
    auto h = to_bfloat16(x);
    std::memcpy(p, &h, sizeof h);
  } else {
    auto h = to_bfloat16(to_float_odd(x));
    std::memcpy(p, &h, sizeof h);
  }
}
#if defined(__AVX512F__)
FUSEDACT_INLINE void store_two(BFloat16* p, Native<float> a, Native<float> b) {
  auto rounded = [](__m512 x) FUSEDACT_LAMBDA {  // in the upper halves: to nearest, ties to even
    const __m512i bits = (__m512i)x;
    const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
    const __mmask16 odd = _mm512_mask_test_epi32_mask(number, bits, _mm512_set1_epi32(0x10000));
    const __m512i down = _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), number, bits, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(down, odd, down, _mm512_set1_epi32(1));
  };
  alignas(64) static constexpr int16_t upper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  _mm512_storeu_si512(p, _mm512_permutex2var_epi16(rounded(a), _mm512_load_si512(upper), rounded(b)));
}
#elif defined(__AVX2__)
FUSEDACT_INLINE void store_two(BFloat16* p, Native<float> a, Native<float> b) {
  __m256i lanes = _mm256_packus_epi32((__m256i)rounded_to_bfloat16(a), (__m256i)rounded_to_bfloat16(b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(lanes, 0b11011000));
}
#endif
template <class F>
FUSEDACT_INLINE void store_half(Half* p, F x) {
  auto h = __builtin_convertvector(to_half_bits(x), Lanes<uint16_t, sizeof(F) / 4>);
  std::memcpy(p, &h, sizeof h);
}
template <class T>
FUSEDACT_INLINE void native_store(Half* p, Native<T> x) {
  if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, 0));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, 0));
#else
    store_half(p, x);
#endif
  } else {
    store_half(p, to_float_odd(x));
  }
}

// ---- packs in memory ------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
FUSEDACT_INLINE void load_two(const BFloat16* p, Native<float>& a, Native<float>& b) {
  alignas(64) static constexpr int16_t first[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                    0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  alignas(64) static constexpr int16_t second[32] = {0, 16, 0, 17, 0, 18, 0, 19, 0, 20, 0, 21, 0, 22, 0, 23,
                                                     0, 24, 0, 25, 0, 26, 0, 27, 0, 28, 0, 29, 0, 30, 0, 31};
  const __m512i both = _mm512_loadu_si512(p);
  a = (Native<float>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(first), both);
  b = (Native<float>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(second), both);
}
#endif
template <class T, class S>
FUSEDACT_INLINE Pack<T> load(const S* p) {
  constexpr int n = Pack<T>::native;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, BFloat16> && sizeof(T) == 4) {
    Quad<Native<T>> q;
    load_two(p, q.a, q.b);
    load_two(p + 2 * n, q.c, q.d);
    return q;
  }
#endif
  return Quad<Native<T>>{native_load<T>(p), native_load<T>(p + n), native_load<T>(p + 2 * n),
                         native_load<T>(p + 3 * n)};
}
template <class T, bool brief, class S>
FUSEDACT_INLINE void store(S* p, Pack<T, brief> x) {
  constexpr int n = Pack<T>::native;
#if defined(__AVX2__)
  if constexpr (std::is_same_v<S, BFloat16> && sizeof(T) == 4) {  // two by two: half the shuffles
    store_two(p, x.v.a, x.v.b);
    store_two(p + 2 * n, x.v.c, x.v.d);
    return;
  }
#endif
  native_store<T>(p, x.v.a);
  native_store<T>(p + n, x.v.b);
  native_store<T>(p + 2 * n, x.v.c);
  native_store<T>(p + 3 * n, x.v.d);
}
// The first `count` lanes; the others are zeros on load and stay untouched in memory on store. One text for body and
// tail: a value has the same bits wherever it lies.
template <class T, class S>
FUSEDACT_INLINE Pack<T> load(const S* p, int count) {
  S lane[Pack<T>::size] = {};
  std::memcpy(lane, p, count * sizeof(S));
  return load<T>(static_cast<const S*>(lane));
}
template <class T, bool brief, class S>
FUSEDACT_INLINE void store(S* p, Pack<T, brief> x, int count) {
  S lane[Pack<T>::size];
  store(static_cast<S*>(lane), x);
  std::memcpy(p, lane, count * sizeof(S));
}

// Past the caches: for results that no cache would hold; whoever cut the work for threads orders such stores at the end. p must
// be aligned to vector_bytes.
template <class T>
FUSEDACT_INLINE void native_stream(T* p, Native<T> x) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)x);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)x);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)x);
#else
  native_store(p, x);
#endif
}
template <class T, bool brief, class S>
FUSEDACT_INLINE void stream_pack(S* p, Pack<T, brief> x) {
  if constexpr (std::is_same_v<S, T>) {
    constexpr int n = Pack<T>::native;
    native_stream(p, x.v.a);
    native_stream(p + n, x.v.b);
    native_stream(p + 2 * n, x.v.c);
    native_stream(p + 3 * n, x.v.d);
#if defined(__AVX2__)
  } else if constexpr (std::is_same_v<S, Half> && sizeof(T) == 4) {  // two halves in memory are not forwarded as one
    auto both = [](Native<float> a, Native<float> b) FUSEDACT_LAMBDA {
#if defined(__AVX512F__)
      return (Native<float>)_mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(a, 0)), _mm512_cvtps_ph(b, 0), 1);
#else
      return (Native<float>)_mm256_set_m128i(_mm256_cvtps_ph(b, 0), _mm256_cvtps_ph(a, 0));
#endif
    };
    native_stream(reinterpret_cast<float*>(p), both(x.v.a, x.v.b));
    native_stream(reinterpret_cast<float*>(p) + Pack<float>::native, both(x.v.c, x.v.d));
#endif
  } else {  // narrowed: gather whole vectors first
    constexpr int whole = vector_bytes / sizeof(float), n = sizeof(S) * Pack<T>::size / vector_bytes;
    alignas(vector_bytes) float lane[whole * n];
    store(reinterpret_cast<S*>(lane), x);
    for (int i = 0; i < n; ++i)
      native_stream(reinterpret_cast<float*>(p) + i * whole, native_load<float>(lane + i * whole));
  }
}

}  // namespace
}  // namespace fusedact
