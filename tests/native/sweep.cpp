// Every float against the truth: max ulp, where, and the mean, of value, first and second derivative of each row. No torch.
//
//   proof_sweep [ROW...] [--dtype float32|bfloat16|float16|float64|all] [--stride N [--dense LOW HIGH]] [--samples N]
//               [--threads N] [--isa NAME] [--list]
//
// float32: every pattern (--stride 1, the default) or every N-th, the neighbours of kinks, roots and range ends, and
// each one with LOW <= |x| < HIGH.
// 16 bits: all patterns. float64: --samples points, dense at the same places, against MPFR. A JSON line for each row, dtype and
// order on stdout, progress on stderr. Exits with 1 if a limit of the accuracy contract is missed.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "../../csrc/registry.h"
#include "definition.h"
#include "rows.h"

namespace proof {
namespace {

using fusedact::DType;

constexpr const char* orders[] = {"forward", "derivative", "second"};
constexpr int chunk = 4096;

struct Format {
  const char* name;
  DType dtype;
  int bits, digits, lowest, highest;  // digits after the point, exponents of the normal range
  uint64_t sign() const { return uint64_t{1} << (bits - 1); }
  uint64_t infinity() const { return (uint64_t{1} << (bits - 1)) - (uint64_t{1} << digits); }
  double tiny() const { return std::ldexp(1.0, lowest); }
  double top() const { return std::ldexp(1.0, highest + 1); }
};
constexpr Format formats[] = {{"float32", DType::float32, 32, 23, -126, 127},
                              {"bfloat16", DType::bfloat16, 16, 7, -126, 127},
                              {"float16", DType::float16, 16, 10, -14, 15},
                              {"float64", DType::float64, 64, 52, -1022, 1023}};

double half_to_double(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double magnitude = exponent == 31  ? (fraction ? std::nan("") : HUGE_VAL)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

double decoded(const Format& f, uint64_t pattern) {
  switch (f.dtype) {
    case DType::float32: return std::bit_cast<float>(static_cast<uint32_t>(pattern));
    case DType::bfloat16: return std::bit_cast<float>(static_cast<uint32_t>(pattern) << 16);
    case DType::float16: return half_to_double(static_cast<uint16_t>(pattern));
    default: return std::bit_cast<double>(pattern);
  }
}

uint64_t pattern_at(const char* at, int i, const Format& f) {
  uint64_t pattern = 0;
  std::memcpy(&pattern, at + i * (f.bits / 8), f.bits / 8);
  return pattern;
}

// ---- errors ----------------------------------------------------------------------------------------------------------

struct Summary {
  double worst = 0, sum = 0, least = HUGE_VAL, most = 0;  // of errors; of true magnitudes
};

// |got - want| in ulp of the format at `want`: the distance of neighbours there, the subnormal step below the normal range. Beyond
// the largest finite number both count as the next power of two. NaN for NaN is right; one of the two alone is not.
[[gnu::noinline]] Summary errors(const Format& f, const double* __restrict got, const double* __restrict want,
                                 int count, double* __restrict error) {
  const double tiny = f.tiny(), top = f.top(), largest = top * 0.75;
  const uint64_t scale = static_cast<uint64_t>(2046 + f.digits) << 52, exponent = 0x7ffull << 52;
  double worst = 0, sum = 0, least = HUGE_VAL, most = 0;
#pragma omp simd reduction(max : worst, most) reduction(+ : sum) reduction(min : least)
  for (int i = 0; i < count; ++i) {
    const double t = want[i], g = got[i], size = std::fabs(t);
    const double a = truth::above(truth::below(g, top), -top), b = truth::above(truth::below(t, top), -top);
    const double held = truth::above(truth::below(size, largest), tiny);
    const double inverse = std::bit_cast<double>(scale - (std::bit_cast<uint64_t>(held) & exponent));
    const double one_nan = (t == t) == (g == g) ? 0 : HUGE_VAL;
    const double e = (t != t ? 0 : std::fabs(a - b) * inverse) + one_nan;
    error[i] = e;
    worst = e > worst ? e : worst;
    least = size < least ? size : least;
    most = size > most ? size : most;
    sum += e;
  }
  return {worst, sum, least, most};
}

// ---- what is under test ----------------------------------------------------------------------------------------------

// f, f' and f'' of `count` elements, in and out in the format's patterns.
struct Results {
  alignas(64) char x[chunk * 8], one[chunk * 8], result[3][chunk * 8], ignored[chunk * 8];
  explicit Results(const Format& f) : format(f) {
    const uint64_t unit = f.dtype == DType::float32    ? 0x3f800000
                          : f.dtype == DType::bfloat16 ? 0x3f80
                          : f.dtype == DType::float16  ? 0x3c00
                                                       : std::bit_cast<uint64_t>(1.0);
    for (int i = 0; i < chunk; ++i) put(one, i, unit);
  }
  const Format& format;
  void put(char* at, int i, uint64_t pattern) const {
    std::memcpy(at + i * (format.bits / 8), &pattern, format.bits / 8);
  }
  uint64_t get(const char* at, int i) const { return pattern_at(at, i, format); }
  // x from `first` on, every stride-th pattern.
  void count_up(uint64_t first, uint64_t stride, int count) {
    if (format.bits == 32) {
      auto* at = reinterpret_cast<uint32_t*>(x);
      const auto from = static_cast<uint32_t>(first), step = static_cast<uint32_t>(stride);
      for (uint32_t i = 0; i < static_cast<uint32_t>(count); ++i) at[i] = from + i * step;
    } else {
      for (int i = 0; i < count; ++i) put(x, i, first + static_cast<uint64_t>(i) * stride);
    }
  }
  void compute(const Row& row, int count) {
    const fusedact::Activation& a = *fusedact::find_activation(row.name);
    fusedact::ForwardArgs forward;
    forward.shape = {1, 1, count};
    forward.dtype = format.dtype;
    forward.x = x;
    forward.scalars.params = row.params.data();
    forward.y = result[0];
    fusedact::cpu::forward(a, forward);
    fusedact::BackwardArgs backward;
    backward.shape = forward.shape;
    backward.dtype = format.dtype;
    backward.grad = one;
    backward.saved = x;
    backward.scalars = forward.scalars;
    backward.grad_x = result[1];
    fusedact::cpu::backward(a, backward);
    fusedact::DoubleBackwardArgs twice;
    twice.shape = forward.shape;
    twice.dtype = format.dtype;
    twice.u = twice.grad = one;
    twice.saved = x;
    twice.scalars = forward.scalars;
    twice.grad_grad = ignored;
    twice.grad_x = result[2];
    fusedact::cpu::double_backward(a, twice);
  }
};

// ---- where derivatives have roots ------------------------------------------------------------------------------------

constexpr double reach = 0.1;

// By sign changes on a grid, and at 0, where a valley may touch it. A jump through 0 counts.
std::vector<double> roots_of(const Row& row, int order) {
  auto at = [&](double x) {
    double v[3];
    row.truth(&x, 1, row.params.data(), &v[0], &v[1], &v[2]);
    return v[order];
  };
  std::vector<double> roots;
  if (order == 0 || row.periodic) return roots;
  if (at(0) == 0 && at(-reach) != 0 && at(reach) != 0) roots.push_back(0);
  for (double a = -130.0123; a < 130; a += 1. / 64) {
    double left = a, right = a + 1. / 64;
    if (!(at(left) * at(right) < 0)) continue;
    for (int i = 0; i < 60; ++i) {
      const double middle = (left + right) / 2;
      (at(left) * at(middle) > 0 ? left : right) = middle;
    }
    roots.push_back((left + right) / 2);
  }
  return roots;
}

// ---- the worst errors ------------------------------------------------------------------------------------------------

struct Worst {
  double ulp = 0, x = 0, got = 0;
};
enum Kind { plain, near_root, subnormal, kinds };

// The worst of every binade, so that MPFR may judge them again: an evaluation of MPFR for each of 2^32 inputs would take weeks, and
// one for each binade gives the same maximum.
//
// Why. Let c(x) be the error by truth.h and e(x) the one by MPFR, in ulp of the format. The truth is off by at most d, so
// |c - e| <= d, with d = 2^-18 for 32 bits and less for 16 (argued in truth.h; `truth_errors` measures d, and the run fails where it
// is more). Of a binade b let w be the input with the largest c, and x the one with the largest e. Then
//   e(w) >= c(w) - d >= c(x) - d >= e(x) - 2 d.
// The maximum that is printed is e(w) for the best binade: an error that an input truly has, and less than 2^-17 ulp below the
// largest that any input has. What misses a bound by more than that is found; a row that comes as near to its bound from below
// would be none the worse for another 2^-17.
// `judged_again` passes over binades whose c(w) is 0.001 below an e(w) that it has: 2 d is less.
struct Tally {
  Worst worst[3][kinds][4096];  // [order][kind][sign and exponent of x as a double]
  double sum[3] = {}, near_absolute[3] = {};
  int64_t count[3] = {}, points = 0;
  void take(int order, Kind kind, double x, double got, double ulp) {
    Worst& w = worst[order][kind][std::bit_cast<uint64_t>(x) >> 52];
    if (ulp > w.ulp) w = {ulp, x, got};
  }
  void merge(const Tally& o) {
    for (int k = 0; k < 3; ++k) {
      sum[k] += o.sum[k];
      count[k] += o.count[k];
      near_absolute[k] = std::max(near_absolute[k], o.near_absolute[k]);
      for (int kind = 0; kind < kinds; ++kind)
        for (int b = 0; b < 4096; ++b)
          if (o.worst[k][kind][b].ulp > worst[k][kind][b].ulp) worst[k][kind][b] = o.worst[k][kind][b];
    }
    points += o.points;
  }
};

const Definition& definition_of(const Row& row) {
  return *std::find_if(definitions.begin(), definitions.end(), [&](auto& d) { return !std::strcmp(d.name, row.name); });
}

struct Sweep {
  const Row& row;
  const Definition& definition;
  const Format& format;
  Limits limits;
  std::vector<double> params;  // as the kernel has them: rounded to float, unless it computes in double
  std::vector<double> roots[3];

  Sweep(const Row& r, const Format& f) : row(r), definition(definition_of(r)), format(f), params(r.params) {
    limits = f.bits == 64 ? definition.float64 : f.bits == 32 ? definition.float32 : contract16;
    if (f.bits != 64 && !fusedact::find_activation(r.name)->wide)
      for (double& p : params) p = static_cast<float>(p);
    for (int k = 0; k < 3; ++k) roots[k] = roots_of(r, k);
  }

  bool close(int order, double x, double true_value) const {
    if (order == 0) return false;
    if (row.periodic) return std::fabs(true_value) < 0.0998;
    return std::any_of(roots[order].begin(), roots[order].end(), [x](double r) { return std::fabs(x - r) <= reach; });
  }
  bool touches(int order, double low, double high) const {
    return std::any_of(roots[order].begin(), roots[order].end(),
                       [=](double r) { return r >= low - reach && r <= high + reach; });
  }
  bool kink(double x) const { return std::find(row.kinks.begin(), row.kinks.end(), x) != row.kinks.end(); }
  bool has_kink(double low, double high) const {
    return std::any_of(row.kinks.begin(), row.kinks.end(), [=](double k) { return k >= low && k <= high; });
  }

  void decode(const char* patterns, int count, double* x) const {
    if (format.bits == 32) {
      const auto* f = reinterpret_cast<const float*>(patterns);
      for (int i = 0; i < count; ++i) x[i] = f[i];
    } else {
      for (int i = 0; i < count; ++i) x[i] = decoded(format, pattern_at(patterns, i, format));
    }
  }

  // The results of one chunk of ascending or descending inputs.
  void judge(Results& r, int count, Tally& tally) const {
    alignas(64) double x[chunk], got[chunk], want[3][chunk], error[chunk];
    decode(r.x, count, x);
    r.compute(row, count);
    row.truth(x, count, params.data(), want[0], want[1], want[2]);
    const double low = std::min(x[0], x[count - 1]), high = std::max(x[0], x[count - 1]), tiny = format.tiny();
    const uint64_t binade = std::bit_cast<uint64_t>(x[0]) >> 52;
    const bool uniform = !has_kink(low, high) && !row.periodic && binade == std::bit_cast<uint64_t>(x[count - 1]) >> 52;
    tally.points += count;
    for (int k = 0; k < 3; ++k) {
      decode(r.result[k], count, got);
      const Summary here = errors(format, got, want[k], count, error);
      const bool normal = here.least >= tiny, small = here.most < tiny;
      if (uniform && (normal || small) && !touches(k, low, high)) {
        const Kind kind = normal ? plain : subnormal;
        if (normal) {
          tally.sum[k] += here.sum;
          tally.count[k] += count;
        }
        if (here.worst > tally.worst[k][kind][binade].ulp) {
          const auto at = std::max_element(error, error + count) - error;
          tally.take(k, kind, x[at], got[at], here.worst);
        }
        continue;
      }
      for (int i = 0; i < count; ++i) {
        if (kink(x[i])) continue;
        const double t = want[k][i];
        if (close(k, x[i], t)) {
          tally.take(k, near_root, x[i], got[i], error[i]);
          if (error[i] > limits.ulp[k])
            tally.near_absolute[k] = std::max(tally.near_absolute[k], std::fabs(got[i] - t));
        } else if (std::fabs(t) < tiny) {
          tally.take(k, subnormal, x[i], got[i], error[i]);
        } else {
          tally.take(k, plain, x[i], got[i], error[i]);
          tally.sum[k] += error[i];
          ++tally.count[k];
        }
      }
    }
  }

  Jet jet(double x) const {
    precision = definition.precision;
    return definition.jet(x, params.data());
  }
  // The error in ulp by MPFR, or a negative number where it has no answer.
  double exactly(int order, double x, double got) const { return exactly(jet(x), order, got); }
  double exactly(const Jet& jet, int order, double got, double* true_value = nullptr) const {
    const Real& t = order == 0 ? jet.f : order == 1 ? jet.d : jet.s;
    if (!t.finite()) return -1;
    const double rounded = t.to_double(), top = format.top();
    if (true_value) *true_value = rounded;
    if (got != got) return HUGE_VAL;
    if (format.bits == 64 ? std::isinf(rounded) : std::fabs(rounded) >= top)
      return std::fabs(got) >= top ? 0 : HUGE_VAL;
    const Real difference = abs(Real(std::isinf(got) ? std::copysign(top, got) : got) - t);
    const mpfr_exp_t e = mpfr_zero_p(t.v) ? format.lowest : mpfr_get_exp(t.v) - 1;
    const int exponent = static_cast<int>(std::clamp<mpfr_exp_t>(e, format.lowest, format.highest)) - format.digits;
    Real scaled;
    mpfr_mul_2si(scaled.v, difference.v, -exponent, MPFR_RNDN);
    return scaled.to_double();
  }
};

// ---- the inputs ------------------------------------------------------------------------------------------------------

uint64_t pattern_of(const Format& f, double x) {
  return f.bits == 64 ? std::bit_cast<uint64_t>(x) : std::bit_cast<uint32_t>(static_cast<float>(x));
}

// Where functions bend, root, and leave the range of a float or a double: the neighbours of these are always tried.
std::vector<double> places(const Sweep& s) {
  std::vector<double> p = {0,     0.05,   1,    8,    14.2,  16.6355, 20,     88.72,
                           88.02, 103.97, 37.5, 38.5, 708.4, 709.79,  745.13, 1e18};
  for (double k : s.row.kinks) p.push_back(k);
  for (int k = 1; k < 3; ++k)
    for (double r : s.roots[k])
      for (double offset : {0.0, -reach, reach}) p.push_back(r + offset);
  const size_t n = p.size();
  for (size_t i = 0; i < n; ++i) p.push_back(-p[i]);
  return p;
}

// Patterns that count from a place on, up and down, never over 0 or infinity.
template <class F>
void neighbours(const Format& f, double place, int reach_in_steps, F each) {
  const uint64_t here = pattern_of(f, place), magnitude = here & ~f.sign();
  const uint64_t low = magnitude < static_cast<uint64_t>(reach_in_steps) ? 0 : magnitude - reach_in_steps;
  for (uint64_t m = low; m <= magnitude + reach_in_steps && m < f.infinity(); ++m) each((here & f.sign()) | m);
}

struct Progress {
  std::string what;
  std::atomic<int64_t> done{0};
  int64_t total = 0;
  std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now(), shown = begin;
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); }
  void show() {  // by one thread
    static const bool terminal = isatty(2);
    const auto now = std::chrono::steady_clock::now();
    if (now - shown < std::chrono::seconds(terminal ? 1 : 60)) return;
    shown = now;
    const double part = static_cast<double>(done) / static_cast<double>(total), spent = seconds();
    std::fprintf(stderr, "%s%s %.1f %%, %.0f s, %.0f s to go%s", terminal ? "\r" : "", what.c_str(), 100 * part, spent,
                 part > 0 ? spent / part - spent : 0.0, terminal ? "   " : "\n");
    if (terminal && done == total) std::fputc('\n', stderr);
  }
};

// Every stride-th pattern from `low` on, below `high`, of either sign.
std::unique_ptr<Tally> sweep_patterns(const Sweep& s, uint64_t low, uint64_t high, uint64_t stride, int threads,
                                      Progress& progress) {
  const uint64_t per_sign = (high - low + stride - 1) / stride, chunks = (per_sign + chunk - 1) / chunk;
  progress.total += static_cast<int64_t>(2 * chunks);
  auto all = std::make_unique<Tally>();
  std::atomic<uint64_t> next{0};
  std::vector<std::unique_ptr<Tally>> own;
  for (int t = 0; t < threads; ++t) own.push_back(std::make_unique<Tally>());
  auto work = [&](int t) {
    auto r = std::make_unique<Results>(s.format);
    for (uint64_t c; (c = next.fetch_add(1)) < 2 * chunks;) {
      const uint64_t sign = c < chunks ? 0 : s.format.sign(), first = (c % chunks) * chunk;
      const int count = static_cast<int>(std::min<uint64_t>(chunk, per_sign - first));
      r->count_up(sign | (low + first * stride), stride, count);
      s.judge(*r, count, *own[t]);
      ++progress.done;
      if (t == 0) progress.show();
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (auto& t : others) t.join();
  for (auto& t : own) all->merge(*t);
  return all;
}

// The neighbours of all places, where the sweep has steps between them.
void sweep_places(const Sweep& s, Tally& tally) {
  auto r = std::make_unique<Results>(s.format);
  for (double place : places(s)) {
    int count = 0;
    neighbours(s.format, place, 2000, [&](uint64_t p) { r->put(r->x, count++, p); });
    s.judge(*r, count, tally);
  }
}

// float64: there are too many to try; MPFR judges each.
std::unique_ptr<Tally> sweep_samples(const Sweep& s, int64_t samples, Progress& progress) {
  auto tally = std::make_unique<Tally>();
  std::vector<uint64_t> points;
  for (double place : places(s)) {
    neighbours(s.format, place, 8, [&](uint64_t p) { points.push_back(p); });
    for (int j = 1; j < 52; ++j)
      for (double side : {-1.0, 1.0})
        points.push_back(pattern_of(s.format, place + side * std::ldexp(place ? place : 1, -j)));
  }
  std::mt19937_64 draw(1);
  auto uniform = [&](double low, double high) { return std::uniform_real_distribution<double>(low, high)(draw); };
  for (int64_t i = 0; i < samples; ++i) {
    const uint64_t any = draw() % s.format.infinity() | (draw() & s.format.sign());
    points.push_back(i % 4 < 2    ? pattern_of(s.format, uniform(-8, 8))
                     : i % 4 == 2 ? pattern_of(s.format, uniform(-750, 710))
                                  : any);
  }
  progress.total = static_cast<int64_t>(points.size());
  auto r = std::make_unique<Results>(s.format);
  for (size_t begin = 0; begin < points.size(); begin += chunk) {
    const int count = static_cast<int>(std::min<size_t>(chunk, points.size() - begin));
    for (int i = 0; i < count; ++i) r->put(r->x, i, points[begin + i]);
    r->compute(s.row, count);
    for (int i = 0; i < count; ++i) {
      const double x = decoded(s.format, points[begin + i]);
      ++progress.done;
      progress.show();
      if (!std::isfinite(x) || s.kink(x)) continue;
      ++tally->points;
      const Jet jet = s.jet(x);
      for (int k = 0; k < 3; ++k) {
        const double got = decoded(s.format, r->get(r->result[k], i));
        double t;
        const double error = s.exactly(jet, k, got, &t);
        if (error < 0) continue;
        const Kind kind = s.close(k, x, t) ? near_root : std::fabs(t) < s.format.tiny() ? subnormal : plain;
        tally->take(k, kind, x, got, error);
        if (kind == near_root && error > s.limits.ulp[k])
          tally->near_absolute[k] = std::max(tally->near_absolute[k], std::fabs(got - t));
        if (kind == plain) {
          tally->sum[k] += error;
          ++tally->count[k];
        }
      }
    }
  }
  return tally;
}

constexpr double truth_allowed = 0x1p-18;

// How far the truth in double is from MPFR's: the largest over `each` points of either sign from every exponent, and as many from
// [-8, 8]; in ulp of the format, near a root in parts of what is allowed there.
std::array<double, 3> truth_errors(const Sweep& s, int each) {
  std::mt19937_64 draw(2);
  std::array<double, 3> worst{};
  auto look = [&](double x) {
    if (s.kink(x) || !std::isfinite(x)) return;
    double v[3];
    s.row.truth(&x, 1, s.params.data(), &v[0], &v[1], &v[2]);
    const Jet jet = s.jet(x);
    for (int k = 0; k < 3; ++k) {
      double t = 0;
      const double error = s.exactly(jet, k, v[k], &t);
      const double absolute = std::fabs(v[k] - t) / s.limits.near_root * truth_allowed;
      worst[k] = std::max(worst[k], s.close(k, x, t) ? std::min(error, absolute) : error);
    }
  };
  const uint64_t binade = uint64_t{1} << s.format.digits;
  for (uint64_t first = 0; first < s.format.infinity(); first += binade)
    for (int i = 0; i < 2 * each; ++i)
      look(decoded(s.format, (first + draw() % binade) | (i % 2 ? s.format.sign() : 0)));
  for (int i = 0; i < 256 * each; ++i) look(static_cast<float>(std::uniform_real_distribution<double>(-8, 8)(draw)));
  return worst;
}

// Replaces what the sweep found in each binade by MPFR's judgement, and returns the largest.
Worst judged_again(const Sweep& s, const Tally& tally, int order, Kind kind) {
  Worst worst;
  for (const Worst& w : tally.worst[order][kind]) {
    if (w.ulp == 0 || w.ulp <= worst.ulp - 0.001) continue;
    Worst again = w;
    const double exact = s.exactly(order, w.x, w.got);
    if (exact >= 0) again.ulp = exact;
    if (again.ulp > worst.ulp) worst = again;
  }
  return worst;
}

// JSON has no infinity.
std::string number(double v) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", v);
  return std::isfinite(v) ? text : "1e999";
}

bool report(const Sweep& s, const Tally& tally, int stride, const double (&dense)[2]) {
  bool kept = true;
  const auto off = s.format.bits == 64 ? std::array<double, 3>{} : truth_errors(s, stride > 1 ? 1 : 8);
  for (int k = 0; k < 3; ++k) {
    const Worst worst = judged_again(s, tally, k, plain), tail = judged_again(s, tally, k, subnormal);
    // A result that is subnormal may be off by one subnormal step beside the rounding.
    const bool good = worst.ulp <= s.limits.ulp[k] && tail.ulp <= 1.5 && tally.near_absolute[k] <= s.limits.near_root &&
                      off[k] <= truth_allowed && tally.count[k] + tally.points > 0;
    kept &= good;
    // The names are those of Line in fusedact/proof.py.
    std::printf("{\"activation\": \"%s\", \"dtype\": \"%s\", \"order\": \"%s\", \"isa\": \"%s\", \"inputs\": %" PRId64
                ", \"stride\": %d, \"dense\": [%g, %g], \"ulp\": %s, \"at\": %.17g, \"mean\": %s, \"subnormal\": %s, "
                "\"subnormal_at\": %.17g, "
                "\"near_root\": %s, \"truth\": %s}\n",
                s.row.name, s.format.name, orders[k], fusedact::cpu::capability(), tally.points, stride,
                stride > 1 ? dense[0] : 0.0, stride > 1 ? dense[1] : 0.0, number(worst.ulp).c_str(), worst.x,
                number(tally.count[k] ? tally.sum[k] / static_cast<double>(tally.count[k]) : 0).c_str(),
                number(tail.ulp).c_str(), tail.x, number(tally.near_absolute[k]).c_str(), number(off[k]).c_str());
  }
  std::fflush(stdout);
  return kept;
}

void list_rows() {
  auto numbers = [](const std::vector<double>& v) {
    std::string text = "[";
    for (double d : v) {
      char one[40];
      std::snprintf(one, sizeof one, "%s%.17g", text.size() > 1 ? ", " : "", d);
      text += one;
    }
    return text + "]";
  };
  for (const Row& r : rows) {
    const Definition& d = definition_of(r);
    std::printf("{\"name\": \"%s\", \"params\": %s, \"kinks\": %s", r.name, numbers(r.params).c_str(),
                numbers(r.kinks).c_str());
    for (const auto& [dtype, limits] : {std::pair{"float32", d.float32}, std::pair{"float64", d.float64}})
      std::printf(", \"%s\": [%g, %g, %g, %g]", dtype, limits.ulp[0], limits.ulp[1], limits.ulp[2], limits.near_root);
    std::printf("}\n");
  }
}

int run(int argc, char** argv) {
  std::vector<std::string> names;
  std::string dtype = "float32";
  uint64_t stride = 1;
  int64_t samples = 20000;
  int threads = 1;
  double dense[2] = {};
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    auto value = [&] {
      if (++i >= argc) {
        std::fprintf(stderr, "%s wants a value\n", a.c_str());
        std::exit(2);
      }
      return argv[i];
    };
    if (a == "--dtype")
      dtype = value();
    else if (a == "--stride")
      stride = std::max(1ull, std::strtoull(value(), nullptr, 10));
    else if (a == "--dense")
      dense[0] = std::atof(value()), dense[1] = std::atof(value());
    else if (a == "--samples")
      samples = std::strtoll(value(), nullptr, 10);
    else if (a == "--threads")
      threads = std::max(1, std::atoi(value()));
    else if (a == "--isa")
      setenv("FUSEDACT_CPU_CAPABILITY", value(), 1);
    else if (a == "--list")
      return list_rows(), 0;
    else if (a[0] == '-')
      return std::fprintf(stderr, "%s is no option; see the head of tests/native/sweep.cpp\n", a.c_str()), 2;
    else
      names.push_back(a);
  }
  for (const std::string& name : names)
    if (std::none_of(rows.begin(), rows.end(), [&](const Row& r) { return name == r.name; }))
      return std::fprintf(stderr, "%s is no row; --list names them\n", name.c_str()), 2;
  bool kept = true, any = false;
  for (const Format& f : formats) {
    if (dtype != "all" && dtype != f.name) continue;
    any = true;
    for (const Row& r : rows) {
      if (!names.empty() && std::find(names.begin(), names.end(), r.name) == names.end()) continue;
      const Sweep s(r, f);
      Progress progress;
      progress.what = std::string(r.name) + " " + f.name;
      const uint64_t step = f.bits == 32 ? stride : 1;
      std::unique_ptr<Tally> tally;
      if (f.bits == 64) {
        tally = sweep_samples(s, samples, progress);
      } else {
        tally = sweep_patterns(s, 0, f.infinity(), step, threads, progress);
        if (step > 1) sweep_places(s, *tally);
        if (step > 1 && dense[1] > dense[0]) {
          const auto more = sweep_patterns(s, pattern_of(f, dense[0]), pattern_of(f, dense[1]), 1, threads, progress);
          for (int k = 0; k < 3; ++k) more->sum[k] = 0, more->count[k] = 0;  // the mean is over all patterns alike
          tally->merge(*more);
        }
      }
      kept &= report(s, *tally, f.bits == 64 ? 0 : static_cast<int>(step), dense);
    }
  }
  if (!any)
    return std::fprintf(stderr, "--dtype is float32, bfloat16, float16, float64 or all, but got %s\n", dtype.c_str()),
           2;
  return kept ? 0 : 1;
}

}  // namespace
}  // namespace proof

int main(int argc, char** argv) {
  try {
    return proof::run(argc, argv);
  } catch (const std::exception& e) {  // an instruction set that is not there
    return std::fprintf(stderr, "%s\n", e.what()), 2;
  }
}
