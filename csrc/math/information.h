// Mutual information from integer counts, and its bias.
//
// n log n is held as an integer, in units of 2^-shift, so that sums of it are exact: the same in any
// order, symmetric in x and y, and H(X) where Y = X.
#pragma once

#include <cmath>

#include "portable.h"

namespace modfast {

// The fixed point of tables with `total` samples: the largest that leaves sums of n log n below 2^62.
MODFAST_BOTH int log_shift(int64_t total) {
  int exponent = 0;
  const double largest = static_cast<double>(total) * std::log(static_cast<double>(total) + 2.0);
  std::frexp(largest, &exponent);
  return 61 - exponent;
}

MODFAST_BOTH int64_t n_log_n(int64_t n, int shift) {
  const double x = static_cast<double>(n);
  return n < 2 ? 0 : static_cast<int64_t>(std::llrint(std::ldexp(x * std::log(x), shift)));
}

// From the sums of n log n over cells, rows and columns, and that of the total; unit: 2^-shift.
MODFAST_BOTH double information(int64_t cells, int64_t rows, int64_t cols, int64_t all, double unit,
                                int64_t total) {
  const int64_t sum = (cells - rows) + (all - cols);
  // Rounding must not make it negative.
  return sum > 0 ? static_cast<double>(sum) * unit / static_cast<double>(total) : 0.0;
}

MODFAST_BOTH double miller_madow(int64_t cells, int64_t rows, int64_t cols, int64_t total) {
  return static_cast<double>(cells - rows - cols + 1) / (2.0 * static_cast<double>(total));
}

// How many of `n_bins` can be filled, given the counts of those that are, and maybe of others (Panzeri
// & Treves, 1996; modfast/reference/information.py tells how).
template <class Counts>
MODFAST_BOTH int relevant_bins(const Counts& counts, int n_counts, int n_bins) {
  int64_t sum = 0;
  int n_filled = 0;
  for (int i = 0; i < n_counts; ++i) {
    sum += counts[i];
    n_filled += counts[i] > 0 ? 1 : 0;
  }
  const double total = static_cast<double>(sum);
  if (n_filled == n_bins) return n_bins;
  double expected = 0.0;
  for (int i = 0; i < n_counts; ++i) {
    if (counts[i] == 0) continue;
    expected += 1.0 - std::pow(1.0 - static_cast<double>(counts[i]) / total, total);
  }
  double error = n_filled - expected, before = n_bins;
  int extra = 0;
  while (error < before && n_filled + extra < n_bins) {
    ++extra;
    const double share = extra * (1.0 - std::pow(total / (total + n_filled), 1.0 / total));
    const double rest = (1.0 - share) / (total + n_filled);
    expected = 0.0;
    for (int i = 0; i < n_counts; ++i) {
      if (counts[i] == 0) continue;
      expected += 1.0 - std::pow(1.0 - static_cast<double>(counts[i] + 1) * rest, total);
    }
    expected += extra * (1.0 - std::pow(1.0 - share / extra, total));
    before = error;
    error = std::fabs(n_filled - expected);
  }
  return n_filled + (error < before || extra == 0 ? extra : extra - 1);
}

}  // namespace modfast
