// update_top_ on the CPU.
#include "top.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "../abi.h"
#include "simd.h"

#define MODFAST_KERNELS "top_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const TopKernels* kTables[] = MODFAST_TABLES;

// Units of a thread's part, whose candidates should stay in the first-level cache.
constexpr int64_t kPartUnits = 32;
// Candidates that are sorted at a time, at least: the fewer, the less `least` lags behind.
constexpr int64_t kLeastRoom = 8;
// Rows of a thread's own, at least, and for each place among the largest: then its lists are smaller than
// the values that it reads.
constexpr int64_t kLeastRows = 256, kRowsPerPlace = 16;
// Values that are not worth waking a thread for: reading them takes some 0.1 ms, and eight times as long
// while most pass, as the lists are not full.
constexpr int64_t kGrain = int64_t{1} << 17, kFillingGrain = kGrain / 8;

template <class T>
void flush(TopUnits& units, int64_t unit) {
  Candidate* found = units.candidates + unit * units.n_room;
  std::sort(found, found + units.n_candidates[unit], [](const Candidate& a, const Candidate& b) {
    return a.value != b.value ? a.value > b.value : a.row < b.row;
  });
  T* values = static_cast<T*>(units.top_values) + unit * units.k;
  int64_t* indices = units.top_indices + unit * units.k;
  // Of both lists together k remain; of equal values those in `values`, which came before.
  int64_t old = units.k - 1, fresh = units.n_candidates[unit] - 1;
  for (int64_t surplus = fresh + 1; surplus > 0; --surplus) {
    if (fresh >= 0 && (old < 0 || found[fresh].value <= values[old])) {
      --fresh;
    } else {
      --old;
    }
  }
  for (int64_t place = units.k - 1; fresh >= 0; --place) {
    if (old < 0 || found[fresh].value <= values[old]) {
      values[place] = static_cast<T>(found[fresh].value);
      indices[place] = units.first + found[fresh].row;
      --fresh;
    } else {
      values[place] = values[old];
      indices[place] = indices[old];
      --old;
    }
  }
  static_cast<T*>(units.least)[unit] = values[units.k - 1];
  units.n_candidates[unit] = 0;
}

// Units [begin, end); returns how many of their values are NaN.
template <class T>
int64_t update_units(const TopUnits& all, int64_t begin, int64_t end) {
  TopUnits units = all;
  units.n_units = end - begin;
  units.values = static_cast<const T*>(all.values) + begin;
  units.top_values = static_cast<T*>(all.top_values) + begin * all.k;
  units.top_indices = all.top_indices + begin * all.k;
  T least[kPartUnits];
  int64_t n_candidates[kPartUnits] = {};
  std::vector<Candidate> candidates(units.n_units * units.n_room);
  for (int64_t i = 0; i < units.n_units; ++i) {
    least[i] = static_cast<const T*>(units.top_values)[i * all.k + all.k - 1];
  }
  units.least = least;
  units.candidates = candidates.data();
  units.n_candidates = n_candidates;
  units.flush = flush<T>;
  at_level(kTables).scan[sizeof(T) == sizeof(double)](units);
  for (int64_t i = 0; i < units.n_units; ++i) {
    if (n_candidates[i] > 0) flush<T>(units, i);
  }
  return units.n_nan;
}

// The largest of some rows, which start as those of `all`, but without their indices.
template <class T>
struct Rows {
  std::vector<T> top_values;
  std::vector<int64_t> top_indices;
  TopUnits units;

  Rows(const TopUnits& all, int64_t begin, int64_t end)
      : top_values(static_cast<const T*>(all.top_values),
                   static_cast<const T*>(all.top_values) + all.n_units * all.k),
        top_indices(all.n_units * all.k, -1),
        units(all) {
    units.values = static_cast<const T*>(all.values) + begin * all.stride;
    units.n_rows = end - begin;
    units.first = all.first + begin;
    units.top_values = top_values.data();
    units.top_indices = top_indices.data();
  }

  // Takes them up into those of all; the rows before these have been.
  void merge(const TopUnits& all) const {
    TopUnits to = all;
    std::vector<Candidate> candidates(all.k);
    T least;
    for (int64_t unit = 0; unit < all.n_units; ++unit) {
      int64_t n = 0;
      for (int64_t i = unit * all.k; i < (unit + 1) * all.k; ++i) {
        if (top_indices[i] >= 0) candidates[n++] = {static_cast<double>(top_values[i]), top_indices[i] - all.first};
      }
      if (n == 0) continue;
      to.top_values = static_cast<T*>(all.top_values) + unit * all.k;
      to.top_indices = all.top_indices + unit * all.k;
      to.candidates = candidates.data();
      to.n_candidates = &n;
      to.least = &least;
      flush<T>(to, 0);
    }
  }
};

