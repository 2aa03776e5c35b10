// Memory for large CPU results: huge pages and a bounded free list.
//
// Knows allocators, not tensors.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>

namespace fusedact::memory {

// What a block is for. Some gradients are stored past the caches: a block of theirs is in memory, and to write a value into it
// reads it first; one of a value may be in the caches, and to store past them into it pushes it out first.
enum class Use : uint8_t { value, gradient };

// The allocator for a result of `bytes`: the library's own from the threshold up, torch's below it or when switched off.
c10::Allocator* allocator(size_t bytes, Use use);

struct Stats {
  int64_t cached_bytes;     // on the free list
  int64_t limit_bytes;      // what the free list may hold
  int64_t threshold_bytes;  // the smallest result that comes from here
  int64_t allocated_bytes;  // in living tensors
  int64_t hits, misses;     // allocations served from the free list, and by the operating system
  bool enabled;
};
Stats stats();

void set_limit(int64_t bytes);      // 0 switches the free list off
void set_threshold(int64_t bytes);  // 0 sends every result here
void empty_cache();
void enable(bool on);

}  // namespace fusedact::memory
