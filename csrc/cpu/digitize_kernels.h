// Kernels of digitize on a run of values; compiled per SIMD level by for_each_level.h.
//
// Plain loops: compilers make of them what one would write by hand.

template <class C>
bool is_finite(C x) {
  return std::fabs(x) <= std::numeric_limits<C>::max();
}

// Stored numbers as numbers to compute with.
template <class T>
void widen(const void* x, int64_t n, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = load(static_cast<const T*>(x)[i]);
}

// The lowest and highest of n values; those not finite are counted and left out.
template <class C>
int64_t extend(const C* x, int64_t n, C* lowest, C* highest) {
  C lo = *lowest, hi = *highest;
  int32_t bad = 0;  // a run is a block
#pragma omp simd reduction(min : lo) reduction(max : hi) reduction(+ : bad)
  for (int64_t i = 0; i < n; ++i) {
    const bool good = is_finite(x[i]);
    const C low = good ? x[i] : std::numeric_limits<C>::infinity();
    const C high = good ? x[i] : -std::numeric_limits<C>::infinity();
    lo = low < lo ? low : lo;
    hi = high > hi ? high : hi;
    bad += !good;
  }
  *lowest = lo;
  *highest = hi;
  return bad;
}

// The same, value i apart from the others.
template <class C>
int64_t extend_each(const C* __restrict x, int64_t n, C* __restrict lo, C* __restrict hi) {
  int32_t bad = 0;
#pragma omp simd reduction(+ : bad)
  for (int64_t i = 0; i < n; ++i) {
    const bool good = is_finite(x[i]);
    const C low = good ? x[i] : std::numeric_limits<C>::infinity();
    const C high = good ? x[i] : -std::numeric_limits<C>::infinity();
    lo[i] = low < lo[i] ? low : lo[i];
    hi[i] = high > hi[i] ? high : hi[i];
    bad += !good;
  }
  return bad;
}

// After a loop that met numbers that are not finite: their codes are 0.
template <class C, class Code>
int64_t clear_bad(const C* x, int64_t n, Code* out) {
  int64_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (is_finite(x[i])) continue;
    out[i] = 0;
    ++bad;
  }
  return bad;
}

template <class C, class Code>
int64_t uniform(const C* __restrict x, int64_t n, const UniformBins<C>& rule, int bins,
                Code* __restrict out) {
  const UniformBins<C> b = rule;
  int32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<Code>(b.code(x[i], bins));
    bad |= !is_finite(x[i]);
  }
  return bad ? clear_bad(x, n, out) : 0;
}

template <class C, class Code>
int64_t uniform_each(const C* __restrict x, int64_t n, const C* __restrict lo,
                     const C* __restrict hi, const C* __restrict width, const C* __restrict scale,
                     int bins, Code* __restrict out) {
  int32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) {
    // A named one with its bool would not be vectorized.
    const int code = UniformBins<C>{lo[i], hi[i], width[i], scale[i], true}.code(x[i], bins);
    out[i] = static_cast<Code>(code);
    bad |= !is_finite(x[i]);
  }
  return bad ? clear_bad(x, n, out) : 0;
}

// The same of edges in double, as near as a T comes: `rules` has one of them, or one for each value.
template <class T, class Code>
int64_t uniform_wide(const float* __restrict x, int64_t n, const WideRules& rules, int bins,
                     Code* __restrict out) {
  int32_t bad = 0;
  const auto code = [bins](float value, float lo, float hi, float scale, double start,
                           double width) {
    value = value < lo ? lo : value;
    value = value > hi ? hi : value;
    const int near = static_cast<int>((value - lo) * scale + 0.5f);
    int below = near - (value < nearest<T>(near * width + start) ? 1 : 0);
    below = below > 0 ? below : 0;  // the first edge may lie above lo
    return static_cast<Code>(below < bins ? below : bins - 1);
  };
  const float* __restrict lo = rules.lo;
  const float* __restrict hi = rules.hi;
  const float* __restrict scale = rules.scale;
  const double* __restrict start = rules.start;
  const double* __restrict width = rules.width;
  if (rules.each) {
#pragma omp simd reduction(| : bad)
    for (int64_t i = 0; i < n; ++i) {
      out[i] = code(x[i], lo[i], hi[i], scale[i], start[i], width[i]);
      bad |= !is_finite(x[i]);
    }
  } else {
    const float lo0 = *lo, hi0 = *hi, scale0 = *scale;
    const double start0 = *start, width0 = *width;
#pragma omp simd reduction(| : bad)
    for (int64_t i = 0; i < n; ++i) {
      out[i] = code(x[i], lo0, hi0, scale0, start0, width0);
      bad |= !is_finite(x[i]);
    }
  }
  return bad ? clear_bad(x, n, out) : 0;
}

