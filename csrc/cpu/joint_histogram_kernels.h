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

// The cells of a table with `bins_y` columns that n pairs fall into, times `lanes`.
template <class X, class Y>
void cells_of(const void* x, const void* y, int64_t n, int bins_y, int lanes,
              uint32_t* __restrict out) {
  const X* a = static_cast<const X*>(x);
  const Y* b = static_cast<const Y*>(y);
  const uint32_t row = bins_y * lanes, column = lanes;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<uint32_t>(a[i]) * row + static_cast<uint32_t>(b[i]) * column;
  }
}

// Counts in several tables, so that increments of one cell that follow each other do not wait for
// each other. The tables' counts of one cell lie together. Meanwhile the values of the next pairs are
// fetched: increments leave the memory idle.
template <int kLanes>
void increment(const uint32_t* __restrict cells, int64_t n, uint32_t* __restrict tables,
               const Ahead& ahead) {
  int64_t i = 0;
  constexpr int kLine = 16;  // pairs whose values are a cache line of float32
  for (; i + kLine <= n; i += kLine) {
    __builtin_prefetch(ahead.x + i * ahead.x_size);
    __builtin_prefetch(ahead.y + i * ahead.y_size);
    for (int j = 0; j < kLine; ++j) ++tables[cells[i + j] + j % kLanes];
  }
  for (; i < n; ++i) ++tables[cells[i]];
}

// Counts in one table of 16 bits, of which twice as much stays in the first-level cache; `carries`
// counts its overflows.
inline void increment_halves(const uint32_t* __restrict cells, int64_t n, uint16_t* __restrict table,
                             uint32_t* __restrict carries, const Ahead& ahead) {
  int64_t i = 0;
  constexpr int kLine = 16;
  const auto add = [&](uint32_t cell) {
    if (__builtin_expect(++table[cell] == 0, 0)) ++carries[cell];
  };
  for (; i + kLine <= n; i += kLine) {
    __builtin_prefetch(ahead.x + i * ahead.x_size);
    __builtin_prefetch(ahead.y + i * ahead.y_size);
    for (int j = 0; j < kLine; ++j) add(cells[i + j]);
  }
  for (; i < n; ++i) add(cells[i]);
}

constexpr PairKernels kernels = {
    {largest<uint8_t>, largest<int16_t>},
    {{cells_of<uint8_t, uint8_t>, cells_of<uint8_t, int16_t>},
     {cells_of<int16_t, uint8_t>, cells_of<int16_t, int16_t>}},
    {increment<4>, increment<8>},
    increment_halves,
};
