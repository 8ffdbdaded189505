#include "pair_counts.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "simd.h"

#define MODFAST_KERNELS "pair_counts_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const PairCountKernels* kTables[] = MODFAST_TABLES;

// A block's rows for one chunk stay in the second-level cache.
constexpr int64_t kBlockBytes = int64_t{1} << 20;
// Tables and lists that are held at once.
constexpr int64_t kHeldBytes = int64_t{128} << 20;
// Groups of columns that are counted against one block before the next: to bring in a block takes as
// long as to count two groups or so, and their counts, too, stay in the second-level cache.
constexpr int64_t kTileGroups = 32;
static_assert(kPairedBins * kPairedBins <= kMaxByteBins, "lists of two columns have bytes as keys");
// Lists of two columns are worth their additions where they hold this many samples on average.
constexpr int64_t kPairedSamples = 24;
// Samples whose counting costs as much as recovering the counts of one code from those of another.
constexpr int64_t kRecoverSamples = 64;
// Rows that are packed for all chunks at a time: their codes stay in the first-level cache.
constexpr int64_t kPackRows = 64;
// Samples of a column that are not worth waking a thread for.
constexpr int64_t kGrain = 65536;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

const PairCountKernels& pair_count_kernels() { return at_level(kTables); }

// 8 rows of 8 bytes, as little-endian words, to 8 columns.
void transpose8(uint64_t (&w)[8]) {
  constexpr uint64_t masks[] = {0x00000000ffffffff, 0x0000ffff0000ffff, 0x00ff00ff00ff00ff};
  for (int step = 4, round = 0; step > 0; step /= 2, ++round) {
    for (int i = 0; i < 8; ++i) {
      if (i & step) continue;
      const uint64_t swapped = ((w[i] >> (8 * step)) ^ w[i + step]) & masks[round];
      w[i] ^= swapped << (8 * step);
      w[i + step] ^= swapped;
    }
  }
}

void transpose(const Codes& codes, const int64_t* order, uint8_t* out) {
  constexpr int64_t kRows = 64;
  const uint8_t* from = static_cast<const uint8_t*>(codes.data);
  const int64_t d = codes.d, n = codes.n, n_tiles = (n + kRows - 1) / kRows;
  torch::stable::parallel_for(
      0, n_tiles, std::max<int64_t>(1, kGrain / (kRows * std::max<int64_t>(d, 1))),
      [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
          const int64_t first = tile * kRows, last = std::min(first + kRows, n);
          const uint8_t* rows[kRows];
          for (int64_t i = first; i < last; ++i) {
            rows[i - first] = from + (order ? order[i] : i) * d;
          }
          // The order of reading below is none that processors foresee.
          for (int64_t i = last; i < std::min(last + kRows, n); ++i) {
            const uint8_t* next = from + (order ? order[i] : i) * d;
            for (int64_t k = 0; k < d; k += 64) __builtin_prefetch(next + k);
          }
          int64_t j = 0;
          for (; j + 8 <= d; j += 8) {
            int64_t i = first;
            for (; i + 8 <= last; i += 8) {
              uint64_t words[8];
              for (int k = 0; k < 8; ++k) std::memcpy(&words[k], rows[i - first + k] + j, 8);
              transpose8(words);
              for (int k = 0; k < 8; ++k) std::memcpy(out + (j + k) * n + i, &words[k], 8);
            }
            for (; i < last; ++i) {
              for (int k = 0; k < 8; ++k) out[(j + k) * n + i] = rows[i - first][j + k];
            }
          }
          for (; j < d; ++j) {
            for (int64_t i = first; i < last; ++i) out[j * n + i] = rows[i - first][j];
          }
        }
      });
}

// Lists of groups [first, last) of one or two columns, block by block.
struct BitRows::ListSet {
  int64_t first, last, n_blocks, d;
  int bins, group;
  int64_t n_keys, capacity;
  std::unique_ptr<Scratch> samples;
  std::vector<int32_t> starts, sizes;  // [group, block, keys + 1], [group, block, keys]
  std::vector<int64_t> histograms;     // [group * columns, bins]
  std::vector<int> modes;              // [group * columns]: most frequent codes, -1: not skipped

