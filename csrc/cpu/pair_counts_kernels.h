// Kernels of pair_counts; compiled per SIMD level by for_each_level.h.
//
// A table of y is a row of bits for each sample: bit b * n_cols + j is set where column j has code b.
// x is lists of samples by their code, or by the codes of two columns at once: then each row is added
// once for both columns, and their counts are sums of the lists' counts.
#include "bit_rows_kernels.h"

// Rows of n samples, from column `codes` on.
inline void pack(const uint8_t* codes, int64_t stride, int64_t n, int n_cols, int bins, void* rows) {
  uint64_t* row = static_cast<uint64_t*>(rows);
#if MODFAST_SIMD_BITS == 512
  // Code by code, unless there are more codes than columns.
  if (n_cols <= 64 && bins <= n_cols) {
    const __mmask64 here = ~uint64_t{0} >> (64 - n_cols);
    for (int64_t i = 0; i < n; ++i, row += kRowWords, codes += stride) {
      const __m512i column = _mm512_maskz_loadu_epi8(here, codes);
      uint64_t* to = row;
      uint64_t word = 0;
      int filled = 0;
      for (int b = 0; b < bins; ++b) {
        const uint64_t same =
            _mm512_mask_cmpeq_epi8_mask(here, column, _mm512_set1_epi8(static_cast<char>(b)));
        word |= same << filled;
        filled += n_cols;
        if (filled >= 64) {
          *to++ = word;
          filled -= 64;
          // A shift by 64 would be undefined.
          word = filled == 0 ? 0 : same >> (n_cols - filled);
        }
      }
      for (; to < row + kRowWords; ++to, word = 0) *to = word;
    }
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i, row += kRowWords, codes += stride) {
    uint64_t words[kRowWords] = {};
    for (int j = 0; j < n_cols; ++j) {
      const int bit = codes[j] * n_cols + j;
      words[bit >> 6] |= uint64_t{1} << (bit & 63);
    }
    memcpy(row, words, sizeof(words));
  }
}

// Adds to counts [bins, kRowBits] of a column, and of a second one in lists of two. Samples with the
// columns' codes `skip` are left out, and those codes' counts, to be recovered from the others'; -1: none.
inline void count(const void* table, const Lists& lists, int bins, const int* skip, uint32_t* first,
                  uint32_t* second) {
  const Bits* rows = static_cast<const Bits*>(table);
  Sliced one;
  if (second == nullptr) {
    for (int a = 0; a < bins; ++a) {
      if (a == skip[0] || lists.sizes[a] == 0) continue;
      count_rows(rows, lists.samples + lists.starts[a], lists.starts[a + 1] - lists.starts[a],
                 lists.sizes[a], one);
      unslice(one, first + a * kRowBits);
    }
    return;
  }
  Sliced sum, sums[kPairedBins];
  int64_t n_sums[kPairedBins] = {};
  for (int b = 0; b < bins; ++b) sums[b].n = 0;
  for (int a = 0; a < bins; ++a) {
    sum.n = 0;
    int64_t n_sum = 0;
    for (int b = 0; b < bins; ++b) {
      const int key = a * bins + b;
      const int64_t size = lists.sizes[key];
      if (size == 0 || (a == skip[0] && b == skip[1])) continue;
      count_rows(rows, lists.samples + lists.starts[key], lists.starts[key + 1] - lists.starts[key],
                 size, one);
      if (a != skip[0]) add_sliced(sum, one, n_sum += size);
      if (b != skip[1]) add_sliced(sums[b], one, n_sums[b] += size);
    }
    if (a != skip[0]) unslice(sum, first + a * kRowBits);
  }
  for (int b = 0; b < bins; ++b) {
    if (b != skip[1]) unslice(sums[b], second + b * kRowBits);
  }
}

// The counts of the whole table.
inline void count_every(const void* table, const uint16_t* every, int64_t n, uint32_t* counts) {
  Sliced sum;
  count_rows(static_cast<const Bits*>(table), every, (n + 7) / 8 * 8, n, sum);
  unslice(sum, counts);
}

inline void recover(uint32_t* counts, int bins, int skipped, const uint32_t* every) {
  using Lanes = uint32_t __attribute__((vector_size(64)));
  for (int i = 0; i < kRowBits; i += 16) {
    Lanes rest, some;
    memcpy(&rest, every + i, sizeof(rest));
    for (int a = 0; a < bins; ++a) {
      if (a == skipped) continue;
      memcpy(&some, counts + a * kRowBits + i, sizeof(some));
      rest -= some;
    }
    memcpy(counts + skipped * kRowBits + i, &rest, sizeof(rest));
  }
}

// Sums of n log n over the cells of each of n_cols tables.
inline void sum_logs(const uint32_t* counts, int bins_x, int bins_y, int n_cols, const int64_t* logs,
                     int64_t* sums) {
  alignas(64) int64_t of_bits[kRowBits];
  const int n_bits = bins_y * n_cols;  // the others have counts of 0
  for (int i = 0; i < n_bits; i += 8) {
#if MODFAST_SIMD_BITS == 512
    __m512i sum = _mm512_setzero_si512();
    for (int a = 0; a < bins_x; ++a) {
      const void* n = counts + a * kRowBits + i;
      const __m256i at = _mm256_loadu_si256(static_cast<const __m256i*>(n));
      sum = _mm512_add_epi64(sum, _mm512_i32gather_epi64(at, logs, 8));
    }
    _mm512_store_si512(of_bits + i, sum);
#elif MODFAST_SIMD_BITS == 256
    const long long* table = reinterpret_cast<const long long*>(logs);
    for (int half = i; half < i + 8; half += 4) {
      __m256i sum = _mm256_setzero_si256();
      for (int a = 0; a < bins_x; ++a) {
        const void* n = counts + a * kRowBits + half;
        const __m128i at = _mm_loadu_si128(static_cast<const __m128i*>(n));
        sum = _mm256_add_epi64(sum, _mm256_i32gather_epi64(table, at, 8));
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(of_bits + half), sum);
    }
#else
    for (int k = i; k < i + 8; ++k) {
      of_bits[k] = 0;
      for (int a = 0; a < bins_x; ++a) of_bits[k] += logs[counts[a * kRowBits + k]];
    }
#endif
  }
  for (int j = 0; j < n_cols; ++j) sums[j] = of_bits[j];
  for (int b = 1; b < bins_y; ++b) {
    for (int j = 0; j < n_cols; ++j) sums[j] += of_bits[b * n_cols + j];
  }
}

constexpr PairCountKernels kernels = {
    kRowBits, pack, count, count_every, recover, sum_logs,
};
