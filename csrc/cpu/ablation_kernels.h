// Kernels of the ablation sweeps; compiled per SIMD level by for_each_level.h.
#include "lanes_kernels.h"
#include "activations_kernels.h"

template <class T>
constexpr int kBlock = 2 * kLanes<T>;

// Samples whose log(1 + G) are taken together, of the product, where no change of theirs has a larger range
// than kJoinedRange, so that the product does not overflow.
constexpr int kJoined = 8;
constexpr int kJoinedRange = 10;

// sum p g, sum p x (x + g) and sum p (log p - mean log p) (x + g), one sample or ablation a lane.
template <class T>
struct Moments {
  Lanes<T> excess, second, first;
};

template <class T, class P, class W, class R>
MODFAST_LANE Moments<T> ablation_moments(int64_t n_classes, Lanes<T> mean, const P& p, const W& centered,
                                         const R& changes) {
  Moments<T> sums{};
  for (int64_t c = 0; c < n_classes; ++c) {
    const Lanes<T> x = changes(c) - mean;
    const Excess<T> e = exp_excess<T>(x);
    sums.excess += p(c) * e.beyond;
    sums.second += (p(c) * x) * e.moved;
    sums.first += centered(c) * e.moved;
  }
  return sums;
}

template <class T>
struct Found {
  AblationTerms<Lanes<T>> terms;
  Lanes<T> loss, correct;
};

// The terms of one sample or ablation a lane. p(c), centered(c) and log_p(c) give the probabilities
// before, p (log p - mean log p) and log p, changes(c) those of the logits, whose range is at most
// `range` and whose mean is `mean`; is_target(c) and before_target(c) masks, only asked for with
// `targets`.
template <class T, class P, class W, class L, class R, class Y, class B>
MODFAST_LANE void ablation_terms(int64_t n_classes, Lanes<T> range, Lanes<T> mean, bool targets, const P& p,
                                 const W& centered, const L& log_p, const R& changes, const Y& is_target,
                                 const B& before_target, Found<T>& found) {
  using V = Lanes<T>;
  const Moments<T> sums = ablation_moments<T>(n_classes, mean, p, centered, changes);
  const V share = 1 / (1 + sums.excess);
  found.terms = near_terms<V>(mean, share, sums.second, sums.first, log1p_up<T>(sums.excess, share));
  const Mask<T> far = range > T(kFar);
  if (any(far)) {
    V largest = log_p(0) + changes(0), entropy{};
    for (int64_t c = 0; c < n_classes; ++c) {
      largest = larger(largest, log_p(c) + changes(c));
      entropy -= p(c) * log_p(c);
    }
    V total{}, before{}, after{};
    for (int64_t c = 0; c < n_classes; ++c) {
      const V w = log_p(c) + changes(c) - largest;
      const V e = exp_down<T>(w);
      total += e;
      before += e * log_p(c);
      after += e * w;
    }
    const AblationTerms<V> other =
        far_terms<V>(mean, entropy, largest, total, log_up<T>(total), before, after);
    AblationTerms<V>& t = found.terms;
    t.entropy_difference = far ? other.entropy_difference : t.entropy_difference;
    t.kl_ablated_original = far ? other.kl_ablated_original : t.kl_ablated_original;
    t.kl_original_ablated = far ? other.kl_original_ablated : t.kl_original_ablated;
    t.log_sum = far ? other.log_sum : t.log_sum;
  }
  // Only rounding goes below 0.
  found.terms.kl_ablated_original = larger(found.terms.kl_ablated_original, V{});
  found.terms.kl_original_ablated = larger(found.terms.kl_original_ablated, V{});
  if (targets) {
    V own{};
    for (int64_t c = 0; c < n_classes; ++c) own = is_target(c) ? log_p(c) + changes(c) : own;
    Mask<T> wrong{};
    for (int64_t c = 0; c < n_classes; ++c) {
      const V w = log_p(c) + changes(c);
      wrong |= (w > own) | (before_target(c) & (w == own));
    }
    found.loss = found.terms.log_sum - own;
    found.correct = wrong ? V{} : splat(T(1));
  }
}

