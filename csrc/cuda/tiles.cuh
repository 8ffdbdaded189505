// What kernels over the tiles of several weights share: their parameters, the walk through a tile,
// block sums. Device code only; no torch header.
#pragma once

#include "../math/clusterability.h"
#include "../math/tiles.h"
#include "launch.cuh"
#include "packs.cuh"

namespace modfast {

// Kernel parameters stay below the 4096 bytes that every driver takes, some left for other arguments.
constexpr int64_t kParameterBytes = 4000;

struct NoRule {};

// One weight of a launch. `arrays` are the weight itself and what has its shape: gradients, states.
// `Rule` is what the kernel does to an element.
template <int kArrays, class Rule>
struct TileItem {
  void* arrays[kArrays];
  const int32_t* rows;  // null without labels, then also `cols`, `sums` and `partial`
  const int32_t* cols;
  const double* sums;  // within clusters, total: those that the slopes come from
  double2* partial;    // for each tile the sums that the kernel takes
  Tiling tiling;
  int64_t first;  // running index of the first tile, over the items of the launch
  Rule rule;
  bool packed;  // rows and addresses allow accesses of 16 bytes
};

// As many weights as fit into the parameters of one launch.
template <int kArrays, class Rule = NoRule>
struct TileList {
  using Item = TileItem<kArrays, Rule>;
  static constexpr int kItems = (kParameterBytes - 16) / static_cast<int>(sizeof(Item));

  Item items[kItems];
  int64_t n_tiles;
  int32_t n_items;

  // The item that running tile index `tile` belongs to.
  __device__ int item_of(int64_t tile) const {
    int low = 0, high = n_items;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (items[middle].first <= tile) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Labels of V columns.
template <int V>
__device__ __forceinline__ Pack<int32_t, V> load_labels(const int32_t* from) {
  if constexpr (V == 1) {
    return Pack<int32_t, 1>{{__ldg(from)}};
  } else if constexpr (V == 2) {
    return bit_cast<Pack<int32_t, 2>>(__ldg(reinterpret_cast<const int2*>(from)));
  } else {
    Pack<int4, V / 4> fours;
#pragma unroll
    for (int i = 0; i < V / 4; ++i) {
      fours.values[i] = __ldg(reinterpret_cast<const int4*>(from) + i);
    }
    return bit_cast<Pack<int32_t, V>>(fours);
  }
}

// Where a tile lies in arrays of the weight's shape. Its elements are neighbours in memory: whole
// rows, or a piece of one row.
__device__ __forceinline__ int64_t tile_begin(const Tiling& tiling, const Tile& tile) {
  return tile.row * tiling.n_cols + tile.col;
}

// Takes the block's threads through a tile, V elements each at a time. First `load(b, at)` for up to
// kBatch of a thread's places, so that many reads are under way, then `use(b, at, row, col)` for the
// same. All four count within the tile, which 32 bits hold; nothing is divided per element.
template <int V, int kBatch, class Load, class Use>
__device__ __forceinline__ void walk_tile(const Tile& tile, const Load& load, const Use& use) {
  constexpr uint32_t kStep = kThreads * V;
  const uint32_t width = static_cast<uint32_t>(tile.col_end - tile.col);
  const uint32_t size = static_cast<uint32_t>(tile.row_end - tile.row) * width;
  const uint32_t rows_ahead = kStep / width, cols_ahead = kStep % width;
  uint32_t at = threadIdx.x * V;
  uint32_t row = at / width, col = at % width;
  for (; at < size; at += kBatch * kStep) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (at + b * kStep < size) load(b, at + b * kStep);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (at + b * kStep < size) {
        use(b, at + b * kStep, row, col);
        row += rows_ahead;
        col += cols_ahead;
        if (col >= width) {
          col -= width;
          ++row;
        }
      }
    }
  }
}

// `sums` are within clusters (x) and total (y). A factor is chosen rather than a square, which saves
// a multiplication and, for float16, a spill.
__device__ __forceinline__ void add_square(double2& sums, double value, bool same) {
  sums.x += (same ? value : 0.0) * value;
  sums.y += value * value;
}

// The sum over the block, in thread 0; always in the same order. Every thread must call it.
__device__ __forceinline__ double2 block_sum(double2 mine) {
  __shared__ double2 of_warp[kThreads / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    mine.x += __shfl_down_sync(0xffffffffu, mine.x, offset);
    mine.y += __shfl_down_sync(0xffffffffu, mine.y, offset);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / 32; ++warp) {
      mine.x += of_warp[warp].x;
      mine.y += of_warp[warp].y;
    }
  }
  // The next sum writes to of_warp.
  __syncthreads();
  return mine;
}

// Second pass of the sums: the tiles' sums of each weight, one block a weight. Two passes, because
// the order in which blocks end must not decide the order of addition.
struct PartialSums {
  const double2* partial;
  int64_t n_tiles;
  double* sums;
};

struct PartialSumsList {
  static constexpr int kItems = (kParameterBytes - 8) / static_cast<int>(sizeof(PartialSums));

  PartialSums items[kItems];
  int32_t n_items;
};

static __global__ void __launch_bounds__(kThreads)
    collect_sums(const __grid_constant__ PartialSumsList list) {
  for (int i = blockIdx.x; i < list.n_items; i += gridDim.x) {
    const PartialSums& item = list.items[i];
    double2 mine{0.0, 0.0};
    for (int64_t tile = threadIdx.x; tile < item.n_tiles; tile += kThreads) {
      mine.x += item.partial[tile].x;
      mine.y += item.partial[tile].y;
    }
    const double2 sum = block_sum(mine);
    if (threadIdx.x == 0) {
      item.sums[0] = sum.x;
      item.sums[1] = sum.y;
    }
  }
}

}  // namespace modfast
