// Kernels of wiring_sums; compiled per SIMD level by for_each_level.h.
//
// Lanes are columns, a pair of an input and a tap each, so that no number of kinds wastes any.
#include "lanes_kernels.h"
#include "by_tiles_kernels.h"

using V = Lanes<double>;

// What a connection counts as.
template <WiringNorm norm>
MODFAST_LANE V counted(V w) {
  // The smallest normal number: what is below counts as nothing, and has a logarithm beside.
  if constexpr (norm == WiringNorm::linear) return w < 0x1p-1022 ? V{} : w;
  if constexpr (norm == WiringNorm::softmax) return exp_down<double>(w);
  const V e = exp_down<double>(-larger(w, -w));
  return (w < 0 ? e : splat(1.0)) / (1 + e);
}

// And its logarithm, finite where it counts as nothing.
template <WiringNorm norm>
MODFAST_LANE V log_counted(V w) {
  if constexpr (norm == WiringNorm::linear) return log_up<double>(larger(w, splat(0x1p-1022)));
  if constexpr (norm == WiringNorm::softmax) return w;
  const V e = exp_down<double>(-larger(w, -w));
  return smaller(w, V{}) - log1p_up<double>(e, 1 / (1 + e));
}

template <class T>
MODFAST_LANE void widen(const T* from, int64_t n, double scale, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = scale * static_cast<double>(load(from[i]));
}

template <class T>
MODFAST_LANE void widen_row(const WiringRows& rows, int64_t row, int64_t first, int64_t n, double* to) {
  const T* from = static_cast<const T*>(rows.weights) + row * rows.stride + first;
  widen(from, n, rows.scales == nullptr ? 1.0 : rows.scales[row], to);
}

template <WiringNorm norm, class T>
void sum(const WiringRows& rows, double* totals, double* terms) {
  // Past the end zeros or weights of before, whose sums nobody reads.
  alignas(64) double weights[kSegment] = {};
  for (int64_t first = 0; first < rows.n_cols; first += kSegment) {
    const int64_t n = rows.n_cols - first < kSegment ? rows.n_cols - first : kSegment;
    for (int64_t row = 0; row < rows.n_rows; ++row) {
      widen_row<T>(rows, row, first, n, weights);
      for (int64_t c = 0; c < n; c += kLanes<double>) {
        const V w = load_lanes(weights + c), f = counted<norm>(w);
        double *total = totals + first + c, *term = terms + first + c;
        store_lanes(total, load_lanes(total) + f);
        store_lanes(term, load_lanes(term) + f * log_counted<norm>(w));
      }
    }
  }
}

template <int kRows, int kKinds>
MODFAST_LANE void multiply_tile(const double* left, const double* right, int64_t stride, int64_t n,
                                int64_t n_kinds, double* out) {
  V sums[kRows][kKinds] = {};
  for (int64_t c = 0; c < n; c += kLanes<double>) {
    V of_kind[kKinds];
#pragma GCC unroll 4
    for (int k = 0; k < kKinds; ++k) of_kind[k] = load_lanes(right + k * stride + c);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const V f = load_lanes(left + r * kSegment + c);
#pragma GCC unroll 4
      for (int k = 0; k < kKinds; ++k) sums[r][k] += f * of_kind[k];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kKinds; ++k) {
      double whole = 0.0;
      for (int l = 0; l < kLanes<double>; ++l) whole += sums[r][k][l];
      out[r * n_kinds + k] += whole;
    }
  }
}

template <WiringNorm norm, class T>
void multiply(const WiringRows& rows, const double* right, int64_t stride, int64_t n_kinds, double* out) {
  static_assert(kMostRows == kTileRows);
  // Past the end what is finite, for `right` is zero there.
  alignas(64) double left[kMostRows * kSegment] = {};
  for (int64_t first = 0; first < rows.n_cols; first += kSegment) {
    const int64_t n = rows.n_cols - first < kSegment ? rows.n_cols - first : kSegment;
    for (int64_t row = 0; row < rows.n_rows; ++row) {
      double* to = left + row * kSegment;
      widen_row<T>(rows, row, first, n, to);
      for (int64_t c = 0; c < n; c += kLanes<double>) store_lanes(to + c, counted<norm>(load_lanes(to + c)));
    }
    by_tiles(rows.n_rows, [&](auto n_tile, int64_t) __attribute__((always_inline)) {
      by_tiles(n_kinds, [&](auto n_of_kinds, int64_t kind) __attribute__((always_inline)) {
        multiply_tile<decltype(n_tile)::value, decltype(n_of_kinds)::value>(
            left, right + kind * stride + first, stride, n, n_kinds, out + kind);
      });
    });
  }
}

#define MODFAST_FOR_DTYPES(kernel, norm) \
  { kernel<norm, float>, kernel<norm, double>, kernel<norm, bfloat16>, kernel<norm, float16> }
#define MODFAST_FOR_NORMS(kernel)                                                                  \
  {                                                                                                \
    MODFAST_FOR_DTYPES(kernel, WiringNorm::linear), MODFAST_FOR_DTYPES(kernel, WiringNorm::softmax), \
        MODFAST_FOR_DTYPES(kernel, WiringNorm::sigmoid)                                            \
  }

constexpr WiringKernels kernels = {MODFAST_FOR_NORMS(sum), MODFAST_FOR_NORMS(multiply)};

#undef MODFAST_FOR_NORMS
#undef MODFAST_FOR_DTYPES