// What all ablations share of the samples of blocks [begin, end): p, p (log p - mean log p) and log p,
// as [block][3][class][sample of the block].
template <class T>
void prepare(const AblationSweep& sweep, int64_t begin, int64_t end) {
  using V = Lanes<T>;
  const int64_t n_classes = sweep.n_classes;
  const T* logits = static_cast<const T*>(sweep.logits);
  for (int64_t half = 2 * begin; half < 2 * end; ++half) {
    const int64_t block = half / 2, first = block * kBlock<T>;
    T* p = static_cast<T*>(sweep.prepared) + block * 3 * n_classes * kBlock<T> + half % 2 * kLanes<T>;
    T* centered = p + n_classes * kBlock<T>;
    T* log_p = centered + n_classes * kBlock<T>;
    if (half % 2 == 0) {
      const int64_t n = sweep.n_samples - first < kBlock<T> ? sweep.n_samples - first : kBlock<T>;
      transpose(logits + first * n_classes, n, n_classes, n_classes, kBlock<T>, log_p);
    }
    const auto at = [](T* values, int64_t c) { return values + c * kBlock<T>; };
    V largest = load_lanes(log_p);
    for (int64_t c = 1; c < n_classes; ++c) largest = larger(largest, load_lanes(at(log_p, c)));
    V total{};
    for (int64_t c = 0; c < n_classes; ++c) {
      const V d = load_lanes(at(log_p, c)) - largest;
      const V e = exp_down<T>(d);
      total += e;
      store_lanes(at(log_p, c), d);
      store_lanes(at(p, c), e);
    }
    const V log_total = log_up<T>(total), share = 1 / total;
    V mean{};
    for (int64_t c = 0; c < n_classes; ++c) {
      const V q = load_lanes(at(p, c)) * share;
      mean += q * load_lanes(at(log_p, c));
      store_lanes(at(p, c), q);
    }
    for (int64_t c = 0; c < n_classes; ++c) {
      const V d = load_lanes(at(log_p, c));
      store_lanes(at(centered, c), load_lanes(at(p, c)) * (d - mean));
      store_lanes(at(log_p, c), d - log_total);
    }
  }
}

template <class T>
MODFAST_LANE void add_lanes(double* sums, Lanes<T> values) {
  T out[kLanes<T>];
  store_lanes(out, values);
#pragma omp simd
  for (int l = 0; l < kLanes<T>; ++l) sums[l] += out[l];
}

// The terms of several samples together: one logarithm for all, and few additions in double.
template <class T>
struct Joined {
  using V = Lanes<T>;
  V excess{}, second{}, first{};  // excess: the product of all 1 + G, less 1
  int n = 0;

  MODFAST_LANE void add(const Moments<T>& sums) {
    const V share = 1 / (1 + sums.excess);
    excess += sums.excess + excess * sums.excess;
    second += sums.second * share;
    first += sums.first * share;
    ++n;
  }

  MODFAST_LANE void flush(double (&sums)[kMostTerms][kLanes<T>]) {
    const V log = log1p_up<T>(excess, 1 / (1 + excess));
    const V after = second - log;
    add_lanes<T>(sums[0], first + after);
    add_lanes<T>(sums[1], larger(after, V{}));  // only rounding goes below 0
    add_lanes<T>(sums[2], log);
    *this = Joined{};
  }
};

// Samples [tile.begin, tile.end) of the ablations of one block: a lane is an ablation.
template <class T>
void sweep_logits(const AblationSweep& sweep, SampleTile tile, int64_t block) {
  using V = Lanes<T>;
  constexpr int n_lanes = kLanes<T>;
  const int64_t n_classes = sweep.n_classes, first = block * n_lanes;
  const int64_t n = sweep.n_ablations - first < n_lanes ? sweep.n_ablations - first : n_lanes;
  const T* updates = static_cast<const T*>(sweep.updates) + first * n_classes;
  const T* prepared = static_cast<const T*>(sweep.prepared);
  V low = load_lanes(updates), high = low;
  for (int64_t c = 1; c < n_classes; ++c) {
    const V u = load_lanes(updates + c * n_lanes);
    low = smaller(low, u);
    high = larger(high, u);
  }
  const V span = high - low;
  double sums[kMostTerms][n_lanes] = {};
  Joined<T> joined;
  for (int64_t i = tile.begin; i < tile.end; ++i) {
    const T* p = prepared + i / kBlock<T> * 3 * n_classes * kBlock<T> + i % kBlock<T>;
    const T* centered = p + n_classes * kBlock<T>;
    const T* log_p = centered + n_classes * kBlock<T>;
    const T* from = static_cast<const T*>(sweep.scales) + i * sweep.n_ablations + first;
    V scales{};
    if (n == n_lanes) {
      scales = load_lanes(from);
    } else {
      for (int64_t l = 0; l < n; ++l) scales[l] = from[l];
    }
    V mean{};
    for (int64_t c = 0; c < n_classes; ++c) mean += p[c * kBlock<T>] * load_lanes(updates + c * n_lanes);
    const auto p_of = [&](int64_t c) { return p[c * kBlock<T>]; };
    const auto centered_of = [&](int64_t c) { return centered[c * kBlock<T>]; };
    const auto changes = [&](int64_t c) { return scales * load_lanes(updates + c * n_lanes); };
    const V range = larger(scales, -scales) * span;
    if (!sweep.has_targets() && !any(range > T(kJoinedRange))) {
      joined.add(ablation_moments<T>(n_classes, scales * mean, p_of, centered_of, changes));
      if (joined.n == kJoined) joined.flush(sums);
      continue;
    }
    const int64_t target = sweep.has_targets() ? sweep.targets[i] : -1;
    const Mask<T> none{};
    Found<T> found;
    ablation_terms<T>(
        n_classes, range, scales * mean, sweep.has_targets(), p_of, centered_of,
        [&](int64_t c) { return log_p[c * kBlock<T>]; }, changes,
        [&](int64_t c) { return c == target ? ~none : none; },
        [&](int64_t c) { return c < target ? ~none : none; }, found);
    add_lanes<T>(sums[0], found.terms.entropy_difference);
    add_lanes<T>(sums[1], found.terms.kl_ablated_original);
    add_lanes<T>(sums[2], found.terms.kl_original_ablated);
    if (target >= 0) {
      add_lanes<T>(sums[3], found.loss);
      add_lanes<T>(sums[4], found.correct);
      if (tile.classes != nullptr) {
        for (int64_t l = 0; l < n; ++l) {
          tile.classes[target * sweep.n_ablations + first + l] += found.correct[l] != T(0);
        }
      }
    }
  }
  joined.flush(sums);
  for (int k = 0; k < sweep.n_terms; ++k) {
    for (int64_t l = 0; l < n; ++l) tile.terms[k * sweep.term_stride + first + l] = sums[k][l];
  }
}

