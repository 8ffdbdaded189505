// What ablations do to the probabilities of one sample; compiled per SIMD level.
//
// A row is gone through in blocks that stay in the nearest cache, each of which is read from memory once.
// A block's sums are of its logits less their own largest, and of its changes less their own mean, so that
// float32 loses nothing to what other blocks hold. They are carried over to the row's largest and mean in
// double, by identities without rounding of their own.
#include "lanes_kernels.h"

// Vectors of a block: three blocks fill half of a cache of 32 or 48 KB.
constexpr int64_t kVectors = MODFAST_SIMD_BITS == 512 ? 128 : 256;
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

// e^x for `lowest` <= x <= 0, to 3 units in the last place.
template <class T>
MODFAST_LANE Lanes<T> exp_quick(Lanes<T> x) {
  if constexpr (sizeof(T) == sizeof(float) && MODFAST_SIMD_BITS != 0) {
    using N = Numbers<T>;
    const Lanes<T> shifted = x * N::log2e + N::shift;
    // With a fused multiply-add the nearest float to ln2, which is 2e-9 off, does.
    const Lanes<T> f = x - (shifted - N::shift) * 0.693147181f;
    const Lanes<T> power = (Lanes<T>)((Mask<T>)shifted << N::digits);
    // Fitted for |f| < ln2 / 2 to 1e-7 of the whole.
    constexpr float fitted[] = {1.0f, 1.0f, 0.4999923110f, 0.1666711420f, 0.0418901592f, 0.0083125206f};
    return power * polynomial<T>(f, fitted);
  } else {
    return exp_near<T>(x);
  }
}

