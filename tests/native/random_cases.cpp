// Random cases without end, or as many as asked for; a case that failed again, from its seed. Stands in for libFuzzer where there
// is no clang, with the same entry point: `make fuzz` is the one with it.
//
//   proof_cases [--count N] [--seed S]     (default 100,000 from seed 1; the seed of a failure is printed)
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "cases.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string wrong = proof::try_case(bytes, size);
  if (!wrong.empty()) {
    std::fprintf(stderr, "%s\n", wrong.c_str());
    std::abort();
  }
  return 0;
}

#ifndef FUSEDACT_LIBFUZZER
int main(int argc, char** argv) {
  uint64_t count = 100000, seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--count")) count = std::strtoull(argv[i + 1], nullptr, 10);
    if (!std::strcmp(argv[i], "--seed")) seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  const auto begin = std::chrono::steady_clock::now();
  int failures = 0;
  for (uint64_t k = 0; k < count && failures < 10; ++k) {
    std::mt19937_64 draw(seed + k);
    uint8_t bytes[48];
    for (auto& b : bytes) b = static_cast<uint8_t>(draw());
    const std::string wrong = proof::try_case(bytes, sizeof bytes);
    if (!wrong.empty())
      std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed + k), wrong.c_str()), ++failures;
  }
  std::printf("%llu cases from seed %llu, %d wrong, %.0f s\n", static_cast<unsigned long long>(count),
              static_cast<unsigned long long>(seed), failures,
              std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return failures ? 1 : 0;
}
#endif