// Classes whose logits are kept in registers at a time: the larger fills them with two vectors of
// samples each, the smaller wastes less where there are few classes.
constexpr int kWide = MODFAST_SIMD_BITS == 512 ? 10 : 5;
constexpr int kNarrow = MODFAST_SIMD_BITS == 512 ? 4 : 2;

// weight: [n_classes, n_hidden]. packed: [group of classes][hidden unit][class of the group].
template <int kGroup, class T, class Delta>
MODFAST_LANE void changes_of_group(const T* packed, int64_t n_hidden, const Delta& delta, T* changes) {
  using V = Lanes<T>;
  V sums[kGroup][2] = {};
  for (int64_t j = 0; j < n_hidden; ++j) {
    const V a = delta(j, 0), b = delta(j, 1);
#pragma GCC unroll 16
    for (int c = 0; c < kGroup; ++c) {
      sums[c][0] += a * packed[j * kGroup + c];
      sums[c][1] += b * packed[j * kGroup + c];
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kGroup; ++c) {
    store_lanes(changes + c * kBlock<T>, sums[c][0]);
    store_lanes(changes + c * kBlock<T> + kLanes<T>, sums[c][1]);
  }
}

template <int kGroup, class T, class Delta>
MODFAST_LANE void all_changes(const AblationSweep& sweep, const Delta& delta, T* changes) {
  const T* packed = static_cast<const T*>(sweep.weight);
  for (int64_t c = 0; c < sweep.n_classes; c += kGroup) {
    changes_of_group<kGroup>(packed + c * sweep.n_hidden, sweep.n_hidden, delta,
                             changes + c * kBlock<T>);
  }
}

template <class T>
MODFAST_LANE double total(const T* values) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int l = 0; l < kBlock<T>; ++l) sum += values[l];
  return sum;
}

