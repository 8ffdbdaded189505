// Kernels of joint_histogram and binned_histogram. Device code only; no torch header.
//
// Memory-bound. Blocks count in 32-bit tables in shared memory, several for few bins so that lanes of a
// warp rarely meet, and add them to the 64-bit counts at the end: a block sees fewer than 2^32 pairs,
// since those of all blocks of a device together fill its memory long before.
#pragma once

#include "digitize_kernels.cuh"

namespace modfast {

// How counts are cut into tables, of `rows` rows each: x's codes. Blocks take the tables in turn, and
// those of one table share the pairs. 0 rows: no table, pairs go to the counts themselves. Of each cell
// there are 2^log_copies.
struct TableCut {
  int bins_x, bins_y, rows, log_copies;

  MODFAST_BOTH int n_parts() const { return rows == 0 ? 1 : (bins_x + rows - 1) / rows; }
};

// A block's table, of rows [first, end).
struct Table {
  uint32_t* cells;
  unsigned long long* counts;
  int bins_y, first, end, log_copies;
  bool direct;

  __device__ __forceinline__ Table(const TableCut& cut, uint32_t* memory,
                                   unsigned long long* counts)
      : cells(memory), counts(counts), bins_y(cut.bins_y), log_copies(cut.log_copies),
        direct(cut.rows == 0) {
    first = static_cast<int>(blockIdx.x % cut.n_parts()) * cut.rows;
    end = direct || first + cut.rows > cut.bins_x ? cut.bins_x : first + cut.rows;
    for (int i = threadIdx.x; i < size() << log_copies; i += kThreads) cells[i] = 0;
    __syncthreads();
  }

  __device__ __forceinline__ int size() const { return direct ? 0 : (end - first) * bins_y; }

  // Ignores codes out of range.
  __device__ __forceinline__ void add(int a, int b) const {
    if (a < first || a >= end || b >= bins_y) return;
    if (direct) {
      atomicAdd(counts + int64_t{a} * bins_y + b, 1u);
    } else {
      const int copy = threadIdx.x & ((1 << log_copies) - 1);
      atomicAdd(cells + (((a - first) * bins_y + b) << log_copies) + copy, 1u);
    }
  }

  __device__ __forceinline__ void collect() const {
    __syncthreads();
    for (int i = threadIdx.x; i < size(); i += kThreads) {
      unsigned long long sum = 0;
      for (int copy = 0; copy < 1 << log_copies; ++copy) sum += cells[(i << log_copies) + copy];
      if (sum != 0) atomicAdd(counts + int64_t{first} * bins_y + i, sum);
    }
  }
};

// `use(first, step)` for this block's share of n things, several of them, `step` apart, at a time.
template <class Use>
__device__ __forceinline__ void share_of(const TableCut& cut, int64_t n, int64_t batch,
                                         const Use& use) {
  const int64_t n_shares = gridDim.x / cut.n_parts(), share = blockIdx.x / cut.n_parts();
  const int64_t step = n_shares * kThreads;
  // The last blocks may be too few for another share.
  for (int64_t i = share * kThreads + threadIdx.x; share < n_shares && i < n; i += batch * step) {
    use(i, step);
  }
}

// X and Y: uint8_t or uint16_t, as which negative codes are out of range.
template <class X, class Y, int V>
__global__ void __launch_bounds__(kThreads)
    count_aligned(const X* x, const Y* y, int64_t size, const TableCut cut,
                  unsigned long long* counts) {
  constexpr int kBatch = 2;
  DYN_SMEM(uint32_t, memory);
  const Table table(cut, memory, counts);
  const int64_t n_packs = size / V;
  share_of(cut, n_packs, kBatch, [&](int64_t first, int64_t step) {
    Pack<X, V> xs[kBatch];
    Pack<Y, V> ys[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int64_t pack = first + k * step;
      if (pack < n_packs) {
        xs[k] = load_pack<X, V>(x + pack * V);
        ys[k] = load_pack<Y, V>(y + pack * V);
      }
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * step < n_packs) {
#pragma unroll
        for (int v = 0; v < V; ++v) table.add(xs[k].values[v], ys[k].values[v]);
      }
    }
  });
  share_of(cut, size - n_packs * V, 1,
           [&](int64_t i, int64_t) { table.add(x[n_packs * V + i], y[n_packs * V + i]); });
  table.collect();
}

