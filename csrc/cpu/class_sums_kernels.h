// Sums over classes; compiled per SIMD level. Include after lanes_kernels.h.

// Classes that are added up in their order. More are added up by runs of that many, whose sums lose
// nothing to each other, so that float32 bears any number.
constexpr int64_t kRun = 256;

// sum_c of what add(c, sums) adds to each sum.
template <class T, int n, class F>
MODFAST_LANE void sum_classes(int64_t n_classes, Lanes<T> (&sums)[n], const F& add) {
  using V = Lanes<T>;
  V lost[n] = {};
  for (int64_t c = 0; c < n_classes;) {
    const bool first = c == 0;
    const int64_t end = n_classes - c < kRun ? n_classes : c + kRun;
    V run[n] = {};
    for (; c < end; ++c) add(c, run);
    for (int k = 0; k < n; ++k) {
      if (first) {
        sums[k] = run[k];
      } else {  // Knuth's two-sum
        const V whole = sums[k] + run[k], part = whole - sums[k];
        lost[k] += (sums[k] - (whole - part)) + (run[k] - part);
        sums[k] = whole;
      }
    }
  }
  if (n_classes > kRun) {
    for (int k = 0; k < n; ++k) sums[k] += lost[k];
  }
}

// sum p g, sum p x (x + g) and sum p (log p - mean log p) (x + g), one sample or ablation a lane.
template <class T>
struct Moments {
  Lanes<T> excess, second, first;
};

template <class T, class P, class W, class R>
MODFAST_LANE Moments<T> ablation_moments(int64_t n_classes, Lanes<T> mean, const P& p, const W& centered,
                                         const R& changes) {
  Lanes<T> sums[3];
  sum_classes<T>(n_classes, sums, [&](int64_t c, Lanes<T>(&to)[3]) {
    const Lanes<T> x = changes(c) - mean;
    const Excess<T> e = exp_excess<T>(x);
    to[0] += p(c) * e.beyond;
    to[1] += (p(c) * x) * e.moved;
    to[2] += centered(c) * e.moved;
  });
  return {sums[0], sums[1], sums[2]};
}
