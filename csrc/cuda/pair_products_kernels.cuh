// Information of all pairs by tensor cores. Device code only; no torch header.
//
// How many samples have x's code > a and y's code > b is a product of matrices of 0 and 1, with a row
// for each column and a of x, and a column for each column and b of y. Such thermometer operands need a
// row less than one-hot ones, and two instructions make four bytes of them in the registers that the
// product takes them from: codes are below 128, so adding 127 - a sets the top bit of those > a. The
// bytes then are 128 rather than 1, and the sums 2^14 times the counts.
#pragma once

#include "mma.cuh"
#include "pairwise_information_kernels.cuh"

namespace modfast {

// A block's tile of the product; its warps stand 2 by 4, each with 64 by 64.
constexpr int kTileRows = 128, kTileCols = 256;
constexpr int kWarpTile = 64;
constexpr int kFragmentRows = 16, kFragmentCols = 8, kFragmentSamples = 32;
// Rows of 4-byte sums in shared memory, apart by 8 banks: what a warp writes at once meets in none.
constexpr int kTilePitch = kTileCols + 8;
constexpr int64_t kProductBytes = int64_t{kTileRows} * kTilePitch * sizeof(uint32_t);
constexpr int kMaxProductBins = 128;
// Sums of so many samples stay below 2^31.
constexpr uint32_t kSumSamples = (1 << 17) - kFragmentSamples;

// Whole columns that a tile holds.
MODFAST_BOTH int columns_x(int bins) { return kTileRows / (bins - 1); }
MODFAST_BOTH int columns_y(int bins) { return kTileCols / (bins - 1); }

// A row of the product, or a column: whose codes it is made of, and what is added to them.
struct ProductRow {
  uint32_t offset;  // of the column in the tile, in units of kColumnPad, for registers are scarce
  uint32_t addend;  // for each of four codes

  // Row `i` of a tile that starts with column `first`; without such a column, one of no bits.
  __device__ __forceinline__ static ProductRow of(const Columns<uint8_t>& columns, int64_t first,
                                                  int n_columns, int i) {
    const int column = i / (columns.bins - 1), a = i % (columns.bins - 1);
    if (column >= n_columns || first + column >= columns.d) return ProductRow{0, 0};
    return ProductRow{static_cast<uint32_t>(column * (columns.stride / kColumnPad)),
                      (127u - static_cast<uint32_t>(a)) * 0x01010101u};
  }
  // Of eight codes of a tile's columns.
  __device__ __forceinline__ uint2 bits(const uint8_t* codes) const {
    const uint2 word =
        __ldg(reinterpret_cast<const uint2*>(codes + uint64_t{offset} * uint64_t{kColumnPad}));
    return uint2{(word.x + addend) & 0x80808080u, (word.y + addend) & 0x80808080u};
  }
};

// What the product says of a pair: how many samples have codes > a and > b, where a and b may be -1.
struct Above {
  const uint32_t* both;  // [bins_x - 1, kTilePitch]
  const uint32_t* x;     // [bins_x - 1]
  const uint32_t* y;     // [bins_y - 1]
  int64_t total;
  int bins_x, bins_y;

