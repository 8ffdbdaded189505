// Kernels of the fused optimizer steps on one tile; compiled per SIMD level by for_each_level.h.
//
// One pass over memory: read weight, gradient and state, add the penalty's gradient, update, write,
// and take the sums of what was written while it is in the first-level cache.
#include "squares_kernels.h"

// `Update(w, grad, j)` gives element j's new value and updates its state.
template <class T, bool kLabeled, class Update>
void tile_update(T* __restrict weight, const T* __restrict grad, const int32_t* rows,
                 const int32_t* __restrict cols, int64_t stride, Tile tile, Slopes slopes,
                 const Update& update, double* sums) {
  using C = compute_t<T>;
  const C inside = static_cast<C>(slopes.inside), outside = static_cast<C>(slopes.outside);
  Squares squares;
  for (int64_t i = tile.row; i < tile.row_end; ++i) {
    const int32_t key = kLabeled ? row_key(rows[i]) : 0;
    for (int64_t begin = tile.col; begin < tile.col_end; begin += kPiece) {
      const int64_t end = begin + kPiece < tile.col_end ? begin + kPiece : tile.col_end;
      const int64_t row = i * stride;
      if constexpr (kLabeled) {
        // The sums of this piece leave memory idle: meanwhile, the next one.
        prefetch_piece<1>(weight + row + end);
        prefetch_piece<0>(grad + row + end);
      }
#pragma omp simd
      for (int64_t j = begin; j < end; ++j) {
        const C w = load(weight[row + j]);
        C g = load(grad[row + j]);
        if constexpr (kLabeled) g += w * (cols[j] == key ? inside : outside);
        weight[row + j] = store<T>(update(w, g, row + j));
      }
      if constexpr (kLabeled) add_stored(squares, weight + row + begin, cols + begin, key, end - begin);
    }
  }
  if constexpr (kLabeled) squares.store(sums);
}

template <class T, class Update>
void tile_step(const Weight& w, const void* grad, Tile tile, Slopes slopes, const Update& update,
               double* sums) {
  T* weight = static_cast<T*>(w.data);
  const T* g = static_cast<const T*>(grad);
  if (w.labeled) {
    tile_update<T, true>(weight, g, w.rows, w.cols, w.tiling.n_cols, tile, slopes, update, sums);
  } else {
    tile_update<T, false>(weight, g, w.rows, w.cols, w.tiling.n_cols, tile, slopes, update, sums);
  }
}

template <class T>
void tile_sgd(const Weight& w, const void* grad, void* momentum_buffer, Tile tile, Slopes slopes,
              const Sgd<double>& options, double* sums) {
  using C = compute_t<T>;
  const Sgd<C> sgd = options.as<C>();
  T* __restrict buffer = static_cast<T*>(momentum_buffer);
  if (buffer == nullptr) {
    const auto update = [sgd](C x, C g, int64_t) __attribute__((always_inline)) {
      C none = 0;
      return sgd.template update<false>(x, g, none);
    };
    tile_step<T>(w, grad, tile, slopes, update, sums);
  } else {
    const auto update = [sgd, buffer](C x, C g, int64_t at) __attribute__((always_inline)) {
      C state = load(buffer[at]);
      const C result = sgd.template update<true>(x, g, state);
      buffer[at] = store<T>(state);
      return result;
    };
    tile_step<T>(w, grad, tile, slopes, update, sums);
  }
}

template <class T>
void tile_adam(const Weight& w, const void* grad, void* exp_avg, void* exp_avg_sq, Tile tile,
               Slopes slopes, const AdamStep& step, double* sums) {
  using C = compute_t<T>;
  const Adam<C> adam = step.as<C>();
  T* __restrict means = static_cast<T*>(exp_avg);
  T* __restrict squares = static_cast<T*>(exp_avg_sq);
  const auto update = [adam, means, squares](C x, C g, int64_t at) __attribute__((always_inline)) {
    C mean = load(means[at]);
    C square = load(squares[at]);
    const C result = adam.update(x, g, mean, square);
    means[at] = store<T>(mean);
    squares[at] = store<T>(square);
    return result;
  };
  tile_step<T>(w, grad, tile, slopes, update, sums);
}

constexpr OptimizerKernels kernels = {
    {tile_sgd<float>, tile_sgd<double>, tile_sgd<bfloat16>, tile_sgd<float16>},
    {tile_adam<float>, tile_adam<double>, tile_adam<bfloat16>, tile_adam<float16>},
};