template <class T>
int64_t update(const TopUnits& all) {
  const int64_t n_parts = (all.n_units + kPartUnits - 1) / kPartUnits;
  const bool is_full = all.n_units > 0 && all.top_indices[all.k - 1] >= 0;
  const bool is_little = all.n_rows * all.n_units <= (is_full ? kGrain : kFillingGrain);
  // Each thread takes rows of its own, as those that wrote them did, so that they stay in its cache; if
  // there are enough of them to be worth lists of their own, and the lists are full and of many more
  // samples: until then many values pass, and each list would take its own time to fill.
  int64_t n_shares = 1;
  if (!is_little && is_full && all.first >= 2 * all.n_rows) {
    const int64_t most = all.n_rows / std::max(kLeastRows, kRowsPerPlace * all.k);
    n_shares = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(1, most));
  }
  const auto row = [&](int64_t share) { return all.n_rows * share / n_shares; };
  TopUnits first = all;
  first.n_rows = row(1);
  std::vector<Rows<T>> others;
  for (int64_t share = 1; share < n_shares; ++share) others.emplace_back(all, row(share), row(share + 1));
  std::atomic<int64_t> n_nan{0};
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const TopUnits& rows = i < n_parts ? first : others[i / n_parts - 1].units;
      const int64_t unit = i % n_parts * kPartUnits;
      n_nan += update_units<T>(rows, unit, std::min(unit + kPartUnits, all.n_units));
    }
  };
  if (is_little) {
    run(0, n_parts);
  } else {
    torch::stable::parallel_for(0, n_shares * n_parts, 1, run);
  }
  for (const Rows<T>& rows : others) rows.merge(all);
  return n_nan;
}

Tensor update_top_(const Tensor& top_values, const Tensor& top_indices, const Tensor& values,
                   int64_t first) {
  constexpr const char* op = "update_top_";
  const Dtype dtype = float_dtype(values, op, "values", 0);
  MODFAST_CHECK(dtype == Dtype::float32 || dtype == Dtype::float64, op,
                "values must be float32 or float64");
  MODFAST_CHECK(values.dim() == 2 && values.is_contiguous(), op,
                "values must be contiguous and of 2 dimensions");
  const int64_t n_units = values.size(1);
  MODFAST_CHECK(top_values.dim() == 2 && top_values.is_contiguous() && top_values.size(0) == n_units &&
                    top_values.size(1) > 0,
                op, "top_values must be contiguous and of shape [", n_units, ", k], k at least 1");
  MODFAST_CHECK(top_values.scalar_type() == values.scalar_type(), op,
                "top_values must have the dtype of values");
  MODFAST_CHECK(top_indices.dim() == 2 && top_indices.is_contiguous() &&
                    top_indices.size(0) == n_units && top_indices.size(1) == top_values.size(1) &&
                    top_indices.scalar_type() == ScalarType::Long,
                op, "top_indices must be contiguous int64 of the shape of top_values");
  MODFAST_CHECK(same_device(top_values, values) && same_device(top_indices, values), op,
                "top_values and top_indices must be on the device of values");
  TopUnits all{};
  all.values = values.data_ptr();
  all.n_rows = values.size(0);
  all.n_units = all.stride = n_units;
  all.top_values = top_values.mutable_data_ptr();
  all.top_indices = static_cast<int64_t*>(top_indices.mutable_data_ptr());
  all.k = top_values.size(1);
  all.first = first;
  // A merge moves up to k others, so for large k more candidates share one.
  all.n_room = std::min(std::max(kLeastRoom, all.k / 8), std::max<int64_t>(1, all.n_rows));
  Tensor n_nan = empty_beside(values, {}, aoti_torch_dtype_int64());
  *static_cast<int64_t*>(n_nan.mutable_data_ptr()) =
      dtype == Dtype::float64 ? update<double>(all) : update<float>(all);
  return n_nan;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) { m.impl("update_top_", TORCH_BOX(&update_top_)); }

}  // namespace modfast
