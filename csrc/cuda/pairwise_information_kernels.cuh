// Kernels of pairwise_information and permuted_information. Device code only; no torch header.
//
// Sums of n log n are 64-bit integers, exact in any order, so that integer atomics may take them. All
// n log n of a call come from one function on one device: H(X) where Y = X, and 0 where X is constant.
#pragma once

#include "../math/information.h"
#include "pair_tiles.cuh"

namespace modfast {

enum class Bias { none, miller_madow, panzeri_treves };

// n log n for tables of `total` samples; the table holds those of n < size.
struct Logs {
  const int64_t* table;
  int64_t size, total;
  int shift;
  double unit;  // 2^-shift

  __device__ __forceinline__ int64_t operator()(int64_t n) const {
    return n < size ? __ldg(table + n) : n_log_n(n, shift);
  }
};

static __global__ void __launch_bounds__(kThreads) make_logs(int64_t size, int shift, int64_t* table) {
  for (int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x; n < size;
       n += int64_t{gridDim.x} * kThreads) {
    table[n] = n_log_n(n, shift);
  }
}

// Counts that lie apart.
template <class T>
struct Strided {
  const T* first;
  int64_t stride;

  __device__ __forceinline__ int64_t operator[](int i) const {
    return static_cast<int64_t>(first[i * stride]);
  }
};

// Of a column: the sum of n log n of its counts, and how many bins are filled, or can be.
struct Margin {
  int64_t logs;
  int n_filled, n_relevant;
};

// A column a block. above: null, or [d, bins - 1], how many codes are > b.
template <class Code>
__global__ void __launch_bounds__(kThreads, 2)
    column_margins(const Columns<Code> columns, const Logs logs, Bias bias, Margin* margins,
                   uint32_t* above) {
  DYN_SMEM(uint32_t, counts);
  __shared__ unsigned long long sum;
  __shared__ int n_filled;
  const int bins = columns.bins;
  for (int64_t j = blockIdx.x; j < columns.d; j += gridDim.x) {
    for (int b = threadIdx.x; b < bins; b += kThreads) counts[b] = 0;
    if (threadIdx.x == 0) {
      sum = 0;
      n_filled = 0;
    }
    __syncthreads();
    const Code* codes = columns.codes + j * columns.stride;
    for (int64_t k = threadIdx.x; k < columns.n; k += kThreads) atomicAdd(counts + codes[k], 1u);
    __syncthreads();
    for (int b = threadIdx.x; b < bins; b += kThreads) {
      if (counts[b] == 0) continue;
      atomicAdd(&sum, static_cast<unsigned long long>(logs(counts[b])));
      atomicAdd(&n_filled, 1);
    }
    if (above != nullptr && threadIdx.x == 0) {
      uint32_t n = 0;
      for (int b = bins - 1; b > 0; --b) above[j * (bins - 1) + b - 1] = n += counts[b];
    }
    int n_relevant = 0;
    if (bias == Bias::panzeri_treves && threadIdx.x == 0) {
      n_relevant = relevant_bins(Strided<uint32_t>{counts, 1}, bins, bins);
    }
    __syncthreads();
    if (threadIdx.x == 0) margins[j] = Margin{static_cast<int64_t>(sum), n_filled, n_relevant};
  }
}

// What is asked of each pair.
struct Question {
  Logs logs;
  const Margin* x;
  const Margin* y;
  int64_t dy;
  int bins_x, bins_y;
  Bias bias;
  double* information;  // [dx, dy]
  double* biases;       // the same, if a bias is asked for
};

// What the cells of a pair add up to.
struct PairSums {
  unsigned long long logs, n_filled, given;

  // Cells of x's codes, for one value of y after the other.
  template <class Counts>
  __device__ __forceinline__ void add_relevant(const Counts& counts, int bins_x) {
    const int n = relevant_bins(counts, bins_x, bins_x);
    given += n > 0 ? n - 1 : 0;
  }
};

__device__ __forceinline__ void answer(const Question& q, int64_t x, int64_t y, const PairSums& sums) {
  const int64_t at = x * q.dy + y, total = q.logs.total;
  const Margin of_x = q.x[x], of_y = q.y[y];
  q.information[at] = information(static_cast<int64_t>(sums.logs), of_x.logs, of_y.logs,
                                  q.logs(total), q.logs.unit, total);
  if (q.bias == Bias::miller_madow) {
    q.biases[at] = miller_madow(static_cast<int64_t>(sums.n_filled), of_x.n_filled, of_y.n_filled, total);
  } else if (q.bias == Bias::panzeri_treves) {
    q.biases[at] = (static_cast<double>(sums.given) - (of_x.n_relevant - 1)) /
                   (2.0 * static_cast<double>(total));
  }
}

// Makes information of a tile's counts. `sums` is in shared memory, one for each pair.
struct InformationTail {
  const Question& question;
  PairSums* sums;