  __device__ __forceinline__ int64_t operator()(int a, int b) const {
    if (a == bins_x - 1 || b == bins_y - 1) return 0;
    if (a < 0) return b < 0 ? total : __ldg(y + b);
    return b < 0 ? __ldg(x + a) : both[a * kTilePitch + b];
  }
};

// above_x, above_y: how many codes of each column are > b, [d, bins - 1].
static __global__ void __launch_bounds__(kThreads, 1)
    product_information(const Columns<uint8_t> x, const Columns<uint8_t> y, const uint32_t* above_x,
                        const uint32_t* above_y, const Question question) {
  constexpr int kRowFragments = kWarpTile / kFragmentRows;
  constexpr int kColFragments = kWarpTile / kFragmentCols;
  DYN_SMEM(uint32_t, memory);
  const int n_x = columns_x(x.bins), n_y = columns_y(y.bins);
  const int64_t across = (y.d + n_y - 1) / n_y, n_tiles = (x.d + n_x - 1) / n_x * across;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / 4 * kWarpTile + lane / 4, col = warp % 4 * kWarpTile + lane / 4;
  for (int64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
    const int64_t first_x = tile / across * n_x, first_y = tile % across * n_y;
    // A lane's samples are eight in a row: the product takes them in any order.
    ProductRow rows[2 * kRowFragments], cols[kColFragments];
#pragma unroll
    for (int i = 0; i < 2 * kRowFragments; ++i) {
      rows[i] = ProductRow::of(x, first_x, n_x, row + i * 8);
    }
#pragma unroll
    for (int j = 0; j < kColFragments; ++j) cols[j] = ProductRow::of(y, first_y, n_y, col + j * 8);
    // 32 bits for fewer than 2^31 samples.
    const uint32_t n = static_cast<uint32_t>(x.n);
    for (uint32_t start = 0; start < n; start += kSumSamples) {
      const uint32_t end = start + kSumSamples < n ? start + kSumSamples : n;
      int sums[kRowFragments][kColFragments][4] = {};
      // Columns are padded with codes 0, which set no bits.
#pragma unroll 1
      for (uint32_t k = start; k < end; k += kFragmentSamples) {
        const uint8_t* of_x = x.codes + first_x * x.stride + k + lane % 4 * 8;
        const uint8_t* of_y = y.codes + first_y * y.stride + k + lane % 4 * 8;
        uint32_t a[kRowFragments][4];
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
          const uint2 upper = rows[2 * i].bits(of_x), lower = rows[2 * i + 1].bits(of_x);
          a[i][0] = upper.x;
          a[i][1] = lower.x;
          a[i][2] = upper.y;
          a[i][3] = lower.y;
        }
#pragma unroll
        for (int j = 0; j < kColFragments; ++j) {
          const uint2 bits = cols[j].bits(of_y);
          const uint32_t b[2] = {bits.x, bits.y};
#pragma unroll
          for (int i = 0; i < kRowFragments; ++i) multiply_bytes(sums[i][j], a[i], b);
        }
      }
      uint32_t* corner = memory + row * kTilePitch + col - lane / 4 + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
        for (int j = 0; j < kColFragments; ++j) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t* at = corner + (i * 16 + half * 8) * kTilePitch + j * 8;
            const uint2 before = start > 0 ? *reinterpret_cast<const uint2*>(at) : uint2{0, 0};
            *reinterpret_cast<uint2*>(at) =
                uint2{before.x + (static_cast<uint32_t>(sums[i][j][2 * half]) >> 14),
                      before.y + (static_cast<uint32_t>(sums[i][j][2 * half + 1]) >> 14)};
          }
        }
      }
    }
    __syncthreads();
    for (int pair = threadIdx.x; pair < n_x * n_y; pair += kThreads) {
      const int i = pair / n_y, j = pair % n_y;
      const int64_t of_x = first_x + i, of_y = first_y + j;
      if (of_x >= x.d || of_y >= y.d) continue;
      const Above above{memory + i * (x.bins - 1) * kTilePitch + j * (y.bins - 1),
                        above_x + of_x * (x.bins - 1),
                        above_y + of_y * (y.bins - 1),
                        x.n,
                        x.bins,
                        y.bins};
      PairSums found{0, 0, 0};
      for (int a = 0; a < x.bins; ++a) {
        // Samples with x's code a, and y's > b.
        int64_t more = above(a - 1, -1) - above(a, -1);
        for (int b = 0; b < y.bins; ++b) {
          const int64_t rest = above(a - 1, b) - above(a, b);
          found.logs += static_cast<unsigned long long>(question.logs(more - rest));
          found.n_filled += more > rest ? 1 : 0;
          more = rest;
        }
      }
      answer(question, of_x, of_y, found);
    }
    __syncthreads();
  }
}

}  // namespace modfast
