// A layer's weights as the kernels of wiring_sums see them.
#pragma once

#include "../abi.h"

namespace modfast {

// What a connection of weight w counts as: max(0, w), e^w, 1 / (1 + e^-w).
enum class WiringNorm : int { linear, softmax, sigmoid };
constexpr int kWiringNorms = 3;

// Columns that are widened to double at a time: kMostRows of them fit the first-level cache.
constexpr int64_t kSegment = 512;
constexpr int64_t kMostRows = 4;
// Doubles of a row of sums are padded to a multiple of it, a register's lanes at most.
constexpr int64_t kPad = 8;

// Some rows (outputs) of the weights from some inputs.
struct WiringRows {
  const void* weights;
  int64_t n_rows, n_cols;
  int64_t stride;        // between rows
  const double* scales;  // a factor for each row; null for 1
};

struct WiringKernels {
  // totals[c] += f(w), terms[c] += f(w) ln f(w), over all rows of a column; both padded.
  void (*sum[kWiringNorms][kDtypes])(const WiringRows&, double* totals, double* terms);
  // out[r, k] += sum over columns of f(w) right[k, c]; of kMostRows rows at most. The rows of `right`
  // are `stride` apart, and zero where padded.
  void (*multiply[kWiringNorms][kDtypes])(const WiringRows&, const double* right, int64_t stride,
                                          int64_t n_kinds, double* out);
};

}  // namespace modfast
