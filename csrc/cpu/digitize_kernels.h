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
    const UniformBins<C> b{lo[i], hi[i], width[i], scale[i], true};
    out[i] = static_cast<Code>(b.code(x[i], bins));
    bad |= !is_finite(x[i]);
  }
  return bad ? clear_bad(x, n, out) : 0;
}

template <class C, class Code>
int64_t notebook(const C* __restrict x, int64_t n, const NotebookBins<C>& rule,
                 const C* __restrict thresholds, int bins, Code* __restrict out) {
  const NotebookBins<C> b = rule;
  int32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) {
    const bool good = is_finite(x[i]);
    // A NaN would be looked up out of bounds.
    out[i] = static_cast<Code>(b.code(good ? x[i] : b.lo, thresholds, bins));
    bad |= !good;
  }
  return bad ? clear_bad(x, n, out) : 0;
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
};

constexpr DigitizeTables kernels = {
    kernels_of<float>, kernels_of<double>, widen<bfloat16>, widen<float16>};
