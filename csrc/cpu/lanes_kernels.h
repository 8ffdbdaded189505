// Vectors of one SIMD register, and functions of them; compiled per SIMD level.
//
// By the compiler's own vectors: arithmetic is written as for numbers, and comparisons give masks of
// -1 and 0.

constexpr int kLaneBytes = MODFAST_SIMD_BITS == 0 ? 16 : MODFAST_SIMD_BITS / 8;

template <class T>
struct lanes_of;
template <>
struct lanes_of<float> {
  typedef float type __attribute__((vector_size(kLaneBytes)));
  typedef int32_t mask __attribute__((vector_size(kLaneBytes)));
};
template <>
struct lanes_of<double> {
  typedef double type __attribute__((vector_size(kLaneBytes)));
  typedef int64_t mask __attribute__((vector_size(kLaneBytes)));
};
template <class T>
using Lanes = typename lanes_of<T>::type;
template <class T>
using Mask = typename lanes_of<T>::mask;
template <class T>
constexpr int kLanes = kLaneBytes / static_cast<int>(sizeof(T));

#define MODFAST_LANE inline __attribute__((always_inline))

template <class T>
MODFAST_LANE Lanes<T> load_lanes(const T* from) {
  Lanes<T> v;
  memcpy(&v, from, sizeof(v));
  return v;
}

template <class T>
MODFAST_LANE void store_lanes(T* to, Lanes<T> v) {
  memcpy(to, &v, sizeof(v));
}

// The first n of them, and zeros.
template <class T>
MODFAST_LANE Lanes<T> load_first(const T* from, int64_t n) {
  if (n >= kLanes<T>) return load_lanes(from);
#if MODFAST_SIMD_BITS == 512
  const uint32_t some = (1u << n) - 1;
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(some), from);
  } else {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>(some), from);
  }
#else
  T some[kLanes<T>] = {};
  for (int64_t l = 0; l < n; ++l) some[l] = from[l];
  return load_lanes(some);
#endif
}

template <class T>
MODFAST_LANE Lanes<T> splat(T x) {
  return x - Lanes<T>{};  // a broadcast: x - 0 is x for all x; a loop over lanes is one for each
}

template <class V>
MODFAST_LANE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
MODFAST_LANE V smaller(V a, V b) {
  return a < b ? a : b;
}
#if MODFAST_SIMD_BITS == 512
MODFAST_LANE Lanes<float> larger(Lanes<float> a, Lanes<float> b) { return _mm512_max_ps(a, b); }
MODFAST_LANE Lanes<double> larger(Lanes<double> a, Lanes<double> b) { return _mm512_max_pd(a, b); }
MODFAST_LANE Lanes<float> smaller(Lanes<float> a, Lanes<float> b) { return _mm512_min_ps(a, b); }
MODFAST_LANE Lanes<double> smaller(Lanes<double> a, Lanes<double> b) { return _mm512_min_pd(a, b); }
#elif MODFAST_SIMD_BITS == 256
MODFAST_LANE Lanes<float> larger(Lanes<float> a, Lanes<float> b) { return _mm256_max_ps(a, b); }
MODFAST_LANE Lanes<double> larger(Lanes<double> a, Lanes<double> b) { return _mm256_max_pd(a, b); }
MODFAST_LANE Lanes<float> smaller(Lanes<float> a, Lanes<float> b) { return _mm256_min_ps(a, b); }
MODFAST_LANE Lanes<double> smaller(Lanes<double> a, Lanes<double> b) { return _mm256_min_pd(a, b); }
#endif

template <class M>
MODFAST_LANE bool any(M mask) {
#if MODFAST_SIMD_BITS == 512
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif MODFAST_SIMD_BITS == 256
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#else
  int64_t words[2];
  memcpy(words, &mask, sizeof(words));
  return (words[0] | words[1]) != 0;
#endif
}

// A bit for each lane of a mask.
template <class T>
MODFAST_LANE uint32_t bits(Mask<T> mask) {
#if MODFAST_SIMD_BITS == 512
  return sizeof(T) == 4 ? _mm512_movepi32_mask((__m512i)mask) : _mm512_movepi64_mask((__m512i)mask);
#elif MODFAST_SIMD_BITS == 256
  return sizeof(T) == 4 ? _mm256_movemask_ps((__m256)mask) : _mm256_movemask_pd((__m256d)mask);
#elif defined(__x86_64__)
  return sizeof(T) == 4 ? _mm_movemask_ps((__m128)mask) : _mm_movemask_pd((__m128d)mask);
#else
  uint32_t found = 0;
  for (int l = 0; l < kLanes<T>; ++l) found |= static_cast<uint32_t>(mask[l] & 1) << l;
  return found;
#endif
}

