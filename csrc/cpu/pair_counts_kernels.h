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

// Adds to the bit-sliced counts [bins, n_planes] of a column, and of a second one in lists of two.
// Samples with the columns' codes `skip` are left out, and those codes' counts, to be recovered from
// the others'; -1: none. The second column's counts are cumulative: those of code b and all below.
inline void count(const void* table, const Lists& lists, int bins, const int* skip, int n_planes,
                  void* first, void* second) {
  const Bits* rows = static_cast<const Bits*>(table);
  Bits* of_first = static_cast<Bits*>(first);
  Bits* of_second = static_cast<Bits*>(second);
  Bits waiting[kMaxPlanes + 1];
  for (Bits& carry : waiting) carry = zero_bits();
  const auto size = [&](int key) { return lists.starts[key + 1] - lists.starts[key]; };
  if (second == nullptr) {
    for (int a = 0; a < bins; ++a) {
      if (a == skip[0] || size(a) == 0) continue;
      add_rows(rows, lists.samples + lists.starts[a], size(a), of_first + a * n_planes, n_planes,
               waiting);
    }
    return;
  }
  // One running count for each code of the first column: it also serves all codes of the second.
  Bits sum[kBlockPlanes];
  const int n_sum = n_planes < kBlockPlanes ? n_planes : kBlockPlanes;
  for (int a = 0; a < bins; ++a) {
    for (int i = 0; i < n_sum; ++i) sum[i] = zero_bits();
    for (int b = 0; b < bins; ++b) {
      const int key = a * bins + b;
      if (size(key) > 0 && (a != skip[0] || b != skip[1])) {
        add_rows(rows, lists.samples + lists.starts[key], size(key), sum, n_sum, waiting);
      }
      add_sliced(of_second + b * n_planes, n_planes, sum, n_sum);
    }
    add_sliced(of_first + a * n_planes, n_planes, sum, n_sum);
  }
}

// Integers [bins, kRowBits] of bit-sliced counts; `cumulative`: of their differences.
inline void integers(const void* sliced, int bins, int n_planes, bool cumulative, uint32_t* counts) {
  const Bits* planes = static_cast<const Bits*>(sliced);
  for (int b = 0; b < bins; ++b) unslice(planes + b * n_planes, n_planes, counts + b * kRowBits);
  for (int b = bins - 1; b > 0 && cumulative; --b) {
    uint32_t* __restrict own = counts + b * kRowBits;
    const uint32_t* below = own - kRowBits;
    for (int i = 0; i < kRowBits; ++i) own[i] -= below[i];
  }
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
    kRowBits, pack, count, integers, recover, sum_logs,
};
