// Positional popcount: how often each bit is set in a list of rows; compiled per SIMD level.
//
// Carry-save adders keep the counts of all bits of a row bit-sliced, plane i holding bit i of every
// count, at about one adder a row. Plane by plane, such numbers are also added.

#if MODFAST_SIMD_BITS == 512

using Bits = __m512i;

inline __attribute__((always_inline)) Bits zero_bits() { return _mm512_setzero_si512(); }
inline __attribute__((always_inline)) Bits majority(Bits a, Bits b, Bits c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0xe8);
}
inline __attribute__((always_inline)) Bits odd(Bits a, Bits b, Bits c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
inline __attribute__((always_inline)) Bits both(Bits a, Bits b) { return _mm512_and_si512(a, b); }
inline __attribute__((always_inline)) Bits either(Bits a, Bits b) { return _mm512_xor_si512(a, b); }

#elif MODFAST_SIMD_BITS == 256

using Bits = __m256i;

inline __attribute__((always_inline)) Bits zero_bits() { return _mm256_setzero_si256(); }
inline __attribute__((always_inline)) Bits both(Bits a, Bits b) { return _mm256_and_si256(a, b); }
inline __attribute__((always_inline)) Bits either(Bits a, Bits b) { return _mm256_xor_si256(a, b); }
inline __attribute__((always_inline)) Bits odd(Bits a, Bits b, Bits c) {
  return either(either(a, b), c);
}
inline __attribute__((always_inline)) Bits majority(Bits a, Bits b, Bits c) {
  const Bits differ = either(a, b);
  return either(both(differ, either(a, c)), a);
}

#else

using Bits = uint64_t __attribute__((vector_size(16)));

inline __attribute__((always_inline)) Bits zero_bits() { return Bits{0, 0}; }
inline __attribute__((always_inline)) Bits both(Bits a, Bits b) { return a & b; }
inline __attribute__((always_inline)) Bits either(Bits a, Bits b) { return a ^ b; }
inline __attribute__((always_inline)) Bits odd(Bits a, Bits b, Bits c) { return a ^ b ^ c; }
inline __attribute__((always_inline)) Bits majority(Bits a, Bits b, Bits c) {
  return ((a ^ b) & (a ^ c)) ^ a;
}

#endif

constexpr int kRowBits = static_cast<int>(8 * sizeof(Bits));
constexpr int kRowWords = kRowBits / 64;

// a + b + c = sum (into a) + 2 * what is returned
inline __attribute__((always_inline)) Bits add3(Bits& a, Bits b, Bits c) {
  const Bits carry = majority(a, b, c);
  a = odd(a, b, c);
  return carry;
}

// Adds 8 rows to the low planes; returns the carry into plane 3.
inline __attribute__((always_inline)) Bits add8(Bits& ones, Bits& twos, Bits& fours, const Bits* rows,
                                                const uint16_t* list) {
  const Bits a = add3(ones, rows[list[0]], rows[list[1]]);
  const Bits b = add3(ones, rows[list[2]], rows[list[3]]);
  const Bits c = add3(twos, a, b);
  const Bits d = add3(ones, rows[list[4]], rows[list[5]]);
  const Bits e = add3(ones, rows[list[6]], rows[list[7]]);
  const Bits f = add3(twos, d, e);
  return add3(fours, c, f);
}

// Adds the listed rows, n of them, a multiple of 8, to counts below 2^n_planes. `waiting` are carries
// into a plane that wait for a second one: all zero between calls, which spares the choice.
inline __attribute__((always_inline)) void add_rows(const Bits* rows, const uint16_t* list, int64_t n,
                                                    Bits* planes, int n_planes, Bits* waiting) {
  Bits ones = planes[0], twos = planes[1], fours = planes[2], eights = planes[3];
  for (int64_t i = 0; i < n / 16; ++i, list += 16) {
    const Bits first = add8(ones, twos, fours, rows, list);
    const Bits second = add8(ones, twos, fours, rows, list + 8);
    Bits carry = add3(eights, first, second);
    int plane = 4;
    for (int64_t j = i; j & 1; j >>= 1, ++plane) {
      carry = add3(planes[plane], waiting[plane], carry);
      waiting[plane] = zero_bits();
    }
    waiting[plane] = carry;
  }
  Bits carry = zero_bits();
  if (n & 8) carry = add3(eights, add8(ones, twos, fours, rows, list), zero_bits());
  planes[0] = ones;
  planes[1] = twos;
  planes[2] = fours;
  planes[3] = eights;
  for (int plane = 4; plane < n_planes; ++plane) {
    carry = add3(planes[plane], waiting[plane], carry);
    waiting[plane] = zero_bits();
  }
}

// to += more
inline __attribute__((always_inline)) void add_sliced(Bits* to, int n_planes, const Bits* more,
                                                      int n_more) {
  Bits carry = zero_bits();
  for (int i = 0; i < n_more; ++i) carry = add3(to[i], more[i], carry);
  for (int i = n_more; i < n_planes; ++i) {
    const Bits next = both(to[i], carry);
    to[i] = either(to[i], carry);
    carry = next;
  }
}

// The counts as integers [kRowBits].
inline __attribute__((always_inline)) void unslice(const Bits* planes, int n_planes,
                                                   uint32_t* counts) {
#if MODFAST_SIMD_BITS == 512
  // Bytes of 64 counts at a time, from 8 planes.
  for (int word = 0; word < kRowWords; ++word) {
    __m512i sums[4] = {};
    for (int base = 0; base < n_planes; base += 8) {
      const int end = n_planes < base + 8 ? n_planes : base + 8;
      __m512i bytes = _mm512_setzero_si512();
      for (int i = base; i < end; ++i) {
        uint64_t here;
        memcpy(&here, reinterpret_cast<const char*>(&planes[i]) + 8 * word, 8);
        bytes = _mm512_mask_add_epi8(bytes, here, bytes,
                                     _mm512_set1_epi8(static_cast<char>(1 << (i - base))));
      }
      const __m128i quarters[] = {
          _mm512_castsi512_si128(bytes), _mm512_extracti32x4_epi32(bytes, 1),
          _mm512_extracti32x4_epi32(bytes, 2), _mm512_extracti32x4_epi32(bytes, 3)};
      for (int k = 0; k < 4; ++k) {
        const __m512i wide = _mm512_cvtepu8_epi32(quarters[k]);
        sums[k] = _mm512_or_si512(sums[k], _mm512_sll_epi32(wide, _mm_cvtsi32_si128(base)));
      }
    }
    for (int k = 0; k < 4; ++k) _mm512_storeu_si512(counts + 64 * word + 16 * k, sums[k]);
  }
#elif MODFAST_SIMD_BITS == 256
  // The same with 32 counts: each bit is spread to a byte.
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                          2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i own = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  for (int part = 0; part < kRowBits / 32; ++part) {
    __m256i sums[4] = {};
    for (int base = 0; base < n_planes; base += 8) {
      const int end = n_planes < base + 8 ? n_planes : base + 8;
      __m256i bytes = _mm256_setzero_si256();
      for (int i = base; i < end; ++i) {
        int here;
        memcpy(&here, reinterpret_cast<const char*>(&planes[i]) + 4 * part, 4);
        const __m256i bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(here), spread), own);
        bytes = _mm256_or_si256(
            bytes, _mm256_and_si256(_mm256_cmpeq_epi8(bits, own),
                                    _mm256_set1_epi8(static_cast<char>(1 << (i - base)))));
      }
      const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
      const __m128i quarters[] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
      for (int k = 0; k < 4; ++k) {
        const __m256i wide = _mm256_cvtepu8_epi32(quarters[k]);
        sums[k] = _mm256_or_si256(sums[k], _mm256_sll_epi32(wide, _mm_cvtsi32_si128(base)));
      }
    }
    for (int k = 0; k < 4; ++k) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts + 32 * part + 8 * k), sums[k]);
    }
  }
#else
  for (int word = 0; word < kRowWords; ++word) {
    uint32_t* to = counts + 64 * word;
    memset(to, 0, 64 * sizeof(uint32_t));
    for (int i = 0; i < n_planes; ++i) {
      uint64_t bits;
      memcpy(&bits, reinterpret_cast<const char*>(&planes[i]) + 8 * word, 8);
      for (int j = 0; j < 64; ++j) to[j] += static_cast<uint32_t>(bits >> j & 1) << i;
    }
  }
#endif
}
