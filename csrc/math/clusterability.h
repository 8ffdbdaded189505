// The clusterability of a weight, C = S / T: S sums the squares of the entries whose row and column
// share a cluster, T those of all entries.
#pragma once

#include <cmath>

#include "portable.h"

namespace modfast {

// An all-zero weight has clusterability 0; NaN and infinite entries give NaN, wherever they are.
MODFAST_BOTH double clusterability(double within, double total) {
  if (total == 0.0) return 0.0;
  return total < INFINITY ? within / total : NAN;
}

// d(scale * C)/dw = w * (inside where row and column share a cluster, outside elsewhere).
struct Slopes {
  double inside;
  double outside;
};

MODFAST_BOTH Slopes penalty_slopes(double within, double total, double scale) {
  if (total == 0.0) return Slopes{0.0, 0.0};
  const double c = clusterability(within, total);
  const double k = 2.0 * scale / total;
  return Slopes{k * (1.0 - c), -k * c};
}

// Column labels are compared with this: -1, "in no cluster", must not match itself.
MODFAST_BOTH int32_t row_key(int32_t row_label) { return row_label < 0 ? -2 : row_label; }

}  // namespace modfast
