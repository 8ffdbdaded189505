// What ablations do to the probabilities of one sample, a lane a class; compiled per SIMD level.
#include "lanes_kernels.h"
#include "class_sums_kernels.h"

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

template <class T>
void sample_terms(const LogitTerms& all, int64_t sample, void* workspace, double* terms) {
  using V = Lanes<T>;
  const int64_t n = all.n_classes, lanes = kLanes<T>, n_blocks = (n + lanes - 1) / lanes;
  const T* z = static_cast<const T*>(all.logits) + sample * n;
  T* p = static_cast<T*>(workspace);
  T* centered = p + n_blocks * lanes;
  T* log_p = centered + n_blocks * lanes;
  // Beyond the last class there is nothing: probability 0.
  const auto block = [=](const T* row, int64_t b) { return load_first(row + b * lanes, n - b * lanes); };
  const auto at = [=](T* values, int64_t b) { return values + b * lanes; };

  V top = splat(z[0]);
  for (int64_t c = 0; c < n; ++c) {
    if (c + lanes <= n) {
      top = larger(top, load_lanes(z + c));
      c += lanes - 1;
    } else {
      top = larger(top, splat(z[c]));
    }
  }
  const V largest = splat(largest_of<T>(top));
  V total[1], mean_log[1];
  sum_classes<T>(n_blocks, total, [&](int64_t b, V(&to)[1]) {
    V d = block(z, b) - largest;
    if ((b + 1) * lanes > n) {
      T some[kLanes<T>];
      store_lanes(some, d);
      for (int64_t l = n - b * lanes; l < lanes; ++l) some[l] = T(-1e30);
      d = load_lanes(some);
    }
    const V e = exp_down<T>(d);
    to[0] += e;
    store_lanes(at(log_p, b), d);
    store_lanes(at(p, b), e);
  });
  const double whole = total_of<T>(total[0]);
  const V share = splat(static_cast<T>(1 / whole)), log_total = splat(static_cast<T>(std::log(whole)));
  sum_classes<T>(n_blocks, mean_log, [&](int64_t b, V(&to)[1]) {
    const V q = load_lanes(at(p, b)) * share;
    to[0] += q * load_lanes(at(log_p, b));
    store_lanes(at(p, b), q);
  });
  const V mean_log_p = splat(static_cast<T>(total_of<T>(mean_log[0])));
  double entropy = 0.0;
  for (int64_t b = 0; b < n_blocks; ++b) {
    const V d = load_lanes(at(log_p, b));
    store_lanes(at(centered, b), load_lanes(at(p, b)) * (d - mean_log_p));
    store_lanes(at(log_p, b), d - log_total);
  }
  entropy = std::log(whole) - static_cast<double>(mean_log_p[0]);

  const auto p_of = [=](int64_t b) { return load_lanes(p + b * lanes); };
  const auto centered_of = [=](int64_t b) { return load_lanes(centered + b * lanes); };
  for (int64_t a = 0; a < all.n_ablations; ++a, terms += kMostTerms) {
    const T* w = static_cast<const T*>(all.ablated) + (a * all.n_samples + sample) * n;
    const auto change = [=](int64_t b) { return block(w, b) - block(z, b); };
    V low = change(0), high = low, sums[1];
    sum_classes<T>(n_blocks, sums, [&](int64_t b, V(&to)[1]) {
      const V r = change(b);
      low = smaller(low, r);
      high = larger(high, r);
      to[0] += p_of(b) * r;
    });
    const double mean = total_of<T>(sums[0]);
    const double range = static_cast<double>(largest_of<T>(high)) + static_cast<double>(largest_of<T>(-low));
    AblationTerms<double> found;
    if (range <= kFar) {
      const Moments<T> m = ablation_moments<T>(n_blocks, splat(static_cast<T>(mean)), p_of, centered_of, change);
      const double excess = total_of<T>(m.excess) < 0 ? 0 : total_of<T>(m.excess);
      found = near_terms<double>(mean, 1 / (1 + excess), total_of<T>(m.second), total_of<T>(m.first),
                                 std::log1p(excess));
    } else {
      // Also where a change is not finite, which then shows in the terms.
      V most = splat(T(-INFINITY));
      for (int64_t b = 0; b < n_blocks; ++b) most = larger(most, load_lanes(log_p + b * lanes) + change(b));
      const V peak = splat(largest_of<T>(most));
      V far[3];
      sum_classes<T>(n_blocks, far, [&](int64_t b, V(&to)[3]) {
        const V log = load_lanes(log_p + b * lanes), moved = log + change(b) - peak, e = exp_down<T>(moved);
        to[0] += e;
        to[1] += e * log;
        to[2] += e * moved;
      });
      const double sum = total_of<T>(far[0]);
      found = far_terms<double>(mean, entropy, static_cast<double>(peak[0]), sum, std::log(sum),
                                total_of<T>(far[1]), total_of<T>(far[2]));
    }
    // Only rounding goes below 0.
    terms[0] = found.entropy_difference;
    terms[1] = found.kl_ablated_original < 0 ? 0 : found.kl_ablated_original;
    terms[2] = found.kl_original_ablated < 0 ? 0 : found.kl_original_ablated;
    if (all.has_targets()) {
      const int64_t y = all.targets[sample];
      terms[3] = found.log_sum - (static_cast<double>(log_p[y]) + (static_cast<double>(w[y]) - z[y]));
      bool correct = true;
      for (int64_t c = 0; c < n && correct; ++c) correct = !(w[c] > w[y] || (c < y && w[c] == w[y]));
      terms[4] = correct ? 1.0 : 0.0;
    }
  }
}

constexpr LogitTermsKernels kernels = {
    {kLanes<float>, kLanes<double>},
    {sample_terms<float>, sample_terms<double>},
};
