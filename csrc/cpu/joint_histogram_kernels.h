// Kernels of joint_histogram on a block of pairs of codes; compiled per SIMD level by
// for_each_level.h.

// The largest of n codes; negative ones count as large.
template <class Code>
int largest(const void* codes, int64_t n) {
  using U = std::make_unsigned_t<Code>;
  const U* c = static_cast<const U*>(codes);
  U most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = c[i] > most ? c[i] : most;
  return most;
}

// The cells of a table with `bins_y` columns that n <= kPairBlock pairs fall into.
template <class X, class Y>
void cells_of(const void* x, const void* y, int64_t n, int bins_y, uint32_t* __restrict out) {
  const X* a = static_cast<const X*>(x);
  const Y* b = static_cast<const Y*>(y);
  const uint32_t columns = bins_y;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<uint32_t>(a[i]) * columns + static_cast<uint32_t>(b[i]);
  }
}

// Several tables, so that increments of one cell that follow each other do not wait for each other.
template <int kLanes>
void increment(const uint32_t* cells, int64_t n, uint32_t* tables, int64_t n_cells) {
  uint32_t* table[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) table[lane] = tables + lane * n_cells;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) ++table[lane][cells[i + lane]];
  }
  for (; i < n; ++i) ++table[0][cells[i]];
}

constexpr PairKernels kernels = {
    {largest<uint8_t>, largest<int16_t>},
    {{cells_of<uint8_t, uint8_t>, cells_of<uint8_t, int16_t>},
     {cells_of<int16_t, uint8_t>, cells_of<int16_t, int16_t>}},
    {increment<1>, increment<4>, increment<8>},
};