  __device__ void begin(const TilePlace& place) const {
    if (place.lane == 0) sums[place.pair] = PairSums{0, 0, 0};
  }
  __device__ void take(const TileTable& table, const TilePlace& place, int64_t, int chunk) const {
    if (!place.valid) return;
    PairSums own{0, 0, 0};
    for (int i = place.lane; i < chunk; i += place.lanes) {
      const uint32_t n = table.at(i, place.pair);
      own.logs += static_cast<unsigned long long>(question.logs(n));
      own.n_filled += n > 0 ? 1 : 0;
    }
    if (question.bias == Bias::panzeri_treves) {
      const int bins_x = question.bins_x;
      for (int y = place.lane; y < chunk / bins_x; y += place.lanes) {
        own.add_relevant(Strided<uint32_t>{&table.at(y * bins_x, place.pair), table.pairs}, bins_x);
      }
    }
    PairSums& all = sums[place.pair];
    atomicAdd(&all.logs, own.logs);
    atomicAdd(&all.n_filled, own.n_filled);
    atomicAdd(&all.given, own.given);
  }
  __device__ void end(const TilePlace& place) const {
    if (place.valid && place.lane == 0) answer(question, place.x, place.y, sums[place.pair]);
  }
};

template <class Code>
__global__ void __launch_bounds__(kThreads, 2)
    tile_information(const Columns<Code> x, const Columns<Code> y, const TileCut cut,
                     const Question question) {
  DYN_SMEM(uint32_t, memory);
  __shared__ PairSums sums[kThreads];
  const int64_t n_tiles = (x.d + cut.pairs_x - 1) / cut.pairs_x *
                          ((y.d + cut.pairs_y - 1) / cut.pairs_y);
  for (int64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
    count_tile(x, y, cut, memory, tile, 0, x.n, InformationTail{question, sums});
  }
}

// From counts in memory, [dx, dy, bins_x, bins_y], a pair a block.
static __global__ void __launch_bounds__(kThreads, 2)
    table_information(const unsigned long long* counts, int64_t n_pairs, const Question question) {
  __shared__ PairSums sums;
  const int bins_x = question.bins_x, bins_y = question.bins_y;
  for (int64_t pair = blockIdx.x; pair < n_pairs; pair += gridDim.x) {
    const unsigned long long* table = counts + pair * bins_x * bins_y;
    if (threadIdx.x == 0) sums = PairSums{0, 0, 0};
    __syncthreads();
    PairSums own{0, 0, 0};
    for (int64_t i = threadIdx.x; i < int64_t{bins_x} * bins_y; i += kThreads) {
      own.logs += static_cast<unsigned long long>(question.logs(static_cast<int64_t>(table[i])));
      own.n_filled += table[i] > 0 ? 1 : 0;
    }
    if (question.bias == Bias::panzeri_treves) {
      for (int y = threadIdx.x; y < bins_y; y += kThreads) {
        own.add_relevant(Strided<unsigned long long>{table + y, bins_y}, bins_x);
      }
    }
    atomicAdd(&sums.logs, own.logs);
    atomicAdd(&sums.n_filled, own.n_filled);
    atomicAdd(&sums.given, own.given);
    __syncthreads();
    if (threadIdx.x == 0) answer(question, pair / question.dy, pair % question.dy, sums);
  }
}

// Of null number `before` (from 0): how often it reached what was observed, and running moments.
static __global__ void __launch_bounds__(kThreads)
    add_null(const double* null, const double* observed, int64_t n_pairs, int64_t before,
             double rounding, int64_t* at_least, double* mean, double* m2) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n_pairs;
       i += int64_t{gridDim.x} * kThreads) {
    at_least[i] += null[i] >= observed[i] - rounding ? 1 : 0;
    const double off = null[i] - mean[i];
    mean[i] += off / static_cast<double>(before + 1);
    m2[i] += off * (null[i] - mean[i]);
  }
}

}  // namespace modfast
