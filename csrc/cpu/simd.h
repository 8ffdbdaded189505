// Run-time choice among the SIMD levels that every CPU kernel is compiled for.
#pragma once

namespace modfast {

enum class SimdLevel : int { baseline, avx2, avx512 };
constexpr int kSimdLevels = 3;
constexpr const char* kSimdNames[kSimdLevels] = {"baseline", "avx2", "avx512"};

bool simd_built(SimdLevel level);      // compiled into this library
bool simd_supported(SimdLevel level);  // built, and this processor has it
SimdLevel simd_level();                // in use: the highest supported, unless set
void set_simd_level(SimdLevel level);  // level must be supported

// One kernel table per level, `tables[level]`; levels that are not built repeat the baseline's.
template <class Table>
const Table& at_level(const Table* const (&tables)[kSimdLevels]) {
  return *tables[static_cast<int>(simd_level())];
}

}  // namespace modfast
