// Kernels of update_top_; compiled per SIMD level by for_each_level.h.

#include "lanes_kernels.h"

template <class T>
MODFAST_LANE void consider(TopUnits& units, int64_t unit, T value, int64_t row) {
  if (value != value) {
    ++units.n_nan;
    return;
  }
  int64_t& n = units.n_candidates[unit];
  units.candidates[unit * units.n_room + n++] = Candidate{value, row};
  if (n == units.n_room) units.flush(units, unit);
}

// Compares each value with the smallest of its unit's largest. Few pass; an equal one comes later and
// so does not. NaN passes, and is counted.
template <class T>
void scan(TopUnits& units) {
  const T* least = static_cast<const T*>(units.least);
  const T* values = static_cast<const T*>(units.values);
  for (int64_t row = 0; row < units.n_rows; ++row, values += units.stride) {
    int64_t unit = 0;
    for (; unit + kLanes<T> <= units.n_units; unit += kLanes<T>) {
      const Mask<T> passed = ~(load_lanes(values + unit) <= load_lanes(least + unit));
      for (uint32_t left = bits<T>(passed); left != 0; left &= left - 1) {
        const int64_t i = unit + __builtin_ctz(left);
        consider(units, i, values[i], row);
      }
    }
    for (; unit < units.n_units; ++unit) {
      if (!(values[unit] <= least[unit])) consider(units, unit, values[unit], row);
    }
  }
}

constexpr TopKernels kernels = {{scan<float>, scan<double>}};
