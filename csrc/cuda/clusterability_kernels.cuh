// Kernels of cluster_penalty and its gradient. Device code only; no torch header.
//
// Memory-bound: per element one compare of the column's label with the row's, and two multiply-adds.
// Each block takes whole tiles, and a tile's result does not depend on which block that is.
#pragma once

#include "tiles.cuh"

namespace modfast {

template <class T, int V>
__device__ __forceinline__ double2 tile_sums(const TileList<1>::Item& item, const Tile& tile) {
  constexpr int kBatch = 4;
  const T* weight = static_cast<const T*>(item.arrays[0]) + tile_begin(item.tiling, tile);
  const int32_t* rows = item.rows + tile.row;
  const int32_t* cols = item.cols + tile.col;
  double2 sums{0.0, 0.0};
  Pack<T, V> packs[kBatch];
  walk_tile<V, kBatch>(
      tile, [&](int b, uint32_t at) { packs[b] = load_pack<T, V>(weight + at); },
      [&](int b, uint32_t, uint32_t row, uint32_t col) {
        const int32_t key = row_key(__ldg(rows + row));
        const Pack<int32_t, V> labels = load_labels<V>(cols + col);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          add_square(sums, load(packs[b].values[v]), labels.values[v] == key);
        }
      });
  return sums;
}

template <class T>
__global__ void __launch_bounds__(kThreads) cluster_sums(const __grid_constant__ TileList<1> list) {
  for (int64_t running = blockIdx.x; running < list.n_tiles; running += gridDim.x) {
    const TileList<1>::Item& item = list.items[list.item_of(running)];
    const Tile tile = Tile::at(item.tiling, running - item.first);
    const double2 sum =
        block_sum(item.packed ? tile_sums<T, kPack<T>>(item, tile) : tile_sums<T, 1>(item, tile));
    if (threadIdx.x == 0) item.partial[running - item.first] = sum;
  }
}

// scale * (sum of the weights' clusterabilities), by one block.
template <class Value>
__global__ void __launch_bounds__(kThreads)
    penalty_value(const double* sums, int64_t n, double scale, Value* value) {
  double2 mine{0.0, 0.0};
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    mine.x += clusterability(sums[2 * i], sums[2 * i + 1]);
  }
  const double2 sum = block_sum(mine);
  if (threadIdx.x == 0) *value = static_cast<Value>(scale * sum.x);
}

// A number that lies on the device, float32 or float64.
struct DeviceNumber {
  const void* data;
  bool is_double;

  __device__ double value() const {
    return is_double ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
  }
};

template <class T, int V>
__device__ __forceinline__ void tile_gradient(const TileList<2>::Item& item, const Tile& tile,
                                              Slopes slopes) {
  using C = compute_t<T>;
  constexpr int kBatch = 2;
  const C inside = static_cast<C>(slopes.inside), outside = static_cast<C>(slopes.outside);
  const int64_t begin = tile_begin(item.tiling, tile);
  const T* weight = static_cast<const T*>(item.arrays[0]) + begin;
  T* gradient = static_cast<T*>(item.arrays[1]) + begin;
  const int32_t* rows = item.rows + tile.row;
  const int32_t* cols = item.cols + tile.col;
  Pack<T, V> packs[kBatch];
  walk_tile<V, kBatch>(
      tile, [&](int b, uint32_t at) { packs[b] = load_pack<T, V>(weight + at); },
      [&](int b, uint32_t at, uint32_t row, uint32_t col) {
        const int32_t key = row_key(__ldg(rows + row));
        const Pack<int32_t, V> labels = load_labels<V>(cols + col);
        Pack<T, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const C slope = labels.values[v] == key ? inside : outside;
          result.values[v] = store<T>(load(packs[b].values[v]) * slope);
        }
        store_pack<T, V>(gradient + at, result);
      });
}

// arrays: weight, gradient
template <class T>
__global__ void __launch_bounds__(kThreads)
    penalty_gradient(const __grid_constant__ TileList<2> list, DeviceNumber grad, double scale) {
  const double slope = scale * grad.value();
  for (int64_t running = blockIdx.x; running < list.n_tiles; running += gridDim.x) {
    const TileList<2>::Item& item = list.items[list.item_of(running)];
    const Tile tile = Tile::at(item.tiling, running - item.first);
    const Slopes slopes = penalty_slopes(item.sums[0], item.sums[1], slope);
    if (item.packed) {
      tile_gradient<T, kPack<T>>(item, tile, slopes);
    } else {
      tile_gradient<T, 1>(item, tile, slopes);
    }
  }
}

}  // namespace modfast
