// Units of work (rows, strips) in chunks that the shape alone fixes, each with sums of its own, so that the bits of a sum do
// not depend on the number of threads. For operators whose rows are no runs of one activation, see tiles.h for those.
//
// Knows no operator, no SIMD and no torch. Not for files that are compiled per ISA.
#pragma once

#include "blocks.h"
#include "tiles.h"

namespace fusedact::cpu {

// A vector in the compute type: itself if it is that, else a copy; null if it is absent.
template <class C>
class Widened {
 public:
  Widened(const Vector& v, int64_t count) : data_(static_cast<const C*>(v.data)) {
    if (v.extent == Extent::none || v.dtype == dtype_of<C>) return;
    copy_.resize(count);
    kernels().widen[static_cast<int>(v.dtype)][sizeof(C) == 8](v.data, copy_.data(), count, false);
    data_ = copy_.data();
  }
  const C* data() const { return data_; }

 private:
  std::vector<C> copy_;
  const C* data_;
};

// Calls body(first, last, sums) until every one of `units` is done. With `width` > 0, sums [width] starts at zero for each
// block of `together` units; `total` [width] becomes the sum of all of them, added up in float64 in their order.
template <class C, class Body>
void for_chunks(int64_t units, int64_t width, int64_t together, const Parallel& p, int64_t grain,
                std::vector<double>& total, Body body) {
  if (width == 0)
    return parallel(p, units, std::max<int64_t>(1, grain),
                    [&](int64_t first, int64_t last) { body(first, last, static_cast<C*>(nullptr)); });
  const int64_t blocks = (units + together - 1) / together;
  const int64_t chunk = (blocks + most_chunks - 1) / most_chunks, chunks = (blocks + chunk - 1) / chunk;
  std::vector<double> partial(chunks * width, 0.0);
  parallel(p, chunks, std::max<int64_t>(1, grain / (chunk * together)), [&](int64_t first, int64_t last) {
    std::vector<C> sums(width);
    for (int64_t c = first; c < last; ++c) {
      double* into = partial.data() + c * width;
      for (int64_t block = c * chunk; block < std::min((c + 1) * chunk, blocks); ++block) {
        std::fill(sums.begin(), sums.end(), C(0));
        body(block * together, std::min((block + 1) * together, units), sums.data());
        for (int64_t j = 0; j < width; ++j) into[j] += sums[j];
      }
    }
  });
  total.assign(width, 0.0);
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t j = 0; j < width; ++j) total[j] += partial[c * width + j];
}

}  // namespace fusedact::cpu
