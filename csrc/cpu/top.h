// What the kernels of update_top_ work on: some neighboring units.
#pragma once

#include <cstdint>

namespace modfast {

// A value that may belong to the largest, and its sample's row.
struct Candidate {
  double value;
  int64_t row;
};

struct TopUnits {
  const void* values;  // [n_rows, n_units], rows `stride` apart
  int64_t n_rows, stride;
  int64_t n_units;
  void* least;            // [n_units], the smallest of each unit's largest
  Candidate* candidates;  // [n_units, n_room]
  int64_t* n_candidates;  // [n_units]
  int64_t n_room;
  // Takes a unit's candidates among its largest, which leaves its room empty, and renews `least`.
  void (*flush)(TopUnits&, int64_t unit);
  void* top_values;  // [n_units, k]
  int64_t* top_indices;
  int64_t k, first;
  int64_t n_nan;
};

struct TopKernels {
  void (*scan[2])(TopUnits&);  // float32, float64
};

}  // namespace modfast
