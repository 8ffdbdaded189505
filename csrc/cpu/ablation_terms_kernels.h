// What an ablation does to the probabilities of samples; compiled per SIMD level. Include after
// lanes_kernels.h and class_sums_kernels.h.

template <class T>
constexpr int kBlock = 2 * kLanes<T>;

template <class T, class P, class R>
MODFAST_LANE Lanes<T> mean_change(int64_t n_classes, const P& p, const R& changes) {
  Lanes<T> sums[1];
  sum_classes<T>(n_classes, sums, [&](int64_t c, Lanes<T>(&to)[1]) { to[0] += p(c) * changes(c); });
  return sums[0];
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
    V largest = log_p(0) + changes(0);
    for (int64_t c = 1; c < n_classes; ++c) largest = larger(largest, log_p(c) + changes(c));
    V total[4];  // of e^w, e^w log p, e^w w and -p log p
    sum_classes<T>(n_classes, total, [&](int64_t c, V(&to)[4]) {
      const V w = log_p(c) + changes(c) - largest;
      const V e = exp_down<T>(w);
      to[0] += e;
      to[1] += e * log_p(c);
      to[2] += e * w;
      to[3] -= p(c) * log_p(c);
    });
    const AblationTerms<V> other =
        far_terms<V>(mean, total[3], largest, total[0], log_up<T>(total[0]), total[1], total[2]);
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
    V total[1], mean[1];
    sum_classes<T>(n_classes, total, [&](int64_t c, V(&to)[1]) {
      const V d = load_lanes(at(log_p, c)) - largest;
      const V e = exp_down<T>(d);
      to[0] += e;
      store_lanes(at(log_p, c), d);
      store_lanes(at(p, c), e);
    });
    const V log_total = log_up<T>(total[0]), share = 1 / total[0];
    sum_classes<T>(n_classes, mean, [&](int64_t c, V(&to)[1]) {
      const V q = load_lanes(at(p, c)) * share;
      to[0] += q * load_lanes(at(log_p, c));
      store_lanes(at(p, c), q);
    });
    for (int64_t c = 0; c < n_classes; ++c) {
      const V d = load_lanes(at(log_p, c));
      store_lanes(at(centered, c), load_lanes(at(p, c)) * (d - mean[0]));
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

// Samples whose log(1 + G) are taken together, of the product, where no change of theirs has a larger range
// than kJoinedRange, so that the product does not overflow.
constexpr int kJoined = 8;
constexpr int kJoinedRange = 10;

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
    T out[3][kLanes<T>];
    store_lanes(out[0], first);
    store_lanes(out[1], second);
    store_lanes(out[2], log);
#pragma omp simd
    for (int l = 0; l < kLanes<T>; ++l) {
      const double gap = out[2][l], after = out[1][l] - gap;
      sums[0][l] += out[0][l] + after;
      sums[1][l] += after > 0.0 ? after : 0.0;  // only rounding goes below 0
      sums[2][l] += gap;
    }
    *this = Joined{};
  }
};

// The terms of the samples of a tile, of the ablations of a block: a lane is an ablation.
template <class T>
struct BlockTerms {
  using V = Lanes<T>;
  const AblationSweep& sweep;
  const SampleTile& tile;
  const int64_t first, n;  // ablations
  double sums[kMostTerms][kLanes<T>] = {};
  Joined<T> joined;

  MODFAST_LANE BlockTerms(const AblationSweep& sweep, const SampleTile& tile, int64_t block)
      : sweep(sweep), tile(tile), first(block * kLanes<T>),
        n(sweep.n_ablations - first < kLanes<T> ? sweep.n_ablations - first : kLanes<T>) {}

  MODFAST_LANE V scales(int64_t i) const {
    return load_first(static_cast<const T*>(sweep.scales) + i * sweep.n_ablations + first, n);
  }

  MODFAST_LANE const T* probabilities(int64_t i) const {
    return static_cast<const T*>(sweep.prepared) + i / kBlock<T> * 3 * sweep.n_classes * kBlock<T> +
           i % kBlock<T>;
  }

  // Of sample i, whose probability of class c is probabilities(i)[c * kBlock].
  template <class R>
  MODFAST_LANE void add(int64_t i, V range, V mean, const R& changes) {
    const int64_t n_classes = sweep.n_classes, part = n_classes * kBlock<T>;
    const T* p = probabilities(i);
    const auto p_of = [=](int64_t c) { return p[c * kBlock<T>]; };
    const auto centered = [=](int64_t c) { return p[part + c * kBlock<T>]; };
    if (sweep.joined && !sweep.has_targets() && !any(range > T(kJoinedRange))) {
      joined.add(ablation_moments<T>(n_classes, mean, p_of, centered, changes));
      if (sweep.per_sample || joined.n == kJoined) joined.flush(sums);
      if (sweep.per_sample) finish_sample(i);
      return;
    }
    const int64_t target = sweep.has_targets() ? sweep.targets[i] : -1;
    const Mask<T> none{};
    Found<T> found{};
    ablation_terms<T>(
        n_classes, range, mean, sweep.has_targets(), p_of, centered,
        [=](int64_t c) { return p[2 * part + c * kBlock<T>]; }, changes,
        [&](int64_t c) { return c == target ? ~none : none; },
        [&](int64_t c) { return c < target ? ~none : none; }, found);
    const V terms[kMostTerms] = {found.terms.entropy_difference, found.terms.kl_ablated_original,
                                 found.terms.kl_original_ablated, found.loss, found.correct};
    for (int k = 0; k < sweep.n_terms; ++k) add_lanes<T>(sums[k], terms[k]);
    if (sweep.per_sample) finish_sample(i);
    if (tile.classes != nullptr) {
      for (int64_t l = 0; l < n; ++l) {
        tile.classes[target * sweep.n_ablations + first + l] += found.correct[l] != T(0);
      }
    }
  }

  MODFAST_LANE void finish_sample(int64_t i) {
    store(tile.terms + (i - tile.begin) * sweep.n_ablations);
    memset(sums, 0, sizeof(sums));
  }

  MODFAST_LANE void finish() {
    if (sweep.per_sample) return;
    joined.flush(sums);
    store(tile.terms);
  }

  MODFAST_LANE void store(double* to) const {
    for (int k = 0; k < sweep.n_terms; ++k) {
      for (int64_t l = 0; l < n; ++l) to[k * sweep.term_stride + first + l] = sums[k][l];
    }
  }
};
