// Counts of tiles of pairs of columns in shared memory. Device code only; no torch header.
//
// A thread counts one pair, or several threads one where tables are large. Cells of one code pair lie
// side by side for the tile's pairs, so that lanes with pairs of their own never meet in a bank.
#pragma once

#include "../math/number.h"
#include "launch.cuh"
#include "packs.cuh"

namespace modfast {

// Codes in [0, bins), one column after the other. Columns start at multiples of `stride`, which is a
// multiple of kColumnPad; what lies between is code 0.
template <class Code>
struct Columns {
  const Code* codes;
  int64_t n, d, stride;
  int bins;
};

constexpr int64_t kColumnPad = 128;

// Rows of `order` if there is one, by tiles of 32 columns and kColumnPad rows. Codes and rows out of
// range become the last.
template <class From, class To>
__global__ void __launch_bounds__(kThreads, 4)
    to_columns(const From* from, const int64_t* order, int64_t n, int64_t d, int64_t stride, int bins,
               To* to) {
  constexpr int kCols = 32, kRows = kColumnPad, kPad = 4 / sizeof(To);
  __shared__ To tile[kCols * (kRows + kPad)];
  const int64_t across = (d + kCols - 1) / kCols, n_tiles = stride / kRows * across;
  for (int64_t t = blockIdx.x; t < n_tiles; t += gridDim.x) {
    const int64_t first_row = t / across * kRows, first_col = t % across * kCols;
#pragma unroll 4
    for (int i = threadIdx.x; i < kRows * kCols; i += kThreads) {
      const int row = i / kCols, col = i % kCols;
      int code = 0;
      if (first_row + row < n && first_col + col < d) {
        int64_t at = first_row + row;
        if (order != nullptr) {
          at = order[at];
          at = static_cast<uint64_t>(at) < static_cast<uint64_t>(n) ? at : n - 1;
        }
        code = from[at * d + first_col + col];
        code = code < bins ? code : bins - 1;
      }
      tile[col * (kRows + kPad) + row] = static_cast<To>(code);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * kCols; i += kThreads) {
      const int row = i % kRows, col = i / kRows;
      if (first_col + col < d) {
        to[(first_col + col) * stride + first_row + row] = tile[col * (kRows + kPad) + row];
      }
    }
    __syncthreads();
  }
}

// pairs_x by pairs_y pairs a tile, powers of two, at most kThreads in all, and `cells` of their tables
// at a time.
struct TileCut {
  int pairs_x, pairs_y, cells;

  MODFAST_BOTH int pairs() const { return pairs_x * pairs_y; }
};

// What a thread works at.
struct TilePlace {
  int pair;         // in the tile
  int lane, lanes;  // its turn among the threads of the pair
  int64_t x, y;     // columns
  bool valid;       // whether there are such
};

// Table of a chunk of a tile's cells: cell `i` of place's pair, i counted from the chunk's start.
struct TileTable {
  uint32_t* cells;
  int pairs;

  __device__ __forceinline__ uint32_t& at(int i, int pair) const { return cells[i * pairs + pair]; }
};

// Cells are numbered y's code * bins_x + x's code. `Tail` gets a block's counts: `begin(place)`,
// `take(table, place, first cell, cells)` for each chunk, `end(place)`, by all threads.
template <class Code, class Tail>
__device__ __forceinline__ void count_tile(const Columns<Code>& x, const Columns<Code>& y,
                                           const TileCut& cut, uint32_t* memory, int64_t tile,
                                           int64_t first, int64_t last, const Tail& tail) {
  constexpr int V = 16 / sizeof(Code);
  const int64_t across = (y.d + cut.pairs_y - 1) / cut.pairs_y;
  const int n_pairs = cut.pairs(), pair = threadIdx.x % n_pairs;
  TilePlace place{pair,
                  static_cast<int>(threadIdx.x) / n_pairs,
                  kThreads / n_pairs,
                  tile / across * cut.pairs_x + pair / cut.pairs_y,
                  tile % across * cut.pairs_y + pair % cut.pairs_y,
                  false};
  place.valid = place.x < x.d && place.y < y.d;
  const Code* of_x = x.codes + place.x * x.stride;
  const Code* of_y = y.codes + place.y * y.stride;
  const TileTable table{memory, n_pairs};
  const int64_t n_cells = int64_t{x.bins} * y.bins;
  tail.begin(place);
  for (int64_t start = 0; start < n_cells; start += cut.cells) {
    const int chunk = static_cast<int>(n_cells - start < cut.cells ? n_cells - start : cut.cells);
    for (int i = threadIdx.x; i < chunk * n_pairs; i += kThreads) memory[i] = 0;
    __syncthreads();
    const auto add = [&](uint32_t a, uint32_t b) {
      const uint32_t cell = b * static_cast<uint32_t>(x.bins) + a - static_cast<uint32_t>(start);
      if (cell < static_cast<uint32_t>(chunk)) {
        atomicAdd(&table.at(static_cast<int>(cell), pair), 1u);
      }
    };
    if (place.valid) {
      for (int64_t k = first + place.lane * V; k < last; k += place.lanes * V) {
        const auto xs = bit_cast<Pack<Code, V>>(__ldg(reinterpret_cast<const uint4*>(of_x + k)));
        const auto ys = bit_cast<Pack<Code, V>>(__ldg(reinterpret_cast<const uint4*>(of_y + k)));
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (k + v < last) add(xs.values[v], ys.values[v]);
        }
      }
    }
    __syncthreads();
    tail.take(table, place, start, chunk);
    __syncthreads();
  }
  tail.end(place);
}

// Adds the counts to those in memory, [dx, dy, bins_x, bins_y].
struct CountsTail {
  unsigned long long* counts;
  int64_t dy;
  int bins_x, bins_y;

  __device__ void begin(const TilePlace&) const {}
  __device__ void take(const TileTable& table, const TilePlace& place, int64_t start,
                       int chunk) const {
    if (!place.valid) return;
    unsigned long long* to = counts + (place.x * dy + place.y) * bins_x * bins_y;
    for (int i = place.lane; i < chunk; i += place.lanes) {
      const uint32_t n = table.at(i, place.pair);
      const int64_t cell = start + i;
      if (n != 0) atomicAdd(to + cell % bins_x * bins_y + cell / bins_x, n);
    }
  }
  __device__ void end(const TilePlace&) const {}
};

// Each tile's samples are shared among `n_splits` blocks.
template <class Code>
__global__ void __launch_bounds__(kThreads)
    count_tiles(const Columns<Code> x, const Columns<Code> y, const TileCut cut, int64_t n_splits,
                unsigned long long* counts) {
  DYN_SMEM(uint32_t, memory);
  const int64_t n_tiles = (x.d + cut.pairs_x - 1) / cut.pairs_x *
                          ((y.d + cut.pairs_y - 1) / cut.pairs_y);
  const int64_t share = (x.n + n_splits * kColumnPad - 1) / (n_splits * kColumnPad) * kColumnPad;
  for (int64_t job = blockIdx.x; job < n_tiles * n_splits; job += gridDim.x) {
    const int64_t first = job % n_splits * share;
    const int64_t last = first + share < x.n ? first + share : x.n;
    count_tile(x, y, cut, memory, job / n_splits, first, last,
               CountsTail{counts, y.d, x.bins, y.bins});
  }
}

}  // namespace modfast
