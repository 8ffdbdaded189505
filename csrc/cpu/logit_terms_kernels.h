// What ablations do to the probabilities of one sample; compiled per SIMD level.
//
// A row is gone through in blocks that stay in the nearest cache, each of which is read from memory once.
// A block's sums are of its logits less one near their largest, and of its changes less their own mean, so
// that float32 loses nothing to what other blocks hold. They are carried over to the row's largest and mean
// in double, by identities that round nothing of their own.
#include "lanes_kernels.h"

// Vectors of a block, of which a few numbers are kept in the nearest caches.
constexpr int64_t kVectors = MODFAST_SIMD_BITS == 512 ? 256 : 512;
// Ablations that share what is computed of a block's original logits.
constexpr int64_t kShared = 32;

template <class T>
constexpr int64_t kBlock = kVectors * kLanes<T>;

template <class T>
MODFAST_LANE double total_of(Lanes<T> v) {
  double sum = 0.0;
  for (int l = 0; l < kLanes<T>; ++l) sum += v[l];
  return sum;
}

template <class T>
MODFAST_LANE T largest_of(Lanes<T> v) {
  return max_lanes<T>(v)[0];
}

// The first n lanes.
template <class T>
MODFAST_LANE Mask<T> first_lanes(int64_t n) {
  Mask<T> mask;
  for (int l = 0; l < kLanes<T>; ++l) mask[l] = l < n ? -1 : 0;
  return mask;
}

template <class T>
MODFAST_LANE Lanes<T> only(Mask<T> mask, Lanes<T> v) {
  return (Lanes<T>)((Mask<T>)v & mask);
}

// e^x for x of at least `lowest` and at most 80, to 3 units in the last place.
template <class T>
MODFAST_LANE Lanes<T> exp_quick(Lanes<T> x) {
  if constexpr (sizeof(T) == sizeof(float) && MODFAST_SIMD_BITS != 0) {
    using N = Numbers<T>;
    constexpr float shift = 12582912.0f;  // 1.5 * 2^23
    const Lanes<T> shifted = x * N::log2e + shift;
    // With a fused multiply-add the nearest float to ln2, which is 2e-9 off, does.
    const Lanes<T> f = x - (shifted - shift) * 0.693147181f;
    // Fitted for |f| < ln2 / 2 to 1e-7 of the whole.
    constexpr float fitted[] = {1.0f, 1.0f, 0.4999923110f, 0.1666711420f, 0.0418901592f, 0.0083125206f};
    // Times 2^k by its exponent.
    return (Lanes<T>)((Mask<T>)polynomial<T>(f, fitted) + ((Mask<T>)shifted << N::digits));
  } else {
    return exp_near<T>(x);
  }
}

// e^x - 1 and e^x - 1 - x for |x| <= kClose.
constexpr double kClose = 0.3465;
template <class T>
MODFAST_LANE Excess<T> exp_excess_close(Lanes<T> x, Lanes<T> square) {
  const Lanes<T> beyond = square * polynomial<T>(x, Numbers<T>::exp);
  return {x + beyond, beyond};
}

