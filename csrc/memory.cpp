// Memory for large CPU results. The C library maps everything over 32 MiB afresh, so that a 128 MiB result costs ten
// times as much in page faults as in copying; what is smaller it recycles, but in small pages, and gives back to the
// system now and then. Here a result of 1.5 MiB or more comes in 2 MiB pages, where the system has them, and from a free
// list of blocks that were used before: for the same if there is one, the last one first. Without the free list only what
// the C library would map afresh comes from here.
//
// The free list holds at most `limit` bytes (1 GiB, or an eighth of the machine's memory if that is less: enough for
// the activations of a layer or two, too little to be missed) and gives back what was freed longest ago. A block is
// reused for the same size class (a multiple of 2 MiB) only, so nothing fragments.
//
// Knows allocators, not tensors.
#include "memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace fusedact::memory {
namespace {

constexpr size_t page = size_t{2} << 20;

constexpr size_t recycled_by_libc = size_t{32} << 20;  // and below; a map of one's own costs more than that
std::atomic<size_t> threshold{page / 4 * 3};           // a quarter of a page is left empty at most
std::atomic<bool> recycles{true};                      // the free list is on
std::atomic<bool> enabled{true};

// 2 MiB-aligned memory of the operating system, or nullptr.
void* map_block(size_t bytes) {
  void* raw = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto begin = reinterpret_cast<uintptr_t>(raw);
  uintptr_t aligned = (begin + page - 1) / page * page;
  if (size_t head = aligned - begin) munmap(raw, head);
  if (size_t tail = page - (aligned - begin)) munmap(reinterpret_cast<void*>(aligned + bytes), tail);
  void* block = reinterpret_cast<void*>(aligned);
#ifdef MADV_HUGEPAGE
  madvise(block, bytes, MADV_HUGEPAGE);  // advice: without huge pages the block is as good as any other
#endif
  return block;
}

int64_t default_limit() {
  int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return std::min<int64_t>(int64_t{1} << 30, memory / 8);
}

struct Block {
  void* data;
  size_t bytes;
  Use use;
};

class HugePages {
 public:
  c10::DataPtr allocate(size_t bytes, Use use) {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    size_t size = (bytes + page - 1) / page * page;
    std::unique_lock lock(mutex_);
    void* data = take(size, use);
    if (data != nullptr) {
      ++hits_;
    } else {
      ++misses_;
      lock.unlock();
      data = map_block(size);
      if (data == nullptr) {  // what the free list holds may be what is missing
        empty_cache();
        data = map_block(size);
      }
      TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "fusedact: no memory for a result of ", bytes, " bytes");
      lock.lock();
    }
    living_[data] = {data, size, use};
    allocated_ += size;
    lock.unlock();
    c10::profiledCPUMemoryReporter().New(data, size);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  void empty_cache() {
    std::lock_guard lock(mutex_);
    shrink(0);
  }
  void set_limit(size_t bytes) {
    std::lock_guard lock(mutex_);
    limit_ = bytes;
    shrink(limit_);
  }
  Stats stats() {
    std::lock_guard lock(mutex_);
    return {int64_t(cached_), int64_t(limit_), 0, int64_t(allocated_), hits_, misses_, true};
  }

  // A fork copies the lock as it stands, so the forking thread holds it meanwhile. The child starts with an empty free
  // list: writing to the parent's pages would copy them, which costs more than fresh ones.
  void before_fork() { mutex_.lock(); }
  void after_fork_parent() { mutex_.unlock(); }
  void after_fork_child() {
    shrink(0);
    mutex_.unlock();
  }

  static void release(void* data);

 private:
  // The youngest free block of this size class, whose pages are the likeliest to be in a cache; of the same use, if any is.
  void* take(size_t size, Use use) {
    auto fits = [&](const Block& block) { return block.bytes == size; };
    auto found = std::find_if(free_.rbegin(), free_.rend(), [&](const Block& b) { return fits(b) && b.use == use; });
    if (found == free_.rend()) found = std::find_if(free_.rbegin(), free_.rend(), fits);
    if (found == free_.rend()) return nullptr;
    void* data = found->data;
    free_.erase(std::next(found).base());
    cached_ -= size;
    return data;
  }

  void give_back(void* data) {
    std::unique_lock lock(mutex_);
    auto found = living_.find(data);
    const Block block = found->second;
    living_.erase(found);
    allocated_ -= block.bytes;
    if (!enabled || block.bytes > limit_) {
      lock.unlock();
      munmap(block.data, block.bytes);
      return;
    }
    shrink(limit_ - block.bytes);
    free_.push_back(block);
    cached_ += block.bytes;
  }

  // Unmaps what was freed longest ago, until at most `bytes` are cached.
  void shrink(size_t bytes) {
    auto last = free_.begin();
    for (; cached_ > bytes; ++last) {
      munmap(last->data, last->bytes);
      cached_ -= last->bytes;
    }
    free_.erase(free_.begin(), last);
  }

  std::mutex mutex_;
  std::vector<Block> free_;  // in the order in which they were freed
  std::unordered_map<void*, Block> living_;
  size_t limit_ = default_limit(), cached_ = 0, allocated_ = 0;
  int64_t hits_ = 0, misses_ = 0;
};

// Never destroyed: tensors may outlive every static object.
HugePages& huge_pages() {
  static HugePages* instance = [] {
    pthread_atfork([] { huge_pages().before_fork(); }, [] { huge_pages().after_fork_parent(); },
                   [] { huge_pages().after_fork_child(); });
    return new HugePages;
  }();
  return *instance;
}

void HugePages::release(void* data) {
  if (data == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(data);
  huge_pages().give_back(data);
}

// torch's view of them: one for each use.
class View final : public c10::Allocator {
  Use use_;

 public:
  explicit View(Use use) : use_(use) {}
  c10::DataPtr allocate(size_t bytes) override { return huge_pages().allocate(bytes, use_); }
  c10::DeleterFnPtr raw_deleter() const override { return &HugePages::release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

c10::Allocator* allocator(size_t bytes, Use use) {
  static View* const views[] = {new View(Use::value), new View(Use::gradient)};
  bool worth = recycles.load(std::memory_order_relaxed) || bytes > recycled_by_libc;
  bool large = bytes >= threshold.load(std::memory_order_relaxed) && enabled.load(std::memory_order_relaxed);
  return large && worth ? views[static_cast<int>(use)] : c10::GetCPUAllocator();
}

Stats stats() {
  Stats stats = huge_pages().stats();
  stats.threshold_bytes = static_cast<int64_t>(threshold.load());
  stats.enabled = enabled.load();
  return stats;
}

void set_limit(int64_t bytes) {
  TORCH_CHECK_VALUE(bytes >= 0, "fusedact.memory: the limit is ", bytes,
                    " bytes, but it must be 0 (no free list) or more");
  huge_pages().set_limit(static_cast<size_t>(bytes));
  recycles = bytes > 0;
}

void set_threshold(int64_t bytes) {
  TORCH_CHECK_VALUE(bytes >= 0, "fusedact.memory: the threshold is ", bytes, " bytes, but it must be 0 or more");
  threshold = static_cast<size_t>(bytes);
}

void empty_cache() { huge_pages().empty_cache(); }

void enable(bool on) {
  enabled = on;
  if (!on) empty_cache();
}

}  // namespace fusedact::memory
