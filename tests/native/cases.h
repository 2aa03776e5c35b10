// One call of bias_act's passes, drawn from bytes, in guarded memory, and judged. For random bytes, libFuzzer, sanitizers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace proof {

// What was wrong, with the case in words; empty if nothing was. Any bytes are a case; missing ones are zeros.
// Stepping out of a buffer ends the process.
std::string try_case(const uint8_t* bytes, size_t size);

}  // namespace proof