  int64_t entry(int64_t g, int64_t block) const { return (g - first) * n_blocks + block; }
  int columns(int64_t g) const { return static_cast<int>(std::min<int64_t>(group, d - g * group)); }

  Lists at(int64_t g, int64_t block) const {
    const int64_t e = entry(g, block);
    return Lists{samples->as<uint16_t>() + e * capacity, &starts[e * (n_keys + 1)]};
  }

  // Sorts the samples [begin, begin + n) of group g by code. `pairs` is room for n bytes.
  void sort(const uint8_t* a, int64_t total, int64_t g, int64_t block, int64_t begin, int64_t n,
            uint8_t* pairs) {
    const int64_t e = entry(g, block);
    const uint8_t* keys = a + g * group * total + begin;
    int32_t* size = &sizes[e * n_keys];
    int32_t* start = &starts[e * (n_keys + 1)];
    uint16_t* out = samples->as<uint16_t>() + e * capacity;
    // Its lines are written in no order that processors foresee.
    for (int64_t i = 0; i < capacity; i += 32) __builtin_prefetch(out + i, 1);
    if (columns(g) == 2) {
      for (int64_t i = 0; i < n; ++i) {
        pairs[i] = static_cast<uint8_t>(keys[i] * bins + keys[total + i]);
      }
      keys = pairs;
    }
    // Two halves at once, as equal keys wait for each other; the second fills lists from behind.
    const int64_t half = n / 2;
    int32_t ahead[kMaxByteBins] = {}, behind[kMaxByteBins] = {};
    for (int64_t i = 0; i < half; ++i) {
      ++ahead[keys[i]];
      ++behind[keys[half + i]];
    }
    if (n % 2 == 1) ++behind[keys[n - 1]];
    start[0] = 0;
    for (int64_t k = 0; k < n_keys; ++k) {
      size[k] = ahead[k] + behind[k];
      start[k + 1] = start[k] + static_cast<int32_t>(round_up(size[k], 8));
      ahead[k] = start[k];
      behind[k] = start[k] + size[k];
      for (int32_t i = behind[k]; i < start[k + 1]; ++i) out[i] = static_cast<uint16_t>(n);
    }
    for (int64_t i = 0; i < half; ++i) {
      out[ahead[keys[i]]++] = static_cast<uint16_t>(i);
      out[--behind[keys[half + i]]] = static_cast<uint16_t>(half + i);
    }
    if (n % 2 == 1) out[--behind[keys[n - 1]]] = static_cast<uint16_t>(n - 1);
  }

  // Each column's own counts and its most frequent code.
  void find_modes(const ColumnCounts& column) {
    histograms.assign((last - first) * group * bins, 0);
    modes.assign((last - first) * group, 0);
    for (int64_t g = first; g < last; ++g) {
      int64_t* h = &histograms[(g - first) * group * bins];
      for (int64_t block = 0; block < n_blocks; ++block) {
        const int32_t* size = &sizes[entry(g, block) * n_keys];
        for (int a = 0; a < bins; ++a) {
          if (columns(g) == 1) {
            h[a] += size[a];
            continue;
          }
          for (int b = 0; b < bins; ++b) {
            h[a] += size[a * bins + b];
            h[bins + b] += size[a * bins + b];
          }
        }
      }
      for (int c = 0; c < columns(g); ++c) {
        modes[(g - first) * group + c] =
            static_cast<int>(std::max_element(h + c * bins, h + (c + 1) * bins) - (h + c * bins));
        column(true, g * group + c, h + c * bins);
      }
      // To recover a code's counts takes as long as to count some samples.
      int64_t n_skipped = 0;
      int* mode = &modes[(g - first) * group];
      const int key = columns(g) == 2 ? mode[0] * bins + mode[1] : mode[0];
      for (int64_t block = 0; block < n_blocks; ++block) {
        n_skipped += sizes[entry(g, block) * n_keys + key];
      }
      if (n_skipped < kRecoverSamples * bins * columns(g)) {
        std::fill_n(mode, columns(g), -1);
      }
    }
  }
};

