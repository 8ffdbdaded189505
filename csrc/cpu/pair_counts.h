// Counts of all pairs of columns, by positional popcount: what makes information of them fast.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "../codes.h"
#include "large.h"

namespace modfast {

// Bits of bit-sliced counts: of a block of samples, fewer than 2^16, and of all.
constexpr int kBlockPlanes = 16;
constexpr int kMaxPlanes = 31;
constexpr int kMaxRowBits = 512;
// Lists are of two columns at once up to this many bins.
constexpr int kPairedBins = 16;

// Samples by code: those of code a are samples[starts[a]] up to starts[a + 1], padded to a multiple of
// 8 with the sample that no row has a bit of.
struct Lists {
  const uint16_t* samples;
  const int32_t* starts;
};

struct PairCountKernels {
  int row_bits;
  void (*pack)(const uint8_t* codes, int64_t stride, int64_t n, int n_cols, int bins, void* rows);
  void (*count)(const void* table, const Lists& lists, int bins, const int* skip, int n_planes,
                void* first, void* second);
  void (*integers)(const void* sliced, int bins, int n_planes, bool cumulative, uint32_t* counts);
  void (*recover)(uint32_t* counts, int bins, int skipped, const uint32_t* every);
  void (*sum_logs)(const uint32_t* counts, int bins_x, int bins_y, int n_cols, const int64_t* logs,
                   int64_t* sums);
};

const PairCountKernels& pair_count_kernels();

// The counts of column `a` of one side with columns [b, b + n_cols) of the other:
// counts[code of a * row_bits + code of b * n_cols + j].
struct PairCounts {
  int64_t a, b;
  int n_cols;
  const uint32_t* counts;
  int row_bits;
};

// Takes the counts of one column of the listed side, or of the other.
using ColumnCounts = std::function<void(bool listed, int64_t column, const int64_t* counts)>;

// Columns as bytes, one after the other; `order` gives the rows' order.
void transpose(const Codes& codes, const int64_t* order, uint8_t* out);

// The side whose samples become rows of bits: tables are kept for several other sides.
class BitRows {
 public:
  explicit BitRows(const Codes& codes);

  // Calls `emit` once for each of `a`'s columns and each chunk of these, in parallel, and before that
  // `column` for the columns; for those of these only when their tables are built. `a` is transposed,
  // [d, n].
  void count(const uint8_t* a, int64_t d, int bins, const ColumnCounts& column,
             const std::function<void(const PairCounts&)>& emit);

 private:
  struct Chunk {
    int64_t first;
    int n_cols;
  };
  struct ListSet;

  int64_t block_begin(int64_t block) const { return block * codes_.n / n_blocks_; }
  void build_tables(int64_t first_chunk, int64_t n, const ColumnCounts& column);
  char* table(int64_t chunk, int64_t block) const;
  void run(const ListSet& lists, int64_t chunk, int64_t first_group, int64_t last_group,
           char* sliced, uint32_t* counts, const std::function<void(const PairCounts&)>& emit) const;

  Codes codes_;
  int row_bits_, n_planes_;
  int64_t n_blocks_, block_rows_;  // at most
  std::vector<Chunk> chunks_;
  int64_t chunks_at_once_, first_chunk_ = -1;  // whose tables are there
  std::unique_ptr<Scratch> tables_;
  std::vector<uint32_t> every_;  // counts of all samples, [chunks at once, row bits]
};

}  // namespace modfast
