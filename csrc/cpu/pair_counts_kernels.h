// Kernels of pair_counts; compiled per SIMD level by for_each_level.h.
//
// A table of y is a row of bits for each sample: bit b * n_cols + j is set where column j has code b,
// for all codes but the last. x is lists of samples by their code, or by the codes of two columns at
// once: then each row is added once for both columns, and their counts are sums of the lists' counts.
#include "bit_rows_kernels.h"

// Rows of n samples, from column `codes` on.
inline void pack(const uint8_t* codes, int64_t stride, int64_t n, int n_cols, int bins, void* rows) {
  uint64_t* row = static_cast<uint64_t*>(rows);
  for (int64_t i = 0; i < n; ++i, row += kRowWords, codes += stride) {
    uint64_t words[kRowWords] = {};
    for (int j = 0; j < n_cols; ++j) {
      const int bit = codes[j] * n_cols + j;
      if (codes[j] < bins - 1) words[bit >> 6] |= uint64_t{1} << (bit & 63);
    }
    memcpy(row, words, sizeof(words));
  }
}

// Adds to counts [bins, kRowBits] of a column, and of a second one in lists of two. Samples with the
// column's `skip`ped code are left out, to be recovered from the others.
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

inline void recover(uint32_t* counts, int bins, int skipped, const uint32_t* all) {
  uint32_t* to = counts + skipped * kRowBits;
  for (int i = 0; i < kRowBits; ++i) to[i] = all[i];
  for (int a = 0; a < bins; ++a) {
    if (a == skipped) continue;
#pragma omp simd
    for (int i = 0; i < kRowBits; ++i) to[i] -= counts[a * kRowBits + i];
  }
}

// Sums of n log n over the cells of each of n_cols tables, from counts of all codes of y but the last
// and the counts of x. Reads up to 8 counts past the last column.
inline void sum_logs(const uint32_t* counts, const int64_t* of_x, int bins_x, int bins_y, int n_cols,
                     const int64_t* logs, int64_t* sums) {
  for (int j = 0; j < n_cols; j += 8) {
    int64_t result[8];
#if MODFAST_SIMD_BITS == 512
    __m512i sum = _mm512_setzero_si512();
    for (int a = 0; a < bins_x; ++a) {
      const uint32_t* row = counts + a * kRowBits + j;
      __m256i rest = _mm256_set1_epi32(static_cast<int>(of_x[a]));
      for (int b = 0; b < bins_y - 1; ++b) {
        const __m256i n = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + b * n_cols));
        rest = _mm256_sub_epi32(rest, n);
        sum = _mm512_add_epi64(sum, _mm512_i32gather_epi64(n, logs, 8));
      }
      // Past the last column this is no count, and may be negative.
      rest = _mm256_max_epi32(rest, _mm256_setzero_si256());
      sum = _mm512_add_epi64(sum, _mm512_i32gather_epi64(rest, logs, 8));
    }
    _mm512_storeu_si512(result, sum);
#elif MODFAST_SIMD_BITS == 256
    const long long* table = reinterpret_cast<const long long*>(logs);
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int a = 0; a < bins_x; ++a) {
      const uint32_t* row = counts + a * kRowBits + j;
      __m128i rest[2];
      rest[0] = rest[1] = _mm_set1_epi32(static_cast<int>(of_x[a]));
      for (int half = 0; half < 2; ++half) {
        for (int b = 0; b < bins_y - 1; ++b) {
          const __m128i n =
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + b * n_cols + 4 * half));
          rest[half] = _mm_sub_epi32(rest[half], n);
          sum[half] = _mm256_add_epi64(sum[half], _mm256_i32gather_epi64(table, n, 8));
        }
        rest[half] = _mm_max_epi32(rest[half], _mm_setzero_si128());
        sum[half] = _mm256_add_epi64(sum[half], _mm256_i32gather_epi64(table, rest[half], 8));
      }
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(result), sum[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(result + 4), sum[1]);
#else
    // Past the last column, neither counts nor sums.
    for (int k = 0; k < 8; ++k) result[k] = 0;
    for (int a = 0; a < bins_x; ++a) {
      const uint32_t* row = counts + a * kRowBits + j;
      for (int k = 0; k < 8 && j + k < n_cols; ++k) {
        uint32_t rest = static_cast<uint32_t>(of_x[a]);
        for (int b = 0; b < bins_y - 1; ++b) {
          rest -= row[b * n_cols + k];
          result[k] += logs[row[b * n_cols + k]];
        }
        result[k] += logs[rest];
      }
    }
#endif
    for (int k = 0; k < 8 && j + k < n_cols; ++k) sums[j + k] = result[k];
  }
}

constexpr PairCountKernels kernels = {
    kRowBits, pack, count, count_every, recover, sum_logs,
};