BitRows::BitRows(const Codes& codes) : codes_(codes), row_bits_(pair_count_kernels().row_bits) {
  const int64_t row_bytes = row_bits_ / 8;
  n_blocks_ = std::max<int64_t>(1, (codes.n * row_bytes + kBlockBytes - 1) / kBlockBytes);
  n_blocks_ = std::max(n_blocks_, (codes.n + 65533) / 65534);
  block_rows_ = (codes.n + n_blocks_ - 1) / n_blocks_;
  n_planes_ = 4;  // the least that the kernels take
  while (codes.n >> n_planes_ > 0) ++n_planes_;
  const int64_t most = row_bits_ / codes.bins;
  const int64_t n_chunks = (codes.d + most - 1) / most;
  for (int64_t c = 0; c < n_chunks; ++c) {
    const int64_t first = c * codes.d / n_chunks, end = (c + 1) * codes.d / n_chunks;
    chunks_.push_back(Chunk{first, static_cast<int>(end - first)});
  }
  const int64_t bytes = n_blocks_ * (block_rows_ + 1) * row_bytes;
  chunks_at_once_ = std::min(std::max<int64_t>(1, kHeldBytes / bytes), n_chunks);
  tables_ = std::make_unique<Scratch>(chunks_at_once_ * bytes);
}

char* BitRows::table(int64_t chunk, int64_t block) const {
  return tables_->as<char>() + ((chunk - first_chunk_) * n_blocks_ + block) * (block_rows_ + 1) *
                                   (row_bits_ / 8);
}

void BitRows::build_tables(int64_t first_chunk, int64_t n, const ColumnCounts& column) {
  if (first_chunk_ == first_chunk) return;
  first_chunk_ = first_chunk;
  const PairCountKernels& kernels = pair_count_kernels();
  every_.assign(n * row_bits_, 0);
  const uint8_t* codes = static_cast<const uint8_t*>(codes_.data);
  const int64_t row_bytes = row_bits_ / 8, n_tiles = (block_rows_ + kPackRows - 1) / kPackRows;
  const int none = -1;
  std::mutex mutex;
  // A few rows for all chunks before the next, so that codes are read once.
  torch::stable::parallel_for(0, n_blocks_ * n_tiles, 4, [&](int64_t begin, int64_t end) {
    const Scratch sums(n * n_planes_ * row_bytes);
    std::memset(sums.as<char>(), 0, n * n_planes_ * row_bytes);
    uint16_t list[kPackRows];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / n_tiles, skipped = i % n_tiles * kPackRows;
      const int64_t from = block_begin(block) + skipped;
      const int64_t rows = std::min(block_begin(block + 1) - from, kPackRows);
      if (rows <= 0) continue;
      for (int64_t k = 0; k < kPackRows; ++k) list[k] = static_cast<uint16_t>(std::min(k, rows));
      const int32_t starts[] = {0, static_cast<int32_t>(round_up(rows, 8))};
      for (int64_t c = 0; c < n; ++c) {
        const Chunk& chunk = chunks_[first_chunk + c];
        char* to = table(first_chunk + c, block) + skipped * row_bytes;
        kernels.pack(codes + from * codes_.d + chunk.first, codes_.d, rows, chunk.n_cols,
                     codes_.bins, to);
        if (from + rows == block_begin(block + 1)) std::memset(to + rows * row_bytes, 0, row_bytes);
        kernels.count(to, Lists{list, starts}, 1, &none, n_planes_,
                      sums.as<char>() + c * n_planes_ * row_bytes, nullptr);
      }
    }
    std::vector<uint32_t> own(n * row_bits_);
    kernels.integers(sums.as<char>(), static_cast<int>(n), n_planes_, false, own.data());
    const std::lock_guard<std::mutex> lock(mutex);
    for (size_t k = 0; k < own.size(); ++k) every_[k] += own[k];
  });
  std::vector<int64_t> counts(codes_.bins);
  for (int64_t c = 0; c < n; ++c) {
    const Chunk& chunk = chunks_[first_chunk + c];
    for (int j = 0; j < chunk.n_cols; ++j) {
      for (int b = 0; b < codes_.bins; ++b) counts[b] = every_[c * row_bits_ + b * chunk.n_cols + j];
      column(false, chunk.first + j, counts.data());
    }
  }
}

