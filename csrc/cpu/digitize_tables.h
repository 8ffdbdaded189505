// What digitize's kernels are called by, at each SIMD level.
#pragma once

#include "../math/binning.h"
#include "../math/number.h"

namespace modfast {

template <class C>
struct DigitizeKernels {
  int64_t (*extend)(const C*, int64_t, C*, C*);
  int64_t (*extend_each)(const C*, int64_t, C*, C*);
  int64_t (*uniform_bytes)(const C*, int64_t, const UniformBins<C>&, int, uint8_t*);
  int64_t (*uniform_wide)(const C*, int64_t, const UniformBins<C>&, int, int16_t*);
  int64_t (*uniform_each_bytes)(const C*, int64_t, const C*, const C*, const C*, const C*, int,
                                uint8_t*);
  int64_t (*uniform_each_wide)(const C*, int64_t, const C*, const C*, const C*, const C*, int,
                               int16_t*);
  int64_t (*notebook_bytes)(const C*, int64_t, const NotebookBins<C>&, const C*, int, uint8_t*);
  int64_t (*notebook_wide)(const C*, int64_t, const NotebookBins<C>&, const C*, int, int16_t*);
  void (*below_bytes)(const C*, int64_t, const C*, int, int64_t, uint8_t*);
  void (*below_wide)(const C*, int64_t, const C*, int, int64_t, int16_t*);
};

// Rules of edges made in double, of all values or of each: clamped to [lo, hi], the nearest of the
// edges start + i * width is found by multiplication.
struct WideRules {
  const float *lo, *hi, *scale;
  const double *start, *width;
  bool each;
};

struct WideKernels {
  int64_t (*bytes)(const float*, int64_t, const WideRules&, int, uint8_t*);
  int64_t (*wide)(const float*, int64_t, const WideRules&, int, int16_t*);
};

struct DigitizeTables {
  DigitizeKernels<float> singles;
  DigitizeKernels<double> doubles;
  void (*widen_bfloat16)(const void*, int64_t, float*);
  void (*widen_float16)(const void*, int64_t, float*);
  WideKernels wide_singles, wide_bfloat16, wide_float16;
};

}  // namespace modfast
