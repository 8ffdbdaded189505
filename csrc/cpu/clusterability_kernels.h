// Kernels of cluster_penalty on one tile; compiled per SIMD level by for_each_level.h.
#include "squares_kernels.h"

template <class T>
void tile_sums(const void* weight, const int32_t* rows, const int32_t* cols, int64_t stride, Tile tile,
               double* sums) {
  Squares squares;
  for (int64_t i = tile.row; i < tile.row_end; ++i) {
    add_stored(squares, static_cast<const T*>(weight) + i * stride + tile.col, cols + tile.col,
               row_key(rows[i]), tile.col_end - tile.col);
  }
  squares.store(sums);
}

template <class T>
void row_gradient(const T* __restrict w, const int32_t* __restrict cols, int32_t key,
                  compute_t<T> inside, compute_t<T> outside, int64_t n, T* __restrict out) {
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t end = begin + kPiece < n ? begin + kPiece : n;
    prefetch_piece<1>(out + end);
    prefetch_piece<0>(w + end);
#pragma omp simd
    for (int64_t j = begin; j < end; ++j) {
      out[j] = store<T>(load(w[j]) * (cols[j] == key ? inside : outside));
    }
  }
}

// `streamed`: the gradient is too large for the cache, so it goes around it.
template <class T>
void tile_gradient(const void* weight, const int32_t* rows, const int32_t* cols, int64_t stride,
                   Tile tile, Slopes slopes, bool streamed, void* gradient) {
  using C = compute_t<T>;
  const C inside = static_cast<C>(slopes.inside), outside = static_cast<C>(slopes.outside);
  alignas(64) T piece[kPiece];
  for (int64_t i = tile.row; i < tile.row_end; ++i) {
    const T* w = static_cast<const T*>(weight) + i * stride;
    T* out = static_cast<T*>(gradient) + i * stride;
    const int32_t key = row_key(rows[i]);
    if (!streamed) {
      row_gradient<T>(w + tile.col, cols + tile.col, key, inside, outside, tile.col_end - tile.col,
                      out + tile.col);
      continue;
    }
    for (int64_t j = tile.col; j < tile.col_end; j += kPiece) {
      const int64_t n = tile.col_end - j < kPiece ? tile.col_end - j : kPiece;
      row_gradient<T>(w + j, cols + j, key, inside, outside, n, piece);
      stream(out + j, piece, n * sizeof(T));
    }
  }
}

constexpr ClusterabilityKernels kernels = {
    {tile_sums<float>, tile_sums<double>, tile_sums<bfloat16>, tile_sums<float16>},
    {tile_gradient<float>, tile_gradient<double>, tile_gradient<bfloat16>, tile_gradient<float16>},
};