// Samples [tile.begin, tile.end), a lane each, of ablations [begin, end). `tile.begin` is a multiple
// of kBlock. workspace: (3 n_hidden + n_classes + kWide + kMostTerms + end - begin) kBlock.
template <class T>
void sweep_hidden(const AblationSweep& sweep, SampleTile tile, int64_t begin, int64_t end,
                  void* workspace) {
  using V = Lanes<T>;
  constexpr int64_t n_block = kBlock<T>;
  const int64_t n_hidden = sweep.n_hidden, n_classes = sweep.n_classes;
  T* hidden = static_cast<T*>(workspace);
  T* before = hidden + n_hidden * n_block;
  T* deltas = before + n_hidden * n_block;
  T* changes = deltas + n_hidden * n_block;
  T* found = changes + (n_classes + kWide) * n_block;
  T* scales = found + kMostTerms * n_block;
  const bool wide = (n_classes + kWide - 1) / kWide * kWide <= (n_classes + kNarrow - 1) / kNarrow * kNarrow;
  const bool fused = sweep.activation == Activation::relu && n_classes <= (wide ? kWide : kNarrow);
  if (!sweep.per_sample) {
    for (int k = 0; k < sweep.n_terms; ++k) {
      for (int64_t a = begin; a < end; ++a) tile.terms[k * sweep.term_stride + a] = 0.0;
    }
  }
  for (int64_t first = tile.begin; first < tile.end; first += n_block) {
    const int64_t n = tile.end - first < n_block ? tile.end - first : n_block;
    transpose(static_cast<const T*>(sweep.hidden) + first * n_hidden, n, n_hidden, n_hidden, n_block,
              hidden);
    transpose(static_cast<const T*>(sweep.scales) + first * sweep.n_ablations + begin, n, end - begin,
              sweep.n_ablations, n_block, scales);
    if (fused) {  // max(h + u, 0) - max(h, 0) = max(min(h, 0) + u, -max(h, 0))
      for (int64_t j = 0; j < n_hidden * n_block; j += kLanes<T>) {
        const V h = load_lanes(hidden + j);
        store_lanes(hidden + j, smaller(h, V{}));
        store_lanes(before + j, -larger(h, V{}));
      }
    } else {
      activate<T>(sweep.activation, hidden, before, n_hidden * n_block);
    }
    const T* p = static_cast<const T*>(sweep.prepared) + first / n_block * 3 * n_classes * n_block;
    const T* centered = p + n_classes * n_block;
    const T* log_p = centered + n_classes * n_block;
    for (int64_t a = begin; a < end; ++a) {
      const T* update = static_cast<const T*>(sweep.updates) + a * n_hidden;
      const T* scale = scales + (a - begin) * n_block;
      const V s[2] = {load_lanes(scale), load_lanes(scale + kLanes<T>)};
      const auto moved = [&](int64_t j, int h) {
        return load_lanes(hidden + j * n_block + h * kLanes<T>) + s[h] * update[j];
      };
      if (fused) {
        const auto delta = [&](int64_t j, int h) {
          return larger(moved(j, h), load_lanes(before + j * n_block + h * kLanes<T>));
        };
        wide ? all_changes<kWide, T>(sweep, delta, changes) : all_changes<kNarrow, T>(sweep, delta, changes);
      } else {
        for (int64_t j = 0; j < n_hidden; ++j) {
          store_lanes(deltas + j * n_block, moved(j, 0));
          store_lanes(deltas + j * n_block + kLanes<T>, moved(j, 1));
        }
        activate<T>(sweep.activation, deltas, deltas, n_hidden * n_block);
#pragma omp simd
        for (int64_t i = 0; i < n_hidden * n_block; ++i) deltas[i] -= before[i];
        const auto delta = [&](int64_t j, int h) {
          return load_lanes(deltas + j * n_block + h * kLanes<T>);
        };
        wide ? all_changes<kWide, T>(sweep, delta, changes) : all_changes<kNarrow, T>(sweep, delta, changes);
      }
      for (int h = 0; h < 2; ++h) {
        const auto at = [&](const T* values) {
          return [=](int64_t c) { return load_lanes(values + c * n_block + h * kLanes<T>); };
        };
        const auto change = at(changes);
        V low = change(0), high = low, mean{};
        for (int64_t c = 0; c < n_classes; ++c) {
          low = smaller(low, change(c));
          high = larger(high, change(c));
          mean += at(p)(c) * change(c);
        }
        Mask<T> target{};
        if (sweep.has_targets()) {
          for (int l = 0; l < kLanes<T>; ++l) {
            const int64_t i = first + h * kLanes<T> + l;
            target[l] = i < tile.end ? sweep.targets[i] : -1;
          }
        }
        Found<T> f;
        ablation_terms<T>(
            n_classes, high - low, mean, sweep.has_targets(), at(p), at(centered), at(log_p), change,
            [&](int64_t c) { return target == static_cast<int32_t>(c); },
            [&](int64_t c) { return target > static_cast<int32_t>(c); }, f);
        const Mask<T> here = target >= 0;
        const V parts[kMostTerms] = {f.terms.entropy_difference, f.terms.kl_ablated_original,
                                     f.terms.kl_original_ablated, here ? f.loss : V{},
                                     here ? f.correct : V{}};
        for (int k = 0; k < sweep.n_terms; ++k) {
          store_lanes(found + k * n_block + h * kLanes<T>, parts[k]);
        }
      }
      for (int k = 0; k < sweep.n_terms; ++k) {
        if (sweep.per_sample) {
          for (int64_t l = 0; l < n; ++l) {
            const int64_t row = (first - tile.begin + l) * sweep.n_ablations;
            tile.terms[k * sweep.term_stride + row + a] = found[k * n_block + l];
          }
        } else {
          tile.terms[k * sweep.term_stride + a] += total(found + k * n_block);
        }
      }
      if (tile.classes != nullptr) {
        for (int64_t l = 0; l < n; ++l) {
          tile.classes[sweep.targets[first + l] * sweep.n_ablations + a] += found[4 * n_block + l] != T(0);
        }
      }
    }
  }
}

constexpr AblationKernels kernels = {
    {kBlock<float>, kBlock<double>},
    {kWide, kNarrow},
    {prepare<float>, prepare<double>},
    {sweep_logits<float>, sweep_logits<double>},
    {sweep_hidden<float>, sweep_hidden<double>},
};