// e^x - 1 and e^x - 1 - x for |x| <= kClose.
constexpr double kClose = 0.3465;
template <class T>
MODFAST_LANE Excess<T> exp_excess_close(Lanes<T> x) {
  const Lanes<T> beyond = (x * x) * polynomial<T>(x, Numbers<T>::exp);
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
enum OfAblated { kMean, kMoved, kExcess, kSecond, kFirst, kOfAblated };

// A thread's memory.
template <class T>
struct TermsMemory {
  int64_t stride;  // of the blocks: whole lanes of doubles
  double *original, *ablated;
  T *z, *w, *e;

  static int64_t stride_of(int64_t n_classes) {
    const int64_t lanes = kLanes<double>;
    return ((n_classes + kBlock<T> - 1) / kBlock<T> + lanes - 1) / lanes * lanes;
  }
  static int64_t shared(int64_t n_ablations) { return n_ablations < kShared ? n_ablations : kShared; }
  static int64_t bytes(const LogitTerms& all) {
    const int64_t doubles = stride_of(all.n_classes) * (kOfOriginal + shared(all.n_ablations) * kOfAblated);
    return doubles * sizeof(double) + 3 * kBlock<T> * sizeof(T);
  }

  TermsMemory(const LogitTerms& all, void* memory) : stride(stride_of(all.n_classes)) {
    original = static_cast<double*>(memory);
    ablated = original + stride * kOfOriginal;
    z = reinterpret_cast<T*>(ablated + stride * kOfAblated * shared(all.n_ablations));
    w = z + kBlock<T>;
    e = w + kBlock<T>;
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

// Of a block's changes: the least, the largest, the sum of p times each, and the largest logit.
template <class T>
struct Extremes {
  Lanes<T> low, high, most, sum;

  MODFAST_LANE void add(Lanes<T> before, Lanes<T> after, Lanes<T> p) {
    const Lanes<T> r = after - before;
    low = smaller(low, r);
    high = larger(high, r);
    most = larger(most, after);
    sum += p * r;
  }
};

template <class T>
MODFAST_LANE Extremes<T> extremes_of_one(const T* z, const T* w) {
  const Lanes<T> after = load_lanes(w), r = after - load_lanes(z);
  return {r, r, after, Lanes<T>{}};
}

template <class T>
struct BlockChange {
  double mean;
  T low, high, most;
};

template <class T>
MODFAST_LANE BlockChange<T> change_of(const Extremes<T>& of, double total) {
  return {total_of<T>(of.sum) / total, -largest_of<T>(-of.low), largest_of<T>(of.high), largest_of<T>(of.most)};
}

// What the blocks of an ablation have had so far.
template <class T>
struct Extent {
  T low, high;
  bool wrong;  // a class comes before the target
};

// e^(z - top) of a block to `e`, the sums of it and of it times (z - top), and what an ablation changes.
template <class T, class S>
MODFAST_LANE BlockChange<T> original_block(const T* z, const T* w, int64_t count, const TermsMemory<T>& memory,
                                           int64_t block, const S* ahead) {
  using V = Lanes<T>;
  constexpr int64_t lanes = kLanes<T>;
  V top = load_lanes(z), low = top;
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; i += lanes) {
    const V v = load_lanes(z + i);
    top = larger(top, v);
    low = smaller(low, v);
  }
  const T largest = largest_of<T>(top), range = largest + largest_of<T>(-low);
  const V tops = splat(largest);
  V total = {}, log = {};
  Extremes<T> extremes = extremes_of_one(z, w);
  T* e = memory.e;
  const auto add = [&](const auto& exp) {
    each_vector<T>(count, ahead, [&](int64_t i, Mask<T> mask) {
      const V before = load_lanes(z + i), d = before - tops, found = only<T>(mask, exp(d));
      store_lanes(e + i, found);
      total += found;
      log += found * d;
      extremes.add(before, load_lanes(w + i), found);
    });
  };
  if (range < -Numbers<T>::lowest) {
    add([](V d) { return exp_quick<T>(d); });
  } else {
    add([](V d) { return exp_down<T>(d); });
  }
  const double sum = total_of<T>(total), sum_of_log = total_of<T>(log);
  memory.of_original(kTop)[block] = largest;
  memory.of_original(kTotal)[block] = sum;
  memory.of_original(kLog)[block] = sum_of_log;
  // The mean logit as a T.
  memory.of_original(kCenter)[block] = static_cast<T>(largest + sum_of_log / sum);
  return change_of<T>(extremes, sum);
}

// The same for each other ablation.
template <class T>
MODFAST_LANE BlockChange<T> change_of_block(const T* z, const T* w, int64_t count, const T* e, double total) {
  Extremes<T> extremes = extremes_of_one(z, w);
  each_vector<T>(count, w, [&](int64_t i, Mask<T>) {
    extremes.add(load_lanes(z + i), load_lanes(w + i), load_lanes(e + i));
  });
  return change_of<T>(extremes, total);
}

// The sums of a block; of changes that are far apart only their mean. `ahead`: what is read next.
template <class T, class S>
MODFAST_LANE void near_block(const T* z, const T* w, int64_t count, const BlockChange<T>& change,
                             const TermsMemory<T>& memory, int64_t a, int64_t block, const S* ahead) {
  using V = Lanes<T>;
  const T* e = memory.e;
  const T near = static_cast<T>(change.mean);
  const V mean = splat(near), center = splat(static_cast<T>(memory.of_original(kCenter)[block]));
  V moved = {}, excess = {}, second = {}, first = {};
  double rest = 0;
  const auto add = [&](const auto& exp) {
    each_vector<T>(count, ahead, [&](int64_t i, Mask<T>) {
      const V before = load_lanes(z + i), p = load_lanes(e + i), x = (load_lanes(w + i) - before) - mean;
      const Excess<T> found = exp(x);
      const V by = p * found.moved;
      moved += by;
      excess += p * found.beyond;
      second += by * x;
      first += by * (before - center);
    });
  };
  if (change.high - near <= T(kClose) && near - change.low <= T(kClose)) {
    add([](V x) { return exp_excess_close<T>(x); });
  } else if (change.high - change.low <= kFar) {
    add([](V x) { return exp_excess<T>(x); });
  } else {
    rest = (change.mean - near) * memory.of_original(kTotal)[block];
  }
  memory.of_ablated(a, kMean)[block] = near;
  memory.of_ablated(a, kMoved)[block] = rest + total_of<T>(moved);
  memory.of_ablated(a, kExcess)[block] = total_of<T>(excess);
  memory.of_ablated(a, kSecond)[block] = total_of<T>(second);
  memory.of_ablated(a, kFirst)[block] = total_of<T>(first);
}

// Of a row before any ablation: its largest logit, the log of sum e^(z - top), and the entropy.
struct RowOriginal {
  double top, total, log_total, entropy;
};

// From here on the blocks' sums are about the row's largest logit: of kTop remains the factor by which they
// became so, of kLog the sum of e^(z - top) (z - center), of kCenter its distance from the row's mean logit.
template <class T>
MODFAST_LANE RowOriginal original_row(const TermsMemory<T>& memory, int64_t n_blocks) {
  using D = Lanes<double>;
  double *tops = memory.of_original(kTop), *totals = memory.of_original(kTotal);
  double *logs = memory.of_original(kLog), *centers = memory.of_original(kCenter);
  for (int64_t b = n_blocks; b < memory.stride; ++b) {
    tops[b] = centers[b] = tops[0];
    totals[b] = logs[b] = 0;
  }
  D top = load_lanes(tops), total = {}, log = {};
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) top = larger(top, load_lanes(tops + b));
  const D largest = splat(largest_of<double>(top));
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) {
    const D by = load_lanes(tops + b) - largest, factor = exp_down<double>(by);
    const D sum = factor * load_lanes(totals + b), of_log = factor * load_lanes(logs + b);
    const D center = load_lanes(centers + b) - largest;
    total += sum;
    log += of_log + sum * by;
    store_lanes(tops + b, factor);
    store_lanes(totals + b, sum);
    store_lanes(logs + b, of_log + sum * (by - center));
    store_lanes(centers + b, center);
  }
  const double whole = total_of<double>(total), mean = total_of<double>(log) / whole;
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) {
    store_lanes(centers + b, load_lanes(centers + b) - splat(mean));
  }
  const double log_total = std::log(whole);
  return {largest[0], whole, log_total, log_total - mean};
}

