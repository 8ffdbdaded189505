// Parallel loops over the tiles of several matrices, on torch's own threads.
#pragma once

#include <algorithm>
#include <vector>

#include "../weights.h"

namespace modfast {

// Fewer elements than this are not worth waking a thread for.
constexpr int64_t kGrainElements = 4 * kTileElements;

// Calls f(begin, end) for parts of n, of which each costs so much; less than `grain` is not worth
// waking a thread for.
template <class F>
void for_ranges(int64_t n, int64_t cost, int64_t grain, const F& f) {
  if (n * cost <= grain) return f(0, n);
  torch::stable::parallel_for(0, n, std::max<int64_t>(1, grain / std::max<int64_t>(1, cost)), f);
}

// Calls f(weight index, tile index within the weight, running index over all tiles) for each tile.
template <class F>
void for_each_tile(const std::vector<Weight>& weights, const F& f) {
  std::vector<int64_t> first(weights.size() + 1, 0);
  int64_t elements = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tiling& t = weights[i].tiling;
    first[i + 1] = first[i] + t.n_tiles;
    elements += t.n_rows * t.n_cols;
  }
  const int64_t n_tiles = first.back();
  if (n_tiles == 0) return;
  const auto run = [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (int64_t tile = begin; tile < end; ++tile) {
      while (tile >= first[i + 1]) ++i;
      f(i, tile - first[i], tile);
    }
  };
  if (elements <= kGrainElements) {
    run(0, n_tiles);
  } else {
    torch::stable::parallel_for(0, n_tiles, std::max<int64_t>(1, kGrainElements * n_tiles / elements),
                                run);
  }
}

// Sums of tiles, added up per weight in tile order.
class TileSums {
 public:
  explicit TileSums(const std::vector<Weight>& weights) {
    int64_t n_tiles = 0;
    for (const Weight& w : weights) n_tiles += w.tiling.n_tiles;
    partial_.resize(2 * n_tiles);
  }

  double* at(int64_t tile) { return &partial_[2 * tile]; }

  // sums: [n, 2], of the first n weights
  void collect(const std::vector<Weight>& weights, double* sums, size_t n) const {
    const double* next = partial_.data();
    for (size_t i = 0; i < n; ++i) {
      double within = 0.0, total = 0.0;
      for (int64_t tile = 0; tile < weights[i].tiling.n_tiles; ++tile, next += 2) {
        within += next[0];
        total += next[1];
      }
      *sums++ = within;
      *sums++ = total;
    }
  }

 private:
  std::vector<double> partial_;
};

}  // namespace modfast
