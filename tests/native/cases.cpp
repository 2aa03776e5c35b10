// From bytes to a call: a row with parameters, a dtype, a pass, a shape around the sizes of packs and blocks, vectors, gain and
// clamp, aliasing, and elements among which are NaN, infinities, subnormals and kinks.
//
// Judged twice. Each result has the bits that its element has alone (a call with one element: no body, no tail, no layout), sums are
// the sums of those; and values and slopes are those of truth.h, loosely, since the sweep does that to the ulp.
#include "cases.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <sstream>
#include <vector>

#include "../../csrc/cpu/rows.h"
#include "../../csrc/registry.h"
#include "guarded.h"
#include "rows.h"

namespace proof {
namespace {

using namespace fusedact;

// ---- choices ---------------------------------------------------------------------------------------------------------

class Bytes {
 public:
  Bytes(const uint8_t* p, size_t n) : p_(p), left_(n) {}
  uint8_t byte() { return left_ ? --left_, *p_++ : 0; }
  uint32_t word() { return byte() | byte() << 8u | byte() << 16u | static_cast<uint32_t>(byte()) << 24u; }
  uint32_t below(uint32_t n) { return n <= 256 ? byte() % n : (byte() | byte() << 8u) % n; }
  bool flag() { return byte() & 1; }
  template <class T, size_t n>
  T of(const T (&list)[n]) {
    return list[below(n)];
  }

