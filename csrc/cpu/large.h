// Memory for large results that a training loop makes at every step.
#pragma once

#include "../abi.h"

namespace modfast {

// An uninitialized CPU tensor like `like`, of `bytes` bytes.
//
// The C library often returns large blocks to the system when they are freed, and the next step pays
// for fresh, zeroed pages: for a 64 MB gradient 3 times the time of computing it. These blocks lie in
// huge pages and are kept for the next call, up to kKeptBytes of them.
Tensor large_like(const Tensor& like, int64_t bytes);

constexpr int64_t kLargeBytes = int64_t{1} << 20;
constexpr int64_t kKeptBytes = int64_t{256} << 20;

}  // namespace modfast