// Up to this many thresholds are compared with each value: to look one up takes longer.
constexpr int kCountedBins = 16;

template <class C, class Code>
int64_t notebook(const C* __restrict x, int64_t n, const NotebookBins<C>& rule,
                 const C* __restrict thresholds, int bins, Code* __restrict out) {
  const NotebookBins<C> b = rule;
  int32_t bad = 0;
  if (bins <= kCountedBins) {
    // Simpler loops over values are not vectorized.
    constexpr int kValues = 256 / sizeof(C);
    C values[kValues] = {};
    for (int64_t i = 0; i < n; i += kValues) {
      const int here = n - i < kValues ? static_cast<int>(n - i) : kValues;
      memcpy(values, x + i, here * sizeof(C));
      int32_t found[kValues] = {};
#pragma omp simd reduction(| : bad)
      for (int j = 0; j < kValues; ++j) {
        bad |= !is_finite(values[j]);
        values[j] = values[j] < b.lo ? b.lo : values[j];
        values[j] = values[j] > b.hi ? b.hi : values[j];
      }
      for (int k = 0; k < bins; ++k) {
#pragma omp simd
        for (int j = 0; j < kValues; ++j) found[j] += thresholds[k] <= values[j];
      }
      Code codes[kValues];
#pragma omp simd
      for (int j = 0; j < kValues; ++j) codes[j] = static_cast<Code>(notebook_code(found[j], bins));
      memcpy(out + i, codes, here * sizeof(Code));
    }
    return bad ? clear_bad(x, n, out) : 0;
  }
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) {
    const bool good = is_finite(x[i]);
    // A NaN would be looked up out of bounds.
    out[i] = static_cast<Code>(b.code(good ? x[i] : b.lo, thresholds, bins));
    bad |= !good;
  }
  return bad ? clear_bad(x, n, out) : 0;
}

// The number of n_edges edges <= each value: edge k of value i is edges[k * stride + i], or edges[k]
// for all values if stride is 0.
template <class C, class Code>
void below(const C* __restrict x, int64_t n, const C* __restrict edges, int n_edges, int64_t stride,
           Code* __restrict out) {
  constexpr int kValues = 256 / sizeof(C);  // as many as a few registers hold
  const auto count = [&](const C* values, int64_t first, int n_values) {
    int32_t found[kValues] = {};
    for (int k = 0; k < n_edges; ++k) {
      const C* e = stride == 0 ? edges + k : edges + k * stride + first;
      if (stride == 0) {
#pragma omp simd
        for (int j = 0; j < kValues; ++j) found[j] += *e <= values[j];
      } else {
#pragma omp simd
        for (int j = 0; j < n_values; ++j) found[j] += e[j] <= values[j];
      }
    }
    for (int j = 0; j < n_values; ++j) out[first + j] = static_cast<Code>(found[j]);
  };
  int64_t i = 0;
  for (; i + kValues <= n; i += kValues) count(x + i, i, kValues);
  if (i == n) return;
  C last[kValues] = {};
  memcpy(last, x + i, (n - i) * sizeof(C));
  count(last, i, static_cast<int>(n - i));
}

template <class C>
constexpr DigitizeKernels<C> kernels_of = {
    extend<C>,
    extend_each<C>,
    uniform<C, uint8_t>,
    uniform<C, int16_t>,
    uniform_each<C, uint8_t>,
    uniform_each<C, int16_t>,
    notebook<C, uint8_t>,
    notebook<C, int16_t>,
    below<C, uint8_t>,
    below<C, int16_t>,
};

template <class T>
constexpr WideKernels wide_of = {uniform_wide<T, uint8_t>, uniform_wide<T, int16_t>};

constexpr DigitizeTables kernels = {
    kernels_of<float>, kernels_of<double>, widen<bfloat16>, widen<float16>,
    wide_of<float>,    wide_of<bfloat16>,  wide_of<float16>};