 private:
  const uint8_t* p_;
  size_t left_;
};

// Enough of a generator for elements: 16 bytes of input make any number of them.
struct Draw {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
};

constexpr int64_t most_elements = 4800;
constexpr DType dtypes[] = {DType::float32, DType::float64, DType::bfloat16, DType::float16};
constexpr const char* dtype_names[] = {"float32", "float64", "bfloat16", "float16"};

size_t size_of(DType t) { return t == DType::float64 ? 8 : t == DType::float32 ? 4 : 2; }

double element(const void* p, DType t, int64_t i) { return fusedact::cpu::value_at({p, t, Extent::full}, i); }
void put_element(void* p, DType t, int64_t i, double v) { fusedact::cpu::put({p, t}, &v, 1, i); }

double drawn(Draw& draw) {
  static constexpr double special[] = {
      0.0, -0.0,  1,      -1,   0.5,   -0.5,  2,      -2,       3,         -3,  6,    20,     -20,   88.72,  -103.97,
      -17, 1e-40, -1e-45, 3e38, -3e38, 65504, -65536, HUGE_VAL, -HUGE_VAL, NAN, 6e-8, 1e-310, 745.2, -709.8, 1e300};
  const uint32_t r = draw.next();
  if (r % 8 == 0) return special[r / 8 % std::size(special)];
  const double unit = static_cast<double>(draw.next()) / 0x1p31 * 2 - 1;
  return r % 8 < 6 ? unit * 6 : unit * 100;
}

// What an operator takes: checks.cpp turns away the rest.
std::vector<double> parameters(const Row& row, Bytes& b) {
  std::vector<double> p = row.params;
  if (p.empty() || b.below(3) == 0) return p;
  const std::string name = row.name;
  static constexpr double any[] = {0.0, 0.01, 0.25, 0.5, 0.7, 1.0, 1.5, 3.0, 20.0, 1e-3, 100.0, -0.5, -1.0};
  static constexpr double positive[] = {0.01, 0.25, 0.5, 0.7, 1.0, 1.5, 3.0, 20.0, 1e-3, 100.0};
  const bool signs = name == "threshold" || name == "fatrelu" || name == "leaky_relu" || name == "prelu" ||
                     name == "swish" || name == "elu" || name == "rrelu";
  for (double& v : p) v = signs ? b.of(any) : b.of(positive);
  if (name == "hardtanh" || name == "clamp") p = {-b.of(positive), b.of(positive)};
  return p;
}

// ---- one call --------------------------------------------------------------------------------------------------------

enum class Pass : uint8_t { forward, backward, double_backward };

struct Call {
  const Row* row;
  const Activation* a;
  std::vector<double> params;
  Pass pass;
  DType dtype;
  Shape shape;
  Saved saved;
  DType vector_dtype;
  Extent bias, weight;
  bool masked, in_place, want_bias, want_weight, pieces;
  Scalars scalars;
};

int64_t count_of(Extent e, const Shape& s) {
  return e == Extent::none ? 0 : e == Extent::one ? 1 : e == Extent::channel ? s.channels : s.numel();
}
DType compute_of(const Call& c) { return c.dtype == DType::float64 || c.a->wide ? DType::float64 : DType::float32; }

std::string words(const Call& c) {
  static constexpr const char* passes[] = {"forward", "backward", "double_backward"};
  static constexpr const char* saved[] = {"input", "output", "mask"};
  static constexpr const char* extents[] = {"none", "one", "channel", "full"};
  std::ostringstream s;
  s << passes[static_cast<int>(c.pass)] << " of " << c.row->name << "(";
  for (double p : c.params) s << p << " ";
  s << ") " << dtype_names[static_cast<int>(c.dtype)] << " [" << c.shape.outer << ", " << c.shape.channels << ", "
    << c.shape.inner << "] saved " << saved[static_cast<int>(c.saved)] << ", bias " << extents[static_cast<int>(c.bias)]
    << " and weight " << extents[static_cast<int>(c.weight)] << " of " << dtype_names[static_cast<int>(c.vector_dtype)]
    << ", gain " << c.scalars.gain;
  if (c.scalars.clamped) s << ", clamp " << c.scalars.clamp_min << " " << c.scalars.clamp_max;
  if (c.in_place) s << ", in place";
  if (c.pieces) s << ", in pieces";
  return s.str();
}

Call draw_call(Bytes& b) {
  Call c;
  c.row = &rows[b.below(static_cast<uint32_t>(rows.size()))];
  c.a = find_activation(c.row->name);
  c.params = parameters(*c.row, b);
  c.pass = static_cast<Pass>(b.below(3));
  c.dtype = b.of(dtypes);
  static constexpr int64_t edges[] = {1,  2,  3, 7,   8,   9,   15,  16,  17,  31,   32,   33,  63,
                                      64, 65, 0, 127, 128, 129, 511, 512, 513, 1023, 1025, 2049};
  c.shape = {1, 1, 1};
  int64_t* dims[] = {&c.shape.inner, &c.shape.channels, &c.shape.outer};
  for (int64_t* d : dims) {
    const int64_t wanted = b.flag() ? b.of(edges) : 1 + b.below(6);
    *d = c.shape.numel() * wanted <= most_elements ? wanted : 1;
  }
  c.vector_dtype =
      c.dtype == DType::bfloat16 || c.dtype == DType::float16 ? (b.flag() ? c.dtype : DType::float32) : c.dtype;
  c.bias = b.flag() ? Extent::channel : Extent::none;
  c.weight = Extent::none;
  if (c.a->weight && c.pass != Pass::double_backward) {
    static constexpr Extent extents[] = {Extent::none, Extent::one, Extent::channel, Extent::full};
    c.weight = b.of(extents);
  }
  static constexpr double gains[] = {1, 1, 1, 2, 0.5, -1, 1.41421356237};
  c.scalars.gain = b.of(gains);
  c.scalars.clamped = b.below(4) == 0;
  c.scalars.clamp_min = c.scalars.clamped ? -0.75 : -HUGE_VAL;
  c.scalars.clamp_max = c.scalars.clamped ? 1.25 : HUGE_VAL;
  c.saved = static_cast<Saved>(b.below(3));
  const bool scaled = c.scalars.gain != 1 || c.scalars.clamped;
  if (c.saved == Saved::output &&
      (!c.a->output || scaled || c.weight != Extent::none || !c.a->invertible(c.params.data())))
    c.saved = Saved::input;
  if (c.saved == Saved::mask && (!c.a->masked || c.weight != Extent::none || c.pass == Pass::double_backward))
    c.saved = Saved::input;
  if (c.pass == Pass::forward) c.saved = Saved::input;
  c.masked = c.pass == Pass::forward && c.a->masked && c.weight == Extent::none && b.flag();
  c.in_place = b.flag() && c.pass != Pass::double_backward;
  c.want_bias = b.flag();
  c.want_weight = b.flag() && c.weight != Extent::none && c.weight != Extent::full && c.saved == Saved::input &&
                  c.pass == Pass::backward;
  c.pieces = b.flag();
  return c;
}

// Pieces of one grain each, the last first: what threads do, at its worst.
void in_pieces(int64_t count, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t)) {
  for (int64_t begin = (count - 1) / grain * grain; begin >= 0; begin -= grain)
    body(context, begin, std::min(begin + grain, count));
}

struct Buffers {
  const void *x = nullptr, *grad = nullptr, *u = nullptr, *saved = nullptr, *bias = nullptr, *weight = nullptr;
  void *y = nullptr, *grad_x = nullptr, *grad_grad = nullptr, *grad_bias = nullptr, *grad_weight = nullptr;
  uint8_t* mask = nullptr;
};

void execute(const Call& c, const Buffers& m) {
  const Parallel parallel{c.pieces ? in_pieces : nullptr};
  const Vector bias{m.bias, c.vector_dtype, c.bias};
  const Vector weight{m.weight, c.weight == Extent::full ? compute_of(c) : c.vector_dtype, c.weight};
  Scalars scalars = c.scalars;
  scalars.params = c.params.data();
  if (c.pass == Pass::forward) {
    cpu::forward(*c.a, {c.shape, c.dtype, m.x, bias, weight, scalars, m.y, m.mask, parallel});
  } else if (c.pass == Pass::backward) {
    cpu::backward(*c.a, {c.shape,
                         c.dtype,
                         c.saved,
                         m.grad,
                         m.saved,
                         bias,
                         weight,
                         scalars,
                         m.grad_x,
                         {m.grad_bias, c.vector_dtype},
                         {m.grad_weight, c.vector_dtype},
                         parallel});
  } else {
    cpu::double_backward(*c.a, {c.shape,
                                c.dtype,
                                c.saved,
                                m.u,
                                m.grad,
                                m.saved,
                                bias,
                                scalars,
                                m.grad_grad,
                                m.grad_x,
                                {m.grad_bias, c.vector_dtype},
                                parallel});
  }
}

// ---- judgement -------------------------------------------------------------------------------------------------------

bool same(const void* a, const void* b, DType t, int64_t i, int64_t j) {
  const size_t n = size_of(t);
  if (!std::memcmp(static_cast<const char*>(a) + i * n, static_cast<const char*>(b) + j * n, n)) return true;
  return std::isnan(element(a, t, i)) && std::isnan(element(b, t, j));
}

// Loosely the truth: enough to tell a wrong channel or a wrong formula from a right one.
bool plausible(const Call& c, double v, double weight, int order, double factor, double got) {
  const bool narrow = compute_of(c) == DType::float32;
  double p[4] = {}, t[3];
  for (size_t i = 0; i < c.params.size(); ++i) p[i] = narrow ? static_cast<float>(c.params[i]) : c.params[i];
  if (c.weight != Extent::none) p[0] = weight;
  if (!(std::fabs(weight) < 1e4)) return true;
  if (!std::isfinite(v) || std::fabs(v) > 1e4 || !std::isfinite(factor) || std::fabs(factor) > 1e4) return true;
  c.row->truth(&v, 1, p, &t[0], &t[1], &t[2]);
  double want = order == 0 ? t[0] * c.scalars.gain : t[order] * factor * c.scalars.gain;
  if (c.scalars.clamped) {
    const double y = t[0] * c.scalars.gain;
    if (std::fabs(y - c.scalars.clamp_min) < 1e-3 || std::fabs(y - c.scalars.clamp_max) < 1e-3) return true;
    const bool inside = y > c.scalars.clamp_min && y < c.scalars.clamp_max;
    want = order == 0 ? std::clamp(want, c.scalars.clamp_min, c.scalars.clamp_max) : inside ? want : 0;
  }
  // At a jump, and a rounding beside it, either side will do.
  for (double step : {-1e-4, 1e-4}) {
    double beside = v + step * std::max(1.0, std::fabs(v)), s[3];
    c.row->truth(&beside, 1, p, &s[0], &s[1], &s[2]);
    if (std::fabs(s[order] - t[order]) > 0.01 * std::fabs(t[order]) + 0.01) return true;
  }
  if (!std::isfinite(want) || std::fabs(want) > 6e4) return true;
  const double relative = c.dtype == DType::bfloat16 ? 0.01 : c.dtype == DType::float16 ? 0.002 : 1e-4;
  return std::fabs(got - want) <= relative * std::fabs(want) + 2e-4 * std::max(1.0, std::fabs(factor * c.scalars.gain));
}

std::string complain(const Call& c, const char* what, int64_t i, double got, double want) {
  std::ostringstream s;
  s.precision(17);
  s << words(c) << ": " << what << " " << i << " is " << got << ", expected " << want;
  return s.str();
}

}  // namespace

