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

// Counts of one row's bits, below 2^n.
struct Sliced {
  Bits planes[kPlanes];
  int n;
};

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

// The counts over the listed rows, n of them, a multiple of 8 that are rows of zeros where padded.
// `most`: how many are not.
inline __attribute__((always_inline)) void count_rows(const Bits* rows, const uint16_t* list,
                                                      int64_t n, int64_t most, Sliced& to) {
  Bits ones = zero_bits(), twos = zero_bits(), fours = zero_bits();
  to.n = 64 - __builtin_clzll(static_cast<uint64_t>(most) | 1);
  for (int i = 3; i < to.n; ++i) to.planes[i] = zero_bits();
  Bits waiting[kPlanes];  // carries into a plane that wait for a second one
  for (int64_t i = 0; i < n / 8; ++i) {
    Bits carry = add8(ones, twos, fours, rows, list + 8 * i);
    int plane = 3;
    for (int64_t j = i; j & 1; j >>= 1, ++plane) {
      carry = add3(to.planes[plane], waiting[plane], carry);
    }
    waiting[plane] = carry;
  }
  to.planes[0] = ones;
  to.planes[1] = twos;
  to.planes[2] = fours;
  Bits carry = zero_bits();
  for (int plane = 3; plane < to.n; ++plane) {
    const Bits more = (n / 8) >> (plane - 3) & 1 ? waiting[plane] : zero_bits();
    carry = add3(to.planes[plane], more, carry);
  }
}

// to += more, with counts of at most `most`.
inline __attribute__((always_inline)) void add_sliced(Sliced& to, const Sliced& more, int64_t most) {
  const int n = 64 - __builtin_clzll(static_cast<uint64_t>(most) | 1);
  for (int i = to.n; i < n; ++i) to.planes[i] = zero_bits();
  Bits carry = zero_bits();
  int i = 0;
  const int common = more.n < n ? more.n : n;
  for (; i < common; ++i) carry = add3(to.planes[i], more.planes[i], carry);
  for (; i < n; ++i) {
    const Bits next = both(to.planes[i], carry);
    to.planes[i] = either(to.planes[i], carry);
    carry = next;
  }
  to.n = n;
}

// Adds the counts, as integers, to `counts` [kRowBits].
inline __attribute__((always_inline)) void unslice(const Sliced& from, uint32_t* counts) {
#if MODFAST_SIMD_BITS == 512
  // Bytes of 64 counts at a time: planes 0 to 7, and the others.
  for (int word = 0; word < kRowWords; ++word) {
    __m512i low = _mm512_setzero_si512(), high = low;
    for (int i = 0; i < from.n; ++i) {
      uint64_t here;
      memcpy(&here, reinterpret_cast<const char*>(&from.planes[i]) + 8 * word, 8);
      const __m512i bit = _mm512_set1_epi8(static_cast<char>(1 << (i & 7)));
      if (i < 8) {
        low = _mm512_mask_add_epi8(low, here, low, bit);
      } else {
        high = _mm512_mask_add_epi8(high, here, high, bit);
      }
    }
    const __m128i lows[] = {_mm512_castsi512_si128(low), _mm512_extracti32x4_epi32(low, 1),
                            _mm512_extracti32x4_epi32(low, 2), _mm512_extracti32x4_epi32(low, 3)};
    const __m128i highs[] = {_mm512_castsi512_si128(high), _mm512_extracti32x4_epi32(high, 1),
                             _mm512_extracti32x4_epi32(high, 2), _mm512_extracti32x4_epi32(high, 3)};
    for (int k = 0; k < 4; ++k) {
      uint32_t* to = counts + 64 * word + 16 * k;
      const __m512i more = _mm512_add_epi32(_mm512_cvtepu8_epi32(lows[k]),
                                            _mm512_slli_epi32(_mm512_cvtepu8_epi32(highs[k]), 8));
      _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), more));
    }
  }
#else
  for (int word = 0; word < kRowWords; ++word) {
    uint32_t* to = counts + 64 * word;
    for (int i = 0; i < from.n; ++i) {
      uint64_t bits;
      memcpy(&bits, reinterpret_cast<const char*>(&from.planes[i]) + 8 * word, 8);
      for (int j = 0; j < 64; ++j) to[j] += static_cast<uint32_t>(bits >> j & 1) << i;
    }
  }
#endif
}