// The mean change of ablation a.
template <class T>
MODFAST_LANE double mean_of_row(const TermsMemory<T>& memory, int64_t n_blocks, int64_t a, double total) {
  using D = Lanes<double>;
  for (int64_t b = n_blocks; b < memory.stride; ++b) {
    for (int k = 0; k < kOfAblated; ++k) memory.of_ablated(a, OfAblated(k))[b] = 0;
    memory.of_ablated(a, kMean)[b] = memory.of_ablated(a, kMean)[0];
  }
  D sum = {};
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) {
    const D rest = load_lanes(memory.of_ablated(a, kMoved) + b) - load_lanes(memory.of_ablated(a, kExcess) + b);
    sum += load_lanes(memory.of_original(kTotal) + b) * load_lanes(memory.of_ablated(a, kMean) + b) +
           load_lanes(memory.of_original(kTop) + b) * rest;
  }
  return total_of<double>(sum) / total;
}

// Of changes that are not far apart. With d what a block's mean change is above the row's, and t = e^d - 1:
//   e^(x + d) - 1 = (1 + t) (e^x - 1) + t.
template <class T>
MODFAST_LANE AblationTerms<double> near_row(const TermsMemory<T>& memory, int64_t a, double mean, double total) {
  using D = Lanes<double>;
  D excess = {}, second = {}, first = {};
  const D row_mean = splat(mean);
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) {
    const auto original = [&](OfOriginal which) { return load_lanes(memory.of_original(which) + b); };
    const auto ablated = [&](OfAblated which) { return load_lanes(memory.of_ablated(a, which) + b); };
    const D d = ablated(kMean) - row_mean;
    const Excess<double> by = exp_excess<double>(d);
    const D factor = original(kTop), sum = original(kTotal), grown = factor * (1 + by.moved);
    const D rest = factor * (ablated(kMoved) - ablated(kExcess));
    const D moved = grown * ablated(kMoved) + by.moved * sum;
    excess += grown * ablated(kExcess) + by.moved * rest + sum * by.beyond;
    second += grown * ablated(kSecond) + by.moved * rest + d * moved;
    first += grown * ablated(kFirst) + by.moved * original(kLog) + original(kCenter) * moved;
  }
  const double found = total_of<double>(excess) / total, beyond = found < 0 ? 0 : found;
  return near_terms<double>(mean, 1 / (1 + beyond), total_of<double>(second) / total,
                            total_of<double>(first) / total, std::log1p(beyond));
}

