// How values become codes: the rules of `digitize`, on CPU and GPU alike.
//
// A code is the number of thresholds <= x. It is found by multiplication, which gives the nearest
// threshold, and then by comparing with that one, so that it is exact for any rounding of the
// multiplication. Where the thresholds lie too close for that, or anywhere, they are searched.
#pragma once

#include <cmath>
#include <limits>

#include "portable.h"

// lo + i * step must round twice, as in numpy.linspace: no fused multiply-add from here on.
#if defined(__CUDACC__)
#elif defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace modfast {

MODFAST_BOTH float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
MODFAST_BOTH double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// Constants, because devices lack the functions of numeric_limits.
template <class C>
constexpr C kEpsilon = std::numeric_limits<C>::epsilon();
template <class C>
constexpr C kMost = std::numeric_limits<C>::max();

template <class C>
MODFAST_BOTH C bin_width(C lo, C hi, int bins) {
  const C step = (hi - lo) / static_cast<C>(bins);
  return step - step == 0 ? step : hi / static_cast<C>(bins) - lo / static_cast<C>(bins);
}

// Edge i of the uniform rule, 0 < i < bins.
template <class C>
MODFAST_BOTH C bin_edge(C lo, C hi, C width, int bins, int i) {
  // A range that overflows is taken by halves; one of a few subnormals has no width.
  if (!(hi - lo <= kMost<C>)) {
    return 2 * (product(static_cast<C>(i), width / 2) + lo / 2);
  }
  const C above = width == 0 ? product(static_cast<C>(i) / static_cast<C>(bins), hi - lo)
                             : product(static_cast<C>(i), width);
  return above + lo;
}

// What the uniform rule needs to know of a column.
template <class C>
struct UniformBins {
  C lo, hi, width;
  C scale;      // bins per unit
  bool direct;  // multiplication finds the nearest edge

  MODFAST_BOTH static UniformBins of(C lo, C hi, int bins) {
    UniformBins b{lo, hi, bin_width(lo, hi, bins), 0, true};
    if (!(lo < hi)) {
      b.width = 0;  // a constant: scale 0, code 0
      b.direct = lo == hi;
      return b;
    }
    b.scale = static_cast<C>(bins) / (hi - lo);
    // Edges and their places are off by a few units in the last place of the larger limit; half of a
    // bin would be too many.
    const C largest = std::fabs(lo) > std::fabs(hi) ? std::fabs(lo) : std::fabs(hi);
    b.direct = largest * 16 * kEpsilon<C> <= b.width && b.scale <= kMost<C> && hi - lo <= kMost<C>;
    return b;
  }

  // For `direct`. NaN gives any number, as an integer made of NaN is.
  MODFAST_BOTH int code(C x, int bins) const {
    x = x < lo ? lo : x;
    x = x > hi ? hi : x;
    const int nearest = static_cast<int>((x - lo) * scale + static_cast<C>(0.5));
    const int below = nearest - (x < product(static_cast<C>(nearest), width) + lo ? 1 : 0);
    return below < bins ? below : bins - 1;
  }
};

// Codes by a table of thresholds. The notebook's rule counts edges < x and takes one off; -1 wraps to
// the last bin. Where no value lies below the first, as of edges that are made in double, none wraps.
MODFAST_BOTH int notebook_code(int n_below, int bins) {
  return n_below > 0 ? n_below - 1 : bins - 1;
}

template <class C>
struct NotebookBins {
  C lo, hi;
  C scale;  // edges per unit

  MODFAST_BOTH static NotebookBins of(C lo, C hi, int bins) {
    return NotebookBins{lo, hi, lo < hi ? static_cast<C>(bins - 1) / (hi - lo) : 0};
  }

  // Whether multiplication finds the nearest of the thresholds: the edges, each raised to the next
  // number, so that those < x are the thresholds <= x.
  MODFAST_BOTH bool direct(const C* thresholds, int bins) const {
    bool near = lo <= hi && scale <= kMost<C>;
    for (int i = 0; i < bins && near; ++i) {
      near = std::fabs((thresholds[i] - lo) * scale - static_cast<C>(i)) <= static_cast<C>(0.25);
    }
    return near;
  }

  // For finite x, and where `direct`.
  MODFAST_BOTH int code(C x, const C* thresholds, int bins) const {
    x = x < lo ? lo : x;
    x = x > hi ? hi : x;
    const int nearest = static_cast<int>((x - lo) * scale + static_cast<C>(0.5));
    return notebook_code(nearest + (thresholds[nearest] <= x ? 1 : 0), bins);
  }
};

// The inner edges of the uniform rule, as an array of bins - 1.
template <class C>
struct UniformEdges {
  UniformBins<C> rule;
  int bins;

  MODFAST_BOTH C operator[](int i) const {
    return bin_edge(rule.lo, rule.hi, rule.width, bins, i + 1);
  }
};

// The number of ascending thresholds <= x.
template <class Thresholds, class C>
MODFAST_BOTH int count_thresholds(const Thresholds& thresholds, int n, C x) {
  int low = 0;
  while (n > 0) {
    const int half = n / 2;
    const bool right = thresholds[low + half] <= x;
    low = right ? low + half + 1 : low;
    n = right ? n - half - 1 : half;
  }
  return low;
}

}  // namespace modfast