// `count` values as numbers to compute with. Those that fill no vector go to `to`, with the last of them
// repeated.
template <class S, class T = compute_t<S>>
MODFAST_LANE const T* block_of(const S* from, int64_t count, T* to) {
  if constexpr (sizeof(S) == sizeof(T)) {
    if (count % kLanes<T> == 0) return from;
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = load(from[i]);
  for (int64_t i = count; i % kLanes<T> != 0; ++i) to[i] = to[count - 1];
  return to;
}

// Of each block of the original, and of each block of each ablation.
enum OfOriginal { kTop, kTotal, kLog, kCenter, kOfOriginal };
enum OfAblated { kMean, kRest, kExcess, kSecond, kFirst, kOfAblated };

// A thread's memory.
template <class T>
struct TermsMemory {
  static constexpr int64_t kLine = 64;
  int64_t stride;  // of the blocks: a cache's lines of doubles
  double *original, *ablated;
  T *z, *w;      // a block's logits, where they are not read as they lie
  T* kept;  // for each vector of a block, one beside the other: e^(z - top), z - top and w - z

  static int64_t stride_of(int64_t n_classes) {
    return ((n_classes + kBlock<T> - 1) / kBlock<T> + 7) / 8 * 8;
  }
  static int64_t shared(int64_t n_ablations) { return n_ablations < kShared ? n_ablations : kShared; }
  static int64_t bytes(const LogitTerms& all) {
    const int64_t doubles = stride_of(all.n_classes) * (kOfOriginal + shared(all.n_ablations) * kOfAblated);
    return kLine + doubles * sizeof(double) + 5 * kBlock<T> * sizeof(T);
  }

  TermsMemory(const LogitTerms& all, void* memory) : stride(stride_of(all.n_classes)) {
    const auto at = reinterpret_cast<uintptr_t>(memory);
    original = reinterpret_cast<double*>((at + kLine - 1) / kLine * kLine);
    ablated = original + stride * kOfOriginal;
    z = reinterpret_cast<T*>(ablated + stride * kOfAblated * shared(all.n_ablations));
    w = z + kBlock<T>;
    kept = w + kBlock<T>;
  }
  double* of_original(OfOriginal which) const { return original + which * stride; }
  double* of_ablated(int64_t a, OfAblated which) const { return ablated + (a * kOfAblated + which) * stride; }
};

// Calls f(i, mask) for each vector of `count` values, of which the last may hold fewer, and meanwhile has
// what lies `ahead` brought to the cache.
template <class T, class S, class F>
MODFAST_LANE void each_vector(int64_t count, const S* ahead, const F& f) {
  constexpr int64_t lanes = kLanes<T>, line = kLaneBytes < 64 ? 2 * lanes : lanes;
  const Mask<T> all = ~Mask<T>{};
  int64_t i = 0;
  for (; i + line <= count; i += line) {
    __builtin_prefetch(ahead + i, 0, 2);
    f(i, all);
    if constexpr (line > lanes) f(i + lanes, all);
  }
  for (; i + lanes <= count; i += lanes) f(i, all);
  if (i < count) f(i, first_lanes<T>(count - i));
}

// The larger of numbers of which none is negative. As integers floats are compared by more units, and NaN
// is largest.
template <class T>
MODFAST_LANE Lanes<T> larger_square(Lanes<T> a, Lanes<T> b) {
  if constexpr (sizeof(T) == 4) return (Lanes<T>)((Mask<T>)a > (Mask<T>)b ? (Mask<T>)a : (Mask<T>)b);
  return larger(a, b);
}

// How a block changes: the mean, and the largest logit after it.
template <class T>
struct BlockChange {
  double mean;
  T most;
};

// Puts a block of the original into memory: e^(z - top), z - top, the sums of the first and of their
// product, and how an ablation changes it. `top` need only be near the largest logit; it comes as that of
// the block before.
template <class T, class S>
MODFAST_LANE BlockChange<T> original_block(const T* z, const T* w, int64_t count, const TermsMemory<T>& memory,
                                           int64_t block, T& top, const S* ahead) {
  using V = Lanes<T>;
  constexpr int64_t lanes = kLanes<T>;
  V total, log, sum, most, low, high;
  const auto add = [&](const auto& exp) {
    // Its own, which stay in registers.
    const V tops = splat(top);
    V a = {}, b = {}, c = {}, after_most = load_lanes(w), least = load_lanes(z) - tops, largest = least;
    T* const kept = memory.kept;
    each_vector<T>(count, ahead, [&](int64_t i, Mask<T> mask) __attribute__((always_inline)) {
      const V before = load_lanes(z + i), after = load_lanes(w + i), d = before - tops, r = after - before;
      const V e = only<T>(mask, exp(d));
      store_lanes(kept + 3 * i, e);
      store_lanes(kept + 3 * i + lanes, d);
      store_lanes(kept + 3 * i + 2 * lanes, r);
      least = smaller(least, d);
      largest = larger(largest, d);
      after_most = larger(after_most, after);
      a += e;
      b += e * d;
      c += e * r;
    });
    total = a, log = b, sum = c, most = after_most, low = least, high = largest;
  };
  constexpr T above = 16;  // times e^kFar, and for each class, that is still a number
  if (block > 0) add([](V d) { return exp_quick<T>(d); });
  if (block == 0 || !(-largest_of<T>(-low) >= Numbers<T>::lowest && largest_of<T>(high) <= above)) {
    V largest = load_lanes(z);
    for (int64_t i = lanes; i < count; i += lanes) largest = larger(largest, load_lanes(z + i));
    top = largest_of<T>(largest);
    add([](V d) { return exp_down<T>(d); });
  }
  const double whole = total_of<T>(total);
  memory.of_original(kTop)[block] = top;
  memory.of_original(kTotal)[block] = whole;
  memory.of_original(kLog)[block] = total_of<T>(log);
  const T rise = largest_of<T>(high);
  if (rise > 0) top += rise;
  return {total_of<T>(sum) / whole, largest_of<T>(most)};
}

// How each other ablation changes it.
template <class T>
MODFAST_LANE BlockChange<T> change_of_block(const T* z, const T* w, int64_t count, const TermsMemory<T>& memory,
                                            double total) {
  using V = Lanes<T>;
  constexpr int64_t lanes = kLanes<T>;
  V sum = {}, most = load_lanes(w);
  T* const kept = memory.kept;
  each_vector<T>(count, w, [&](int64_t i, Mask<T>) __attribute__((always_inline)) {
    const V after = load_lanes(w + i), r = after - load_lanes(z + i);
    store_lanes(kept + 3 * i + 2 * lanes, r);
    most = larger(most, after);
    sum += load_lanes(kept + 3 * i) * r;
  });
  return {total_of<T>(sum) / total, largest_of<T>(most)};
}

// What the blocks of an ablation have had so far.
template <class T>
struct Extent {
  T low, high;  // bounds of the changes
  bool close;   // whether the last were
  bool wrong;   // a class comes before the target
};

// The sums of the block in memory; of changes that are too far apart only their mean. `ahead`: what is read
// next.
template <class T, class S>
MODFAST_LANE void near_block(int64_t count, double change, const TermsMemory<T>& memory, int64_t a,
                             int64_t block, Extent<T>& extent, const S* ahead) {
  using V = Lanes<T>;
  constexpr int64_t lanes = kLanes<T>;
  const T near = static_cast<T>(change);
  const V mean = splat(near);
  V rest, excess, second, first, most;
  // What rounding left of the mean, sum p x, is sum p (x + g) less sum p g while g is small.
  const auto add = [&](const auto& exp, auto by_moved) {
    V a = {}, b = {}, c = {}, d = {}, largest = {};
    const T* const kept = memory.kept;
    each_vector<T>(count, ahead, [&](int64_t i, Mask<T>) __attribute__((always_inline)) {
      const V p = load_lanes(kept + 3 * i), x = load_lanes(kept + 3 * i + 2 * lanes) - mean, square = x * x;
      const Excess<T> found = exp(x, square);
      const V by = p * found.moved;
      largest = larger_square<T>(largest, square);
      a += by_moved ? by : p * x;
      b += p * found.beyond;
      c += by * x;
      d += by * load_lanes(kept + 3 * i + lanes);
    });
    rest = by_moved ? a - b : a, excess = b, second = c, first = d, most = largest;
  };
  const auto within = [&](double bound) { return largest_of<T>(most) <= T(bound * bound); };
  if (extent.close) add([](V x, V square) { return exp_excess_close<T>(x, square); }, std::true_type{});
  if (!extent.close || !within(kClose)) add([](V x, V square) { return exp_excess<T>(x); }, std::false_type{});
  extent.close = within(kClose);
  const double reach = std::sqrt(static_cast<double>(largest_of<T>(most)));
  const T low = static_cast<T>(near - reach), high = static_cast<T>(near + reach);
  extent.low = low >= extent.low ? extent.low : low;
  extent.high = high <= extent.high ? extent.high : high;
  double left = total_of<T>(rest);
  if (!within(kFar)) {
    excess = second = first = V{};
    left = (change - near) * memory.of_original(kTotal)[block];
  }
  memory.of_ablated(a, kMean)[block] = near;
  memory.of_ablated(a, kRest)[block] = left;
  memory.of_ablated(a, kExcess)[block] = total_of<T>(excess);
  memory.of_ablated(a, kSecond)[block] = total_of<T>(second);
  memory.of_ablated(a, kFirst)[block] = total_of<T>(first);
}

#include "logit_terms_rows_kernels.h"

// Of any changes, also of those that are not finite, which then shows in the terms.
template <class S, class T>
MODFAST_LANE AblationTerms<double> far_row(const S* z, const S* w, int64_t n, const TermsMemory<T>& memory,
                                           double mean, double log_sum) {
  using V = Lanes<T>;
  const V top = splat(static_cast<T>(log_sum)), rest = splat(static_cast<T>(log_sum - top[0]));
  double totals[4] = {};
  // f(log p, log p + change, mask, sums)
  const auto each = [&](const auto& f) {
    for (int64_t begin = 0; begin < n; begin += kBlock<T>) {
      const int64_t count = n - begin < kBlock<T> ? n - begin : kBlock<T>;
      const T *before = block_of(z + begin, count, memory.z), *after = block_of(w + begin, count, memory.w);
      V sums[4] = {};
      each_vector<T>(count, after, [&](int64_t i, Mask<T> mask) __attribute__((always_inline)) {
        const V from = load_lanes(before + i), log = (from - top) - rest;
        f(log, log + (load_lanes(after + i) - from), mask, sums);
      });
      for (int k = 0; k < 4; ++k) totals[k] += total_of<T>(sums[k]);
    }
  };
  V most = splat(T(-INFINITY));
  each([&](V log, V moved, Mask<T> mask, V(&to)[4]) { most = larger(most, moved); });
  const V peak = splat(largest_of<T>(most));
  each([&](V log, V moved, Mask<T> mask, V(&to)[4]) {
    const V below = moved - peak, e = only<T>(mask, exp_down<T>(below));
    to[0] += e;
    to[1] += e * log;
    to[2] += e * below;
    to[3] -= only<T>(mask, exp_down<T>(log)) * log;
  });
  return far_terms<double>(mean, totals[3], peak[0], totals[0], std::log(totals[0]), totals[1], totals[2]);
}

template <class S>
void sample_terms(const LogitTerms& all, int64_t sample, void* workspace, double* terms) {
  using T = compute_t<S>;
  const int64_t n = all.n_classes, n_blocks = (n + kBlock<T> - 1) / kBlock<T>;
  const TermsMemory<T> memory(all, workspace);
  const S* z = static_cast<const S*>(all.logits) + sample * n;
  const int64_t target = all.has_targets() ? all.targets[sample] : -1;
  for (int64_t start = 0; start < all.n_ablations; start += kShared) {
    const int64_t n_shared = TermsMemory<T>::shared(all.n_ablations - start);
    const auto row_of = [&](int64_t a) {
      return static_cast<const S*>(all.ablated) + ((start + a) * all.n_samples + sample) * n;
    };
    Extent<T> extents[kShared];
    for (int64_t a = 0; a < n_shared; ++a) extents[a] = {T(INFINITY), T(-INFINITY), true, false};
    T top = 0;
    for (int64_t block = 0; block < n_blocks; ++block) {
      const int64_t begin = block * kBlock<T>, count = n - begin < kBlock<T> ? n - begin : kBlock<T>;
      const T* before = block_of(z + begin, count, memory.z);
      for (int64_t a = 0; a < n_shared; ++a) {
        const S* ahead = a + 1 < n_shared ? row_of(a + 1) + begin : row_of(0) + begin + kBlock<T>;
        const T* after = block_of(row_of(a) + begin, count, memory.w);
        const BlockChange<T> change =
            a == 0 ? original_block(before, after, count, memory, block, top, z + begin + kBlock<T>)
                   : change_of_block(before, after, count, memory, memory.of_original(kTotal)[block]);
        Extent<T>& extent = extents[a];
        near_block(count, change.mean, memory, a, block, extent, ahead);
        if (target >= 0 && !extent.wrong) {
          const T own = load(row_of(a)[target]);
          extent.wrong = change.most > own;
          // Of classes that are as large the first counts.
          const int64_t first = target - begin < count ? target - begin : count;
          for (int64_t c = 0; change.most == own && c < first; ++c) extent.wrong |= after[c] == own;
        }
      }
    }
    const RowOriginal row = original_row(memory, n_blocks);
    for (int64_t a = 0; a < n_shared; ++a, terms += kMostTerms) {
      const S* w = row_of(a);
      const double mean = mean_of_row(memory, n_blocks, a, row.total);
      const AblationTerms<double> found = extents[a].high - extents[a].low <= kFar
                                              ? near_row(memory, a, mean, row.total)
                                              : far_row(z, w, n, memory, mean, row.log_sum);
      // Only rounding goes below 0.
      terms[0] = found.entropy_difference;
      terms[1] = found.kl_ablated_original < 0 ? 0 : found.kl_ablated_original;
      terms[2] = found.kl_original_ablated < 0 ? 0 : found.kl_original_ablated;
      if (target >= 0) {
        const double log_p = static_cast<double>(load(z[target])) - row.log_sum;
        terms[3] = found.log_sum - (log_p + (static_cast<double>(load(w[target])) - load(z[target])));
        terms[4] = extents[a].wrong ? 0.0 : 1.0;
      }
    }
  }
}

constexpr LogitTermsKernels kernels = {
    {TermsMemory<float>::bytes, TermsMemory<double>::bytes, TermsMemory<float>::bytes, TermsMemory<float>::bytes},
    {sample_terms<float>, sample_terms<double>, sample_terms<bfloat16>, sample_terms<float16>},
};