// A bit for each lane where a > b.
template <class T>
MODFAST_LANE uint32_t bits_above(Lanes<T> a, Lanes<T> b) {
#if MODFAST_SIMD_BITS == 512
  if constexpr (sizeof(T) == 4) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
  } else {
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
  }
#else
  return bits<T>(a > b);
#endif
}

// from[at[lane]]
#if MODFAST_SIMD_BITS == 512
MODFAST_LANE Lanes<float> gather(const float* from, const int32_t* at) {
  return _mm512_i32gather_ps(_mm512_loadu_si512(at), from, 4);
}
MODFAST_LANE Lanes<double> gather(const double* from, const int32_t* at) {
  return _mm512_i32gather_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), from, 8);
}
#elif MODFAST_SIMD_BITS == 256
MODFAST_LANE Lanes<float> gather(const float* from, const int32_t* at) {
  return _mm256_i32gather_ps(from, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), 4);
}
MODFAST_LANE Lanes<double> gather(const double* from, const int32_t* at) {
  return _mm256_i32gather_pd(from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), 8);
}
#else
template <class T>
MODFAST_LANE Lanes<T> gather(const T* from, const int32_t* at) {
  Lanes<T> found;
  for (int l = 0; l < kLanes<T>; ++l) found[l] = from[at[l]];
  return found;
}
#endif

template <class T, int... lane>
MODFAST_LANE Lanes<T> zip_low(Lanes<T> a, Lanes<T> b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * kLanes<T>)...);
}
template <class T, int... lane>
MODFAST_LANE Lanes<T> zip_high(Lanes<T> a, Lanes<T> b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, ((lane + kLanes<T>) / 2 + lane % 2 * kLanes<T>)...);
}

template <class T, int by, int... lane>
MODFAST_LANE Lanes<T> max_lanes(Lanes<T> v, std::integer_sequence<int, lane...> lanes) {
  if constexpr (by < kLanes<T>) {
    return max_lanes<T, 2 * by>(larger(v, __builtin_shufflevector(v, v, (lane ^ by)...)), lanes);
  }
  return v;
}
// The largest of all lanes, in each.
template <class T>
MODFAST_LANE Lanes<T> max_lanes(Lanes<T> v) {
  return max_lanes<T, 1>(v, std::make_integer_sequence<int, kLanes<T>>{});
}

// The columns of at most `block` rows, row i at row_of(i), to [n_cols][block], with zeros for the rows
// that are missing. block: a multiple of kLanes.
template <class T, class RowOf>
MODFAST_LANE void transpose_rows(const RowOf& row_of, int64_t n_rows, int64_t n_cols, int64_t block, T* to) {
  constexpr int n = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
  for (int64_t row = 0; row < block; row += n) {
    int64_t col = 0;
    for (; row + n <= n_rows && col + n <= n_cols; col += n) {
      Lanes<T> rows[n], mixed[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) rows[i] = load_lanes(row_of(row + i) + col);
#pragma GCC unroll 4
      for (int width = 1; width < n; width *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < n / 2; ++i) {
          mixed[2 * i] = zip_low<T>(rows[i], rows[i + n / 2], lanes);
          mixed[2 * i + 1] = zip_high<T>(rows[i], rows[i + n / 2], lanes);
        }
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) rows[i] = mixed[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) store_lanes(to + (col + i) * block + row, rows[i]);
    }
    for (; col < n_cols; ++col) {
      for (int64_t i = row; i < row + n; ++i) to[col * block + i] = i < n_rows ? row_of(i)[col] : T(0);
    }
  }
}

// from [n_rows, n_cols], rows `stride` apart, to [n_cols][block], as transpose_rows.
template <class T>
void transpose(const T* from, int64_t n_rows, int64_t n_cols, int64_t stride, int64_t block, T* to) {
  transpose_rows([=](int64_t row) { return from + row * stride; }, n_rows, n_cols, block, to);
}

