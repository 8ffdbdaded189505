// Sums of squares, in total and of the columns of one label; compiled per SIMD level.
//
// In double throughout: a float's square is exact in it, so sums are exact to rounding for any size.
// Written by hand because compilers make a third of this speed of the plain loop (the last branch
// below), mostly in widening the comparison of labels from 32 to 64 bits.

// Bytes to fetch ahead. The widening keeps the processor's window too full to see far enough.
constexpr int64_t kAhead = 4096;

// One fetch for each cache line of the n elements at `from`.
template <int64_t n, class C>
void prefetch_ahead(const C* from) {
  const char* line = reinterpret_cast<const char*>(from) + kAhead;
  for (int64_t byte = 0; byte < n * static_cast<int64_t>(sizeof(C)); byte += 64) {
    __builtin_prefetch(line + byte);
  }
}

#if MODFAST_SIMD_BITS == 512

class Squares {
 public:
  // Spelled out: GCC gives implicit functions no part in `pragma target`.
  Squares() {
    for (int chain = 0; chain < 2; ++chain) within_[chain] = total_[chain] = _mm512_setzero_pd();
  }

  template <class C>
  void add(const C* w, const int32_t* cols, int32_t key, int64_t n) {
    const __m256i keys = _mm256_set1_epi32(key);
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) {
      prefetch_ahead<16>(w + j);
      add8(widen8(w + j, 0xff), equal8(cols + j, keys, 0xff), 0);
      add8(widen8(w + j + 8, 0xff), equal8(cols + j + 8, keys, 0xff), 1);
    }
    for (; j < n; j += 8) {
      const __mmask8 here = static_cast<__mmask8>(n - j < 8 ? (1 << (n - j)) - 1 : 0xff);
      add8(widen8(w + j, here), equal8(cols + j, keys, here), 0);
    }
  }

  void store(double* sums) const {
    sums[0] = _mm512_reduce_add_pd(_mm512_add_pd(within_[0], within_[1]));
    sums[1] = _mm512_reduce_add_pd(_mm512_add_pd(total_[0], total_[1]));
  }

 private:
  static __m512d widen8(const float* w, __mmask8 here) {
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(here, w));
  }
  static __m512d widen8(const double* w, __mmask8 here) { return _mm512_maskz_loadu_pd(here, w); }

  static __mmask8 equal8(const int32_t* cols, __m256i keys, __mmask8 here) {
    return _mm256_mask_cmpeq_epi32_mask(here, _mm256_maskz_loadu_epi32(here, cols), keys);
  }

  void add8(__m512d x, __mmask8 same, int chain) {
    total_[chain] = _mm512_fmadd_pd(x, x, total_[chain]);
    within_[chain] = _mm512_mask3_fmadd_pd(x, x, within_[chain], same);
  }

  __m512d within_[2], total_[2];
};

#elif MODFAST_SIMD_BITS == 256

class Squares {
 public:
  Squares() {
    for (int chain = 0; chain < 2; ++chain) within_[chain] = total_[chain] = _mm256_setzero_pd();
  }

  template <class C>
  void add(const C* w, const int32_t* cols, int32_t key, int64_t n) {
    const __m128i keys = _mm_set1_epi32(key);
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) {
      prefetch_ahead<8>(w + j);
      add4(widen4(w + j), equal4(cols + j, keys), 0);
      add4(widen4(w + j + 4), equal4(cols + j + 4, keys), 1);
    }
    for (; j < n; ++j) add1(w[j], cols[j] == key);
  }

  void store(double* sums) const {
    sums[0] = rest_within_ + sum4(_mm256_add_pd(within_[0], within_[1]));
    sums[1] = rest_total_ + sum4(_mm256_add_pd(total_[0], total_[1]));
  }

 private:
  static __m256d widen4(const float* w) { return _mm256_cvtps_pd(_mm_loadu_ps(w)); }
  static __m256d widen4(const double* w) { return _mm256_loadu_pd(w); }

  static __m256d equal4(const int32_t* cols, __m128i keys) {
    const __m128i labels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cols));
    return _mm256_castsi256_pd(_mm256_cvtepi32_epi64(_mm_cmpeq_epi32(labels, keys)));
  }

  static double sum4(__m256d x) {
    double lanes[4];
    _mm256_storeu_pd(lanes, x);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }

  void add4(__m256d x, __m256d same, int chain) {
    total_[chain] = _mm256_fmadd_pd(x, x, total_[chain]);
    within_[chain] = _mm256_fmadd_pd(x, _mm256_and_pd(x, same), within_[chain]);
  }

  void add1(double x, bool same) {
    rest_total_ += x * x;
    rest_within_ += same ? x * x : 0.0;
  }

  __m256d within_[2], total_[2];
  double rest_within_ = 0.0, rest_total_ = 0.0;
};

#else

class Squares {
 public:
  template <class C>
  void add(const C* w, const int32_t* cols, int32_t key, int64_t n) {
    double within = 0.0, total = 0.0;
#pragma omp simd reduction(+ : within, total)
    for (int64_t j = 0; j < n; ++j) {
      const double x = w[j];
      total += x * x;
      within += cols[j] == key ? x * x : 0.0;
    }
    within_ += within;
    total_ += total;
  }

  void store(double* sums) const {
    sums[0] = within_;
    sums[1] = total_;
  }

 private:
  double within_ = 0.0, total_ = 0.0;
};

#endif

// Elements that are converted, or updated, at a time: their floats stay in the first-level cache.
constexpr int64_t kPiece = 256;

// Fetches the piece at `next`, to be written (1) or only read (0), while another is computed. Past the
// end of an array this does nothing: a prefetch cannot fault.
template <int kWrite, class T>
void prefetch_piece(const T* next) {
  for (int64_t j = 0; j < kPiece; j += 64 / sizeof(T)) __builtin_prefetch(next + j, kWrite);
}

// Adds n stored elements.
template <class T>
void add_stored(Squares& squares, const T* w, const int32_t* cols, int32_t key, int64_t n) {
  if constexpr (std::is_floating_point_v<T>) {
    squares.add(w, cols, key, n);
  } else {
    float piece[kPiece];
    for (int64_t j = 0; j < n; j += kPiece) {
      const int64_t m = n - j < kPiece ? n - j : kPiece;
#pragma omp simd
      for (int64_t k = 0; k < m; ++k) piece[k] = load(w[j + k]);
      squares.add(piece, cols + j, key, m);
    }
  }
}