// Every column of x with every column of y: in each row, the product of two histograms. Shared memory:
// counts [bins_x, bins_y], then the histograms of `n_rows` rows.
template <class X, class Y>
__global__ void __launch_bounds__(kThreads)
    count_all(const X* x, const Y* y, int64_t n, int64_t dx, int64_t dy, int bins_x, int bins_y,
              int n_rows, unsigned long long* counts) {
  DYN_SMEM(unsigned long long, memory);
  const int n_cells = bins_x * bins_y;
  uint32_t* of_x = reinterpret_cast<uint32_t*>(memory + n_cells);
  uint32_t* of_y = of_x + n_rows * bins_x;
  for (int cell = threadIdx.x; cell < n_cells; cell += kThreads) memory[cell] = 0;
  for (int64_t first = int64_t{blockIdx.x} * n_rows; first < n; first += int64_t{gridDim.x} * n_rows) {
    const int rows = static_cast<int>(n - first < n_rows ? n - first : n_rows);
    for (int i = threadIdx.x; i < n_rows * (bins_x + bins_y); i += kThreads) of_x[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < rows * dx; i += kThreads) {
      const int code = x[first * dx + i];
      if (code < bins_x) atomicAdd(of_x + i / dx * bins_x + code, 1u);
    }
    for (int64_t i = threadIdx.x; i < rows * dy; i += kThreads) {
      const int code = y[first * dy + i];
      if (code < bins_y) atomicAdd(of_y + i / dy * bins_y + code, 1u);
    }
    __syncthreads();
    for (int cell = threadIdx.x; cell < n_cells; cell += kThreads) {
      const int a = cell / bins_y, b = cell % bins_y;
      unsigned long long sum = memory[cell];
      for (int row = 0; row < rows; ++row) {
        sum += uint64_t{of_x[row * bins_x + a]} * of_y[row * bins_y + b];
      }
      memory[cell] = sum;
    }
    __syncthreads();
  }
  for (int cell = threadIdx.x; cell < n_cells; cell += kThreads) {
    if (memory[cell] != 0) atomicAdd(counts + cell, memory[cell]);
  }
}

// Where no table fits into shared memory: each pair by itself. `apart`: pairs of columns have counts of
// their own.
template <class X, class Y>
__global__ void __launch_bounds__(kThreads)
    count_each(const X* x, const Y* y, int64_t n, int64_t dx, int64_t dy, int bins_x, int bins_y,
               bool apart, unsigned long long* counts) {
  const int64_t n_pairs = dx * dy;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n * n_pairs;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / n_pairs, pair = i % n_pairs;
    const int64_t a = x[row * dx + pair / dy], b = y[row * dy + pair % dy];
    if (a < bins_x && b < bins_y) {
      atomicAdd(counts + (apart ? pair * bins_x * bins_y : 0) + a * bins_y + b, 1u);
    }
  }
}

// Values of one side of binned_histogram.
template <class T>
struct BinnedSide {
  const T* values;
  Rules<compute_t<T>> rules;
};

// not_finite: zeros [2].
template <class T, class U, int V>
__global__ void __launch_bounds__(kThreads, 2)
    count_binned(const BinnedSide<T> x, const BinnedSide<U> y, int64_t size, const TableCut cut,
                 unsigned long long* counts, unsigned long long* not_finite) {
  constexpr int kBatch = V > 4 ? 1 : 2;  // more spills
  DYN_SMEM(uint32_t, memory);
  const Table table(cut, memory, counts);
  const UniformBins<compute_t<T>> rule_x = x.rules.uniform[0];
  const UniformBins<compute_t<U>> rule_y = y.rules.uniform[0];
  unsigned long long bad_x = 0, bad_y = 0;
  const auto add = [&](T value_x, U value_y) {
    const auto a = load(value_x);
    const auto b = load(value_y);
    const bool good_x = is_number(a), good_y = is_number(b);
    bad_x += !good_x;
    bad_y += !good_y;
    table.add(good_x ? x.rules.code(rule_x, 0, a) : 0, good_y ? y.rules.code(rule_y, 0, b) : 0);
  };
  const int64_t n_packs = size / V;
  share_of(cut, n_packs, kBatch, [&](int64_t first, int64_t step) {
    Pack<T, V> xs[kBatch];
    Pack<U, V> ys[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int64_t pack = first + k * step;
      if (pack < n_packs) {
        xs[k] = load_pack<T, V>(x.values + pack * V);
        ys[k] = load_pack<U, V>(y.values + pack * V);
      }
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * step < n_packs) {
#pragma unroll
        for (int v = 0; v < V; ++v) add(xs[k].values[v], ys[k].values[v]);
      }
    }
  });
  share_of(cut, size - n_packs * V, 1, [&](int64_t i, int64_t) {
    add(x.values[n_packs * V + i], y.values[n_packs * V + i]);
  });
  table.collect();
  // Every table's blocks see all values.
  if (table.first == 0) {
    if (bad_x != 0) atomicAdd(not_finite, bad_x);
    if (bad_y != 0) atomicAdd(not_finite + 1, bad_y);
  }
}

}  // namespace modfast