template <class T>
struct Numbers;
template <>
struct Numbers<float> {
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  // 1.5 * 2^23 + bias: adding it rounds to an integer, and leaves that and the bias in the lowest bits.
  static constexpr float shift = 12583039.0f;
  static constexpr int32_t bias = 127, digits = 23;
  static constexpr int32_t one_bits = 0x3f800000, digit_mask = 0x7fffff;
  static constexpr float lowest = -87.0f;  // of which e^x is a normal number
  // Of (e^f - 1 - f) / f^2, fitted for |f| < ln2 / 2 to 1.4e-7 of the whole.
  static constexpr float exp[] = {0.5f, 0.16666578f, 0.041666854f, 0.0083631705f, 0.0013901297f};
  // (log(1 + t) - t + t^2 / 2) / t^3, by Cephes' logf.
  static constexpr float log[] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,
                                  -1.6668057665e-1f, 1.4249322787e-1f,  -1.2420140846e-1f,
                                  1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
};
template <>
struct Numbers<double> {
  static constexpr double log2e = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double shift = 6755399441056767.0;  // 1.5 * 2^52 + bias
  static constexpr int64_t bias = 1023, digits = 52;
  static constexpr int64_t one_bits = 0x3ff0000000000000, digit_mask = 0xfffffffffffff;
  static constexpr double lowest = -708.0;
  // The rest is 7e-17 of the whole.
  static constexpr double exp[] = {1 / 2.,       1 / 6.,        1 / 24.,       1 / 120.,
                                   1 / 720.,     1 / 5040.,     1 / 40320.,    1 / 362880.,
                                   1 / 3628800., 1 / 39916800., 1 / 479001600., 1 / 6227020800.};
  // log m = 2t (1 + t^2 / 3 + t^4 / 5 + ...), t = (m - 1) / (m + 1)
  static constexpr double log[] = {1.,      1 / 3.,  1 / 5.,  1 / 7.,  1 / 9., 1 / 11.,
                                   1 / 13., 1 / 15., 1 / 17., 1 / 19., 1 / 21.};
};

template <class T, int n>
MODFAST_LANE Lanes<T> polynomial(Lanes<T> x, const T (&coefficients)[n]) {
  Lanes<T> sum = splat(coefficients[n - 1]);
#pragma GCC unroll 16
  for (int i = n - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// x = k ln2 + f with |f| <= ln2 / 2, and 2^k.
template <class T>
struct Reduced {
  Lanes<T> k, f, power;
  Lanes<T> rest;  // e^f - 1 - f
};

template <class T>
MODFAST_LANE Reduced<T> reduce(Lanes<T> x) {
  using N = Numbers<T>;
  const Lanes<T> shifted = x * N::log2e + N::shift;
  const Lanes<T> k = shifted - N::shift;
  const Lanes<T> f = (x - k * N::ln2_high) - k * N::ln2_low;
  const Mask<T> power = (Mask<T>)shifted << N::digits;
  return {k, f, (Lanes<T>)power, f * f * polynomial<T>(f, N::exp)};
}

// e^x - 1, to 2 units in the last place, and e^x - 1 - x, to 20, for |x| <= kFar.
template <class T>
struct Excess {
  Lanes<T> moved, beyond;
};

template <class T>
MODFAST_LANE Excess<T> exp_excess(Lanes<T> x) {
  const Reduced<T> r = reduce<T>(x);
  const Lanes<T> moved = r.power * (r.f + r.rest) + (r.power - 1);
  return {moved, r.k == 0 ? r.rest : moved - x};
}

// e^x to 2 units in the last place, for x of at least `lowest` and at most 80.
template <class T>
MODFAST_LANE Lanes<T> exp_near(Lanes<T> x) {
  const Reduced<T> r = reduce<T>(x);
  return r.power * (1 + (r.f + r.rest));
}

// e^x for x <= 0, to 2 units in the last place; 0 where it is no normal number.
template <class T>
MODFAST_LANE Lanes<T> exp_down(Lanes<T> x) {
  constexpr T lowest = Numbers<T>::lowest;
  return x < lowest ? Lanes<T>{} : exp_near<T>(larger(x, splat(lowest)));
}

// log y for normal y > 0, to 3 units in the last place, near 1 too.
template <class T>
MODFAST_LANE Lanes<T> log_up(Lanes<T> y) {
  using N = Numbers<T>;
  const Mask<T> bits = (Mask<T>)y;
  Lanes<T> m = (Lanes<T>)((bits & N::digit_mask) | N::one_bits);
  Mask<T> exponent = (bits >> N::digits) - N::bias;
  const Mask<T> above = m > T(1.41421356);
  m = above ? m * T(0.5) : m;
  exponent -= above;
  const Lanes<T> k = __builtin_convertvector(exponent, Lanes<T>);
  Lanes<T> rest;
  if constexpr (sizeof(T) == sizeof(float)) {
    const Lanes<T> t = m - 1, square = t * t;
    rest = t + (square * T(-0.5) + t * square * polynomial<T>(t, N::log));
  } else {
    const Lanes<T> t = (m - 1) / (m + 1);
    rest = 2 * t * polynomial<T>(t * t, N::log);
  }
  return k * N::ln2_high + (rest + k * N::ln2_low);
}

// log(1 + x) for x >= 0, given 1 / (1 + x); small x keep their digits.
template <class T>
MODFAST_LANE Lanes<T> log1p_up(Lanes<T> x, Lanes<T> share) {
  const Lanes<T> y = 1 + x;
  return log_up<T>(y) + (x - (y - 1)) * share;
}