std::string try_case(const uint8_t* bytes, size_t size) {
  Bytes b(bytes, size);
  const Call c = draw_call(b);
  const int64_t n = c.shape.numel(), compute_size = static_cast<int64_t>(size_of(compute_of(c)));
  Draw draw{b.word() | static_cast<uint64_t>(b.word()) << 32};

  static thread_local std::vector<std::unique_ptr<Guarded>> memory;
  while (memory.size() < 12) memory.push_back(std::make_unique<Guarded>(most_elements * 8));
  size_t used = 0;
  auto take = [&](size_t count) { return memory[used++]->take(count, b.flag()); };
  auto filled = [&](int64_t count, DType t) {
    char* p = take(static_cast<size_t>(count) * size_of(t));
    for (int64_t i = 0; i < count; ++i) put_element(p, t, i, drawn(draw));
    return p;
  };

  const DType weight_dtype = c.weight == Extent::full ? compute_of(c) : c.vector_dtype;
  const int64_t weights = count_of(c.weight, c.shape);
  Buffers m;
  m.bias = filled(count_of(c.bias, c.shape), c.vector_dtype);
  m.weight = filled(weights, weight_dtype);
  // What an in-place call will overwrite is kept, for the judge.
  std::vector<char> first(n * size_of(c.dtype));
  auto kept = [&](const void* p) {
    if (n) std::memcpy(first.data(), p, first.size());
  };
  if (c.pass == Pass::forward) {
    m.x = filled(n, c.dtype);
    kept(m.x);
    m.y = c.in_place ? const_cast<void*>(m.x) : take(n * size_of(c.dtype));
    if (c.masked) m.mask = reinterpret_cast<uint8_t*>(take(mask_bytes(n)));
  } else {
    m.grad = filled(n, c.dtype);
    kept(m.grad);
    if (c.saved == Saved::mask) {
      auto* mask = take(mask_bytes(n));
      for (int64_t i = 0; i < mask_bytes(n); ++i) mask[i] = static_cast<char>(draw.next());
      m.saved = mask;
    } else {
      m.saved = filled(n, c.dtype);
    }
    m.grad_x = c.in_place ? const_cast<void*>(m.grad) : take(n * size_of(c.dtype));
    if (c.pass == Pass::double_backward) {
      m.u = filled(n, c.dtype);
      m.grad_grad = take(n * size_of(c.dtype));
    }
    if (c.want_bias) m.grad_bias = take(c.shape.channels * size_of(c.vector_dtype));
    if (c.want_weight) m.grad_weight = take(weights * size_of(c.vector_dtype));
  }
  execute(c, m);
  for (size_t i = 0; i < used; ++i)
    if (!memory[i]->moat_is_dry()) return words(c) + ": wrote beside buffer " + std::to_string(i);

  // Each element alone. The sums of 16-bit gradients are taken before they are rounded: wide sums stand beside them.
  std::vector<double> sums(c.shape.channels, 0.0), sizes(c.shape.channels, 0.0),
      weight_sums(std::max<int64_t>(weights, 1), 0.0), weight_sizes(std::max<int64_t>(weights, 1), 0.0);
  const size_t e = size_of(c.dtype);
  auto at = [](const void* p, int64_t i, size_t bytes_each) {
    return static_cast<const char*>(p) + i * static_cast<int64_t>(bytes_each);
  };
  Call one = c;
  one.shape = {1, 1, 1};
  one.in_place = one.pieces = false;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t channel = i / c.shape.inner % c.shape.channels;
    double y[2] = {}, bias_term = 0, weight_term = 0;
    uint8_t bit = 0;
    Buffers single;
    single.bias = c.bias == Extent::channel ? at(m.bias, channel, size_of(c.vector_dtype)) : nullptr;
    const int64_t w = c.weight == Extent::one ? 0 : c.weight == Extent::channel ? channel : i;
    single.weight = weights ? at(m.weight, w, size_of(weight_dtype)) : nullptr;
    const double weight = weights ? element(m.weight, weight_dtype, w) : 0;
    const double bias = c.bias == Extent::channel ? element(m.bias, c.vector_dtype, channel) : -0.0;
    if (c.pass == Pass::forward) {
      single.x = first.data() + i * e;
      single.y = y;
      single.mask = c.masked ? &bit : nullptr;
      execute(one, single);
      if (!same(m.y, y, c.dtype, i, 0)) return complain(c, "y", i, element(m.y, c.dtype, i), element(y, c.dtype, 0));
      if (c.masked && (m.mask[i / 8] >> (i % 8) & 1) != (bit & 1)) return complain(c, "bit", i, !(bit & 1), bit & 1);
      const double x = element(single.x, c.dtype, 0),
                   v = compute_size == 4 ? static_cast<float>(x) + static_cast<float>(bias) : x + bias;
      if (!plausible(c, v, weight, 0, 1, element(y, c.dtype, 0)))
        return complain(c, "value", i, element(y, c.dtype, 0), v);
      continue;
    }
    const uint8_t own_bit = c.saved == Saved::mask ? static_cast<const uint8_t*>(m.saved)[i / 8] >> (i % 8) & 1 : 0;
    single.saved = c.saved == Saved::mask ? static_cast<const void*>(&own_bit) : at(m.saved, i, e);
    single.grad = first.data() + i * e;
    single.u = c.pass == Pass::double_backward ? at(m.u, i, e) : nullptr;
    double grad_grad = 0;
    single.grad_x = y;
    single.grad_grad = &grad_grad;
    single.grad_bias = c.want_bias ? &bias_term : nullptr;
    single.grad_weight = c.want_weight ? &weight_term : nullptr;
    execute(one, single);
    if (!same(m.grad_x, y, c.dtype, i, 0))
      return complain(c, "grad_x", i, element(m.grad_x, c.dtype, i), element(y, c.dtype, 0));
    if (c.pass == Pass::double_backward && !same(m.grad_grad, &grad_grad, c.dtype, i, 0))
      return complain(c, "grad_grad", i, element(m.grad_grad, c.dtype, i), element(&grad_grad, c.dtype, 0));
    if (c.saved == Saved::input) {
      const double x = element(single.saved, c.dtype, 0),
                   v = compute_size == 4 ? static_cast<float>(x) + static_cast<float>(bias) : x + bias;
      const double g = element(single.grad, c.dtype, 0), u = single.u ? element(single.u, c.dtype, 0) : 1;
      const bool twice = c.pass == Pass::double_backward;
      // Computed in double: x + bias is rounded otherwise, which a steep bend may show.
      if (!twice && !plausible(c, v, weight, 1, g, element(y, c.dtype, 0)))
        return complain(c, "slope", i, element(y, c.dtype, 0), v);
      if (twice && !plausible(c, x + bias, weight, 1, u, element(&grad_grad, c.dtype, 0)))
        return complain(c, "slope again", i, element(&grad_grad, c.dtype, 0), v);
    }
    const double term = c.want_bias ? element(&bias_term, c.vector_dtype, 0) : 0;
    sums[channel] += term;
    sizes[channel] += std::fabs(term);
    if (c.want_weight) {
      const double t = element(&weight_term, c.vector_dtype, 0);
      weight_sums[w] += t;
      weight_sizes[w] += std::fabs(t);
    }
  }
  const double eps = c.vector_dtype == DType::bfloat16  ? 0x1p-7
                     : c.vector_dtype == DType::float16 ? 0x1p-9
                     : c.vector_dtype == DType::float64 ? 0x1p-44
                                                        : 0x1p-18;
  auto close = [&](double got, double sum, double scale) {
    if (!std::isfinite(scale) || !std::isfinite(sum) ||
        std::fabs(scale) > (c.vector_dtype == DType::float16 ? 3e4 : 1e37))
      return true;
    // Terms that are subnormal have few digits of their own.
    const double step = c.vector_dtype == DType::float16 ? 1e-7 : c.vector_dtype == DType::bfloat16 ? 1e-40 : 1e-44;
    return std::fabs(got - sum) <= eps * scale + step * static_cast<double>(n);
  };
  for (int64_t k = 0; c.want_bias && c.pass != Pass::forward && k < c.shape.channels; ++k) {
    const double got = element(m.grad_bias, c.vector_dtype, k);
    if (!close(got, sums[k], sizes[k])) return complain(c, "grad_bias", k, got, sums[k]);
  }
  for (int64_t k = 0; c.want_weight && k < weights; ++k) {
    const double got = element(m.grad_weight, c.vector_dtype, k);
    if (!close(got, weight_sums[k], weight_sizes[k])) return complain(c, "grad_weight", k, got, weight_sums[k]);
  }
  return {};
}

}  // namespace proof