// Of any changes, also of those that are not finite, which then shows in the terms.
template <class S, class T>
MODFAST_LANE AblationTerms<double> far_row(const S* z, const S* w, int64_t n, const TermsMemory<T>& memory,
                                           double mean, const RowOriginal& row) {
  using V = Lanes<T>;
  const V top = splat(static_cast<T>(row.top)), log_total = splat(static_cast<T>(row.log_total));
  double totals[3] = {};
  // f(log p, log p + change, mask, sums)
  const auto each = [&](const auto& f) {
    for (int64_t begin = 0; begin < n; begin += kBlock<T>) {
      const int64_t count = n - begin < kBlock<T> ? n - begin : kBlock<T>;
      const T *before = block_of(z + begin, count, memory.z), *after = block_of(w + begin, count, memory.w);
      V sums[3] = {};
      each_vector<T>(count, after, [&](int64_t i, Mask<T> mask) {
        const V from = load_lanes(before + i), log = (from - top) - log_total;
        f(log, log + (load_lanes(after + i) - from), mask, sums);
      });
      for (int k = 0; k < 3; ++k) totals[k] += total_of<T>(sums[k]);
    }
  };
  V most = splat(T(-INFINITY));
  each([&](V log, V moved, Mask<T> mask, V(&to)[3]) { most = larger(most, moved); });
  const V peak = splat(largest_of<T>(most));
  each([&](V log, V moved, Mask<T> mask, V(&to)[3]) {
    const V below = moved - peak, e = only<T>(mask, exp_down<T>(below));
    to[0] += e;
    to[1] += e * log;
    to[2] += e * below;
  });
  return far_terms<double>(mean, row.entropy, peak[0], totals[0], std::log(totals[0]), totals[1], totals[2]);
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
    for (int64_t a = 0; a < n_shared; ++a) extents[a] = {T(INFINITY), T(-INFINITY), false};
    for (int64_t block = 0; block < n_blocks; ++block) {
      const int64_t begin = block * kBlock<T>, count = n - begin < kBlock<T> ? n - begin : kBlock<T>;
      const T* before = block_of(z + begin, count, memory.z);
      for (int64_t a = 0; a < n_shared; ++a) {
        const S* ahead = a + 1 < n_shared ? row_of(a + 1) + begin : row_of(0) + begin + kBlock<T>;
        const T* after = block_of(row_of(a) + begin, count, memory.w);
        const BlockChange<T> change =
            a == 0 ? original_block(before, after, count, memory, block, z + begin + kBlock<T>)
                   : change_of_block(before, after, count, memory.e, memory.of_original(kTotal)[block]);
        Extent<T>& extent = extents[a];
        extent.low = change.low < extent.low ? change.low : extent.low;
        extent.high = change.high > extent.high ? change.high : extent.high;
        near_block(before, after, count, change, memory, a, block, ahead);
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
                                              : far_row(z, w, n, memory, mean, row);
      // Only rounding goes below 0.
      terms[0] = found.entropy_difference;
      terms[1] = found.kl_ablated_original < 0 ? 0 : found.kl_ablated_original;
      terms[2] = found.kl_original_ablated < 0 ? 0 : found.kl_original_ablated;
      if (target >= 0) {
        const double log_p = static_cast<double>(load(z[target])) - row.top - row.log_total;
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
