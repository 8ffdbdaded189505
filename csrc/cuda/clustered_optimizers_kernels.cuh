// Kernels of the fused optimizer steps. Device code only; no torch header.
//
// One pass: read weight, gradient and states, add the penalty's gradient, update, write, and take the
// sums of what was written.
#pragma once

#include "../math/optimizers.h"
#include "tiles.cuh"

namespace modfast {

// A rule updates one element: x holds weight, gradient and kStates states; weight and states are
// replaced. Where `starts()`, the states are not read: they may be memory that nothing was written to.
template <class C>
struct PlainSgd {
  static constexpr int kStates = 0;
  Sgd<C> sgd;

  __device__ bool starts() const { return false; }
  __device__ void update(C (&x)[2]) const {
    C none = 0;
    x[0] = sgd.template update<false>(x[0], x[1], none);
  }
};

template <class C>
struct MomentumSgd {
  static constexpr int kStates = 1;
  Sgd<C> sgd;

  __device__ bool starts() const { return sgd.first; }
  __device__ void update(C (&x)[3]) const {
    x[0] = sgd.template update<true>(x[0], x[1], x[2]);
  }
};

template <class C>
struct AdamRule {
  static constexpr int kStates = 2;
  Adam<C> adam;

  __device__ bool starts() const { return false; }
  __device__ void update(C (&x)[4]) const { x[0] = adam.update(x[0], x[1], x[2], x[3]); }
};

// arrays: weight, gradient, states
template <class Rule>
using StepList = TileList<2 + Rule::kStates, Rule>;

template <class T, class Rule, int V, bool kLabeled>
__device__ __forceinline__ double2 tile_update(const typename StepList<Rule>::Item& item,
                                               const Tile& tile, Slopes slopes) {
  using C = compute_t<T>;
  constexpr int kArrays = 2 + Rule::kStates;
  // Accesses of 16 bytes to two or more arrays keep the memory busy by themselves; more places at a
  // time would only cost registers.
  constexpr int kBatch = V == 1 ? 2 : 1;
  const C inside = static_cast<C>(slopes.inside), outside = static_cast<C>(slopes.outside);
  const int64_t begin = tile_begin(item.tiling, tile);
  const Rule rule = item.rule;
  const bool starts = rule.starts();
  double2 sums{0.0, 0.0};
  Pack<T, V> packs[kBatch][kArrays];
  walk_tile<V, kBatch>(
      tile,
      [&](int b, uint32_t at) {
#pragma unroll
        for (int k = 0; k < kArrays; ++k) {
          packs[b][k] = Pack<T, V>{};
          if (k < 2 || !starts) {
            packs[b][k] = load_pack<T, V>(static_cast<const T*>(item.arrays[k]) + begin + at);
          }
        }
      },
      [&](int b, uint32_t at, uint32_t row, uint32_t col) {
        int32_t key = 0;
        Pack<int32_t, V> labels{};
        if constexpr (kLabeled) {
          key = row_key(__ldg(item.rows + tile.row + row));
          labels = load_labels<V>(item.cols + tile.col + col);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) {
          C x[kArrays];
#pragma unroll
          for (int k = 0; k < kArrays; ++k) x[k] = load(packs[b][k].values[v]);
          const bool same = labels.values[v] == key;
          if constexpr (kLabeled) x[1] += x[0] * (same ? inside : outside);
          rule.update(x);
#pragma unroll
          for (int k = 0; k < kArrays; ++k) {
            if (k != 1) packs[b][k].values[v] = store<T>(x[k]);
          }
          if constexpr (kLabeled) add_square(sums, load(packs[b][0].values[v]), same);
        }
#pragma unroll
        for (int k = 0; k < kArrays; ++k) {
          if (k != 1) store_pack<T, V>(static_cast<T*>(item.arrays[k]) + begin + at, packs[b][k]);
        }
      });
  return sums;
}

template <class T, class Rule>
__global__ void __launch_bounds__(kThreads)
    clustered_step(const __grid_constant__ StepList<Rule> list, double scale) {
  for (int64_t running = blockIdx.x; running < list.n_tiles; running += gridDim.x) {
    const typename StepList<Rule>::Item& item = list.items[list.item_of(running)];
    const Tile tile = Tile::at(item.tiling, running - item.first);
    if (item.rows == nullptr) {
      const Slopes none{0.0, 0.0};
      if (item.packed) {
        tile_update<T, Rule, kPack<T>, false>(item, tile, none);
      } else {
        tile_update<T, Rule, 1, false>(item, tile, none);
      }
    } else {
      const Slopes slopes = penalty_slopes(item.sums[0], item.sums[1], scale);
      const double2 sum = block_sum(item.packed
                                        ? tile_update<T, Rule, kPack<T>, true>(item, tile, slopes)
                                        : tile_update<T, Rule, 1, true>(item, tile, slopes));
      if (threadIdx.x == 0) item.partial[running - item.first] = sum;
    }
  }
}

}  // namespace modfast
