// Loops in tiles of a few, for kernels whose sums stay in registers; compiled per SIMD level.

constexpr int kTileRows = 4;

// Calls f(rows, first) for tiles of at most kTileRows of n, as even as can be: a tile of one row
// would wait for its own sums.
template <class F>
MODFAST_LANE void by_tiles(int64_t n, const F& f) {
  static_assert(kTileRows == 4);
  int64_t first = 0;
  for (int64_t n_tiles = (n + kTileRows - 1) / kTileRows; n_tiles > 0; --n_tiles) {
    const int64_t rows = (n - first + n_tiles - 1) / n_tiles;
    switch (rows) {
      case 4: f(std::integral_constant<int, 4>{}, first); break;
      case 3: f(std::integral_constant<int, 3>{}, first); break;
      case 2: f(std::integral_constant<int, 2>{}, first); break;
      default: f(std::integral_constant<int, 1>{}, first);
    }
    first += rows;
  }
}
