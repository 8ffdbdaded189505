#include "simd.h"

#include <atomic>

namespace modfast {
namespace {

SimdLevel highest() {
  for (const SimdLevel level : {SimdLevel::avx512, SimdLevel::avx2}) {
    if (simd_supported(level)) return level;
  }
  return SimdLevel::baseline;
}

std::atomic<SimdLevel>& current() {
  static std::atomic<SimdLevel> level{highest()};
  return level;
}

}  // namespace

bool simd_built(SimdLevel level) {
#if defined(__x86_64__)
  (void)level;
  return true;
#else
  return level == SimdLevel::baseline;
#endif
}

bool simd_supported(SimdLevel level) {
#if defined(__x86_64__)
  switch (level) {
    case SimdLevel::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vpopcntdq");
    case SimdLevel::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
    default:
      return true;
  }
#else
  return level == SimdLevel::baseline;
#endif
}

SimdLevel simd_level() { return current().load(std::memory_order_relaxed); }

void set_simd_level(SimdLevel level) { current().store(level, std::memory_order_relaxed); }

}  // namespace modfast
