// Kernels of cluster_penalty on one tile; compiled per SIMD level by for_each_level.h.
//
// Per element: one compare of the column's label with the row's, one masked multiply-add. Squares
// and sums are double, so that they are exact to rounding for any size.

template <class T>
void tile_sums(const void* weight, const int32_t* rows, const int32_t* cols, int64_t stride, Tile tile,
               double* sums) {
  double within = 0.0, total = 0.0;
  for (int64_t i = tile.row; i < tile.row_end; ++i) {
    const T* w = static_cast<const T*>(weight) + i * stride;
    const int32_t key = row_key(rows[i]);
    double row_within = 0.0, row_total = 0.0;
#pragma omp simd reduction(+ : row_within, row_total)
    for (int64_t j = tile.col; j < tile.col_end; ++j) {
      const double x = load(w[j]);
      row_total += x * x;
      row_within += cols[j] == key ? x * x : 0.0;
    }
    within += row_within;
    total += row_total;
  }
  sums[0] = within;
  sums[1] = total;
}

template <class T>
void row_gradient(const T* __restrict w, const int32_t* __restrict cols, int32_t key,
                  compute_t<T> inside, compute_t<T> outside, int64_t n, T* __restrict out) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    out[j] = store<T>(load(w[j]) * (cols[j] == key ? inside : outside));
  }
}

// `streamed`: the gradient is too large for the cache, so it goes around it.
template <class T>
void tile_gradient(const void* weight, const int32_t* rows, const int32_t* cols, int64_t stride,
                   Tile tile, Slopes slopes, bool streamed, void* gradient) {
  using C = compute_t<T>;
  const C inside = static_cast<C>(slopes.inside), outside = static_cast<C>(slopes.outside);
  constexpr int64_t kPiece = 4096 / sizeof(T);
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
