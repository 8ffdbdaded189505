// How a matrix is cut into tiles, on CPU and GPU alike.
//
// The cut depends on the shape alone. Sums are taken tile by tile and then added in tile order, so
// that results are the same for any number of threads or blocks.
#pragma once

#include "portable.h"

namespace modfast {

constexpr int64_t kTileElements = 16384;

// A row-major matrix of n_rows x n_cols: several whole rows a tile, or pieces of one long row.
struct Tiling {
  int64_t n_rows, n_cols;
  int64_t rows_per_tile, cols_per_tile, tiles_per_row, n_tiles;

  MODFAST_BOTH static Tiling of(int64_t n_rows, int64_t n_cols) {
    Tiling t{n_rows, n_cols, 1, 1, 0, 0};
    if (n_rows == 0 || n_cols == 0) return t;
    t.cols_per_tile = n_cols < kTileElements ? n_cols : kTileElements;
    t.rows_per_tile = kTileElements / t.cols_per_tile;
    t.tiles_per_row = (n_cols + t.cols_per_tile - 1) / t.cols_per_tile;
    t.n_tiles = (n_rows + t.rows_per_tile - 1) / t.rows_per_tile * t.tiles_per_row;
    return t;
  }
};

// Rows [row, row_end) and columns [col, col_end) of the matrix.
struct Tile {
  int64_t row, row_end, col, col_end;

  MODFAST_BOTH static Tile at(const Tiling& t, int64_t index) {
    const int64_t row = index / t.tiles_per_row * t.rows_per_tile;
    const int64_t col = index % t.tiles_per_row * t.cols_per_tile;
    const int64_t row_end = row + t.rows_per_tile;
    const int64_t col_end = col + t.cols_per_tile;
    return Tile{row, row_end < t.n_rows ? row_end : t.n_rows, col,
                col_end < t.n_cols ? col_end : t.n_cols};
  }
};

}  // namespace modfast
