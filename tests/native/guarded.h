// Memory in which a step too far is seen: each buffer ends, or begins, at a page that nobody may touch, and what lies between a
// buffer and the page at its other side holds a pattern that must be there afterwards.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace proof {

class Guarded {
 public:
  explicit Guarded(size_t most) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    room_ = (most + page_ - 1) / page_ * page_;
    base_ = static_cast<char*>(mmap(nullptr, room_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page_, room_, PROT_READ | PROT_WRITE)) {
      std::perror("guarded memory");
      std::abort();
    }
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base_, room_ + 2 * page_); }

  // `bytes` that end at the page behind, or begin at the one before; never more than the constructor was told.
  char* take(size_t bytes, bool at_end) {
    if (bytes > room_) std::abort();
    taken_ = bytes;
    at_ = base_ + page_ + (at_end ? room_ - bytes : 0);
    moat_ = room_ - bytes < moat_most ? room_ - bytes : moat_most;
    std::memset(moat(), pattern, moat_);
    return at_;
  }
  bool moat_is_dry() const {
    for (size_t i = 0; i < moat_; ++i)
      if (moat()[i] != pattern) return false;
    return true;
  }

 private:
  static constexpr char pattern = 0x5a;
  static constexpr size_t moat_most = 256;
  char* moat() const { return at_ == base_ + page_ ? at_ + taken_ : at_ - moat_; }
  size_t page_, room_ = 0, taken_ = 0, moat_ = 0;
  char *base_ = nullptr, *at_ = nullptr;
};

}  // namespace proof