void BitRows::run(const ListSet& lists, int64_t chunk, int64_t first_group, int64_t last_group,
                  char* sliced, uint32_t* counts,
                  const std::function<void(const PairCounts&)>& emit) const {
  const PairCountKernels& kernels = pair_count_kernels();
  const int64_t bytes = int64_t{lists.bins} * n_planes_ * (row_bits_ / 8);
  const auto of = [&](int64_t g, int column) {
    return sliced + ((g - first_group) * lists.group + column) * bytes;
  };
  std::memset(sliced, 0, (last_group - first_group) * lists.group * bytes);
  for (int64_t block = 0; block < n_blocks_; ++block) {
    for (int64_t g = first_group; g < last_group; ++g) {
      kernels.count(table(chunk, block), lists.at(g, block), lists.bins,
                    &lists.modes[(g - lists.first) * lists.group], n_planes_, of(g, 0),
                    lists.columns(g) == 2 ? of(g, 1) : nullptr);
    }
  }
  for (int64_t g = first_group; g < last_group; ++g) {
    for (int column = 0; column < lists.columns(g); ++column) {
      const int mode = lists.modes[(g - lists.first) * lists.group + column];
      kernels.integers(of(g, column), lists.bins, n_planes_, column == 1, counts);
      if (mode >= 0) {
        kernels.recover(counts, lists.bins, mode, &every_[(chunk - first_chunk_) * row_bits_]);
      }
      emit(PairCounts{g * lists.group + column, chunks_[chunk].first, chunks_[chunk].n_cols, counts,
                      row_bits_});
    }
  }
}

void BitRows::count(const uint8_t* a, int64_t d, int bins, const ColumnCounts& column,
                    const std::function<void(const PairCounts&)>& emit) {
  const int64_t n = codes_.n, n_chunks = static_cast<int64_t>(chunks_.size());
  if (d == 0 || n_chunks == 0) return;
  ListSet lists{};
  lists.n_blocks = n_blocks_;
  lists.d = d;
  lists.bins = bins;
  lists.group =
      d > 1 && bins <= kPairedBins && block_rows_ >= kPairedSamples * bins * bins ? 2 : 1;
  lists.n_keys = lists.group == 2 ? bins * bins : bins;
  lists.capacity = block_rows_ + 8 * lists.n_keys;
  const int64_t n_groups = (d + lists.group - 1) / lists.group;
  const int64_t bytes = n_blocks_ * lists.capacity * 2;
  const int64_t at_once = std::min(std::max<int64_t>(1, kHeldBytes / bytes), n_groups);
  lists.samples = std::make_unique<Scratch>(at_once * bytes);
  for (lists.first = 0; lists.first < n_groups; lists.first = lists.last) {
    lists.last = std::min(lists.first + at_once, n_groups);
    const int64_t n_lists = (lists.last - lists.first) * n_blocks_;
    lists.starts.resize(n_lists * (lists.n_keys + 1));
    lists.sizes.resize(n_lists * lists.n_keys);
    torch::stable::parallel_for(
        0, n_lists, std::max<int64_t>(1, kGrain / std::max<int64_t>(block_rows_, 1)),
        [&](int64_t begin, int64_t end) {
          std::vector<uint8_t> pairs(block_rows_);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t block = i % n_blocks_, from = block_begin(block);
            lists.sort(a, n, lists.first + i / n_blocks_, block, from,
                       block_begin(block + 1) - from, pairs.data());
          }
        });
    lists.find_modes(column);
    for (int64_t c = 0; c < n_chunks; c += chunks_at_once_) {
      const int64_t n_here = std::min(chunks_at_once_, n_chunks - c);
      build_tables(c, n_here, column);
      const int64_t tile = n_blocks_ > 1 ? kTileGroups : 1;
      const int64_t n_tiles = (lists.last - lists.first + tile - 1) / tile;
      torch::stable::parallel_for(0, n_here * n_tiles, 1, [&](int64_t begin, int64_t end) {
        const Scratch sliced(tile * lists.group * bins * n_planes_ * (row_bits_ / 8));
        const Scratch counts(4 * bins * row_bits_);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t first = lists.first + i % n_tiles * tile;
          run(lists, c + i / n_tiles, first, std::min(first + tile, lists.last), sliced.as<char>(),
              counts.as<uint32_t>(), emit);
        }
      });
    }
  }
}

}  // namespace modfast
