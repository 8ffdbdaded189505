// The kernels of greedy pruning; compiled per SIMD level by for_each_level.h.
#include "lanes_kernels.h"

template <class T>
constexpr T kReach = sizeof(T) == sizeof(float) ? T(kReachFloat) : T(kReachDouble);

// Blocks [begin, end) of the inputs, column by column in each block: to [block][column][lane].
template <class T>
void pruning_columns(Pruning<T>& p, int64_t begin, int64_t end, T* to) {
  constexpr int64_t n_lanes = kLanes<T>;
  const int64_t n_in = p.layers[0].n_in;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t left = p.n_samples - b * n_lanes;
    transpose(p.inputs + b * n_lanes * n_in, left < n_lanes ? left : n_lanes, n_in, n_in, n_lanes,
              to + b * n_in * n_lanes);
  }
}

// The pre-activations of unit `row` of the pruned layer from its weights, for blocks [begin, end): to kNow.
template <class T>
void pruning_fill_row(Pruning<T>& p, int64_t row, const T* weights, int64_t begin, int64_t end) {
  constexpr int64_t n_lanes = kLanes<T>, stride = kPruningFields * n_lanes;
  const PruningLayer<T>& layer = p.layers[0];
  T* now = p.fields.data() + kNow * n_lanes;
  for (int64_t b = begin; b < end; ++b) store_lanes(now + b * stride, splat(layer.bias[row]));
  for (int64_t j = 0; j < layer.n_in; ++j) {
    if (weights[j] == T(0)) continue;
    for (int64_t e = p.columns.begin[j]; e < p.columns.begin[j + 1]; ++e) {
      const int64_t b = p.columns.index[e];
      if (b < begin || b >= end) continue;
      T* to = now + b * stride;
      store_lanes(to, load_lanes(to) + load_lanes(p.columns.value.data() + e * n_lanes) * weights[j]);
    }
  }
}

// The pre-activations of layers after `from`, from those of `from`, for blocks [begin, end).
template <class T>
void pruning_advance(Pruning<T>& p, size_t from, int64_t begin, int64_t end) {
  constexpr int64_t n_lanes = kLanes<T>;
  for (size_t m = from + 1; m < p.layers.size(); ++m) {
    PruningLayer<T>& layer = p.layers[m];
    for (int64_t b = begin; b < end; ++b) {
      const T* before = p.layers[m - 1].values.data() + b * layer.n_in * n_lanes;
      T* after = layer.values.data() + b * layer.n_out * n_lanes;
      for (int64_t r = 0; r < layer.n_out; ++r) {
        Lanes<T> sum = splat(layer.bias[r]);
        for (int64_t e = layer.rows.begin[r]; e < layer.rows.begin[r + 1]; ++e) {
          const Lanes<T> h = load_lanes(before + layer.rows.index[e] * n_lanes);
          sum += larger(h, Lanes<T>{}) * layer.rows.value[e];
        }
        store_lanes(after + r * n_lanes, sum);
      }
    }
  }
}

// Takes kNow of unit `row` over into its layer's pre-activations and those of the layers after it, for
// blocks [begin, end).
template <class T>
void pruning_settle(Pruning<T>& p, int64_t row, bool into_others, int64_t begin, int64_t end) {
  constexpr int64_t n_lanes = kLanes<T>;
  PruningLayer<T>& own = p.layers[0];
  for (int64_t b = begin; b < end; ++b) {
    const Lanes<T> now = load_lanes(p.fields.data() + (b * kPruningFields + kNow) * n_lanes);
    T* place = own.values.data() + (b * own.n_out + row) * n_lanes;
    const Lanes<T> change = larger(now, Lanes<T>{}) - larger(load_lanes(place), Lanes<T>{});
    store_lanes(place, now);
    if (!p.rectified() || !into_others) continue;
    T* next = p.layers[1].values.data() + b * p.layers[1].n_out * n_lanes;
    for (int64_t e = p.readers.begin[row]; e < p.readers.begin[row + 1]; ++e) {
      T* to = next + p.readers.index[e] * n_lanes;
      store_lanes(to, load_lanes(to) + change * p.readers.value[e]);
    }
  }
  if (p.rectified() && into_others) pruning_advance(p, 1, begin, end);
}

template <class T>
MODFAST_LANE Mask<T> is_class(Mask<T> targets, int64_t c) {
  return targets == static_cast<std::remove_reference_t<decltype(targets[0])>>(c);
}

template <class T>
struct Exponentials {
  Lanes<T> total, loss;
};

// keep(c, e^(z_c - largest z)) for every class; their sum, and the loss. logits: [class][lane].
template <class T, class Keep>
MODFAST_LANE Exponentials<T> exponentials(const T* logits, int64_t n_classes, Mask<T> targets,
                                          const Keep& keep) {
  constexpr int64_t n_lanes = kLanes<T>;
  Lanes<T> largest = load_lanes(logits), own{}, total{};
  for (int64_t c = 1; c < n_classes; ++c) largest = larger(largest, load_lanes(logits + c * n_lanes));
  for (int64_t c = 0; c < n_classes; ++c) {
    const Lanes<T> d = load_lanes(logits + c * n_lanes) - largest, e = exp_down<T>(d);
    own = is_class<T>(targets, c) ? d : own;
    total += e;
    keep(c, e);
  }
  return {total, log_up<T>(total) - own};
}

// The losses of blocks [begin, end) from their logits: to kLoss, and their sum.
template <class T>
double pruning_losses(Pruning<T>& p, int64_t begin, int64_t end) {
  constexpr int64_t n_lanes = kLanes<T>;
  const PruningLayer<T>& last = p.layers.back();
  double sum = 0.0;
  for (int64_t b = begin; b < end; ++b) {
    Mask<T> targets;
    for (int64_t l = 0, i = b * n_lanes; l < n_lanes; ++l, ++i) targets[l] = i < p.n_samples ? p.targets[i] : -1;
    const Exponentials<T> found = exponentials<T>(last.values.data() + b * last.n_out * n_lanes, last.n_out,
                                                  targets, [](int64_t, Lanes<T>) {});
    const Lanes<T> loss = targets < 0 ? Lanes<T>{} : found.loss;
    store_lanes(p.fields.data() + (b * kPruningFields + kLoss) * n_lanes, loss);
    for (int l = 0; l < n_lanes; ++l) sum += loss[l];
  }
  return sum;
}

// Makes ready to visit weights of unit `row`, for blocks [begin, end): no series holds as yet. Lanes past
// the last sample keep the series of 0 that they got at first.
template <class T>
void pruning_open(Pruning<T>& p, int64_t row, int64_t begin, int64_t end) {
  constexpr int64_t n_lanes = kLanes<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const PruningLayer<T>& own = p.layers[0];
  for (int64_t b = begin; b < end; ++b) {
    T* block = p.fields.data() + b * kPruningFields * n_lanes;
    store_lanes(block + kNow * n_lanes, load_lanes(own.values.data() + (b * own.n_out + row) * n_lanes));
    const int64_t n = p.n_samples - b * n_lanes;
    for (int l = 0; l < n_lanes; ++l) {
      block[kLow * n_lanes + l] = l < n ? infinity : -infinity;
      block[kHigh * n_lanes + l] = l < n ? -infinity : infinity;
    }
  }
}

// Where some samples' numbers lie in a layer's [block][unit][lane].
template <class T>
class Places {
 public:
  MODFAST_LANE Places(const int32_t* samples, bool whole, const std::vector<T>& values, int64_t n_units)
      : values_(values.data()), whole_(whole) {
    for (int l = 0; l < kLanes<T>; ++l) {
      first_[l] = (samples[l] / kLanes<T> * n_units) * kLanes<T> + samples[l] % kLanes<T>;
    }
  }

  MODFAST_LANE Lanes<T> operator()(int64_t unit) const {
    const T* values = values_ + unit * kLanes<T>;
    if (whole_) return load_lanes(values + first_[0]);
    Lanes<T> found;
    for (int l = 0; l < kLanes<T>; ++l) found[l] = values[first_[l]];
    return found;
  }

 private:
  const T* values_;
  bool whole_;
  int64_t first_[kLanes<T>];
};

// What the logits of some samples are at a pre-activation, how they go on from there, and where.
template <class T>
struct Slopes {
  Lanes<T> low, high;
};

// Of the samples, as many as lanes, whose unit `row` has pre-activation t: the logits to `logits` and
// their slopes in t to `slopes`, [class][lane].
template <class T>
MODFAST_LANE Slopes<T> follow(const Pruning<T>& p, int64_t row, const int32_t* samples, bool whole,
                              Lanes<T> t, T* logits, T* slopes, T* work) {
  using V = Lanes<T>;
  constexpr int64_t n_lanes = kLanes<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const V zero{};
  V low = splat(-infinity), high = splat(infinity);
  const V before = Places<T>(samples, whole, p.layers[0].values, p.layers[0].n_out)(row);
  // How much a layer's pre-activations change, and their slopes.
  T *change = logits, *slope = slopes, *next_change = work, *next_slope = work + p.n_widest * n_lanes;
  const auto clear = [&](int64_t n) {
    for (int64_t k = 0; k < n * n_lanes; k += n_lanes) {
      store_lanes(change + k, zero);
      store_lanes(slope + k, zero);
    }
  };
  if (!p.rectified()) {
    clear(p.layers[0].n_out);
    store_lanes(change + row * n_lanes, t - before);
    store_lanes(slope + row * n_lanes, splat(T(1)));
  } else {
    clear(p.layers[1].n_out);
    const Mask<T> on = t > zero;
    low = on ? zero : low;
    high = on ? high : zero;
    const V moved = larger(t, zero) - larger(before, zero), one = on ? splat(T(1)) : zero;
    for (int64_t e = p.readers.begin[row]; e < p.readers.begin[row + 1]; ++e) {
      const int64_t k = p.readers.index[e] * n_lanes;
      store_lanes(change + k, moved * p.readers.value[e]);
      store_lanes(slope + k, one * p.readers.value[e]);
    }
  }
  for (size_t m = 1; m + 1 < p.layers.size(); ++m) {
    const PruningLayer<T>&layer = p.layers[m], &next = p.layers[m + 1];
    const Places<T> place(samples, whole, layer.values, layer.n_out);
    // Through the ReLU. Of the first layer only the unit's readers have changed.
    const int64_t first = m == 1 ? p.readers.begin[row] : 0;
    const int64_t last = m == 1 ? p.readers.begin[row + 1] : layer.n_out;
    for (int64_t e = first; e < last; ++e) {
      const int64_t k = m == 1 ? p.readers.index[e] : e;
      const V h = place(k), s = load_lanes(slope + k * n_lanes);
      const V v = h + load_lanes(change + k * n_lanes);
      const Mask<T> on = v > zero, moves = s != zero;
      const V crossing = t - v / s;
      const Mask<T> above = moves & ((s < zero) == on), below = moves & ~above;
      high = above ? smaller(high, crossing) : high;
      low = below ? larger(low, crossing) : low;
      store_lanes(change + k * n_lanes, larger(v, zero) - larger(h, zero));
      store_lanes(slope + k * n_lanes, on ? s : zero);
    }
    for (int64_t r = 0; r < next.n_out; ++r) {
      V changes{}, sum{};
      for (int64_t e = next.rows.begin[r]; e < next.rows.begin[r + 1]; ++e) {
        const int64_t k = next.rows.index[e] * n_lanes;
        changes += load_lanes(change + k) * next.rows.value[e];
        sum += load_lanes(slope + k) * next.rows.value[e];
      }
      store_lanes(next_change + r * n_lanes, changes);
      store_lanes(next_slope + r * n_lanes, sum);
    }
    T *const free_change = change, *const free_slope = slope;
    change = next_change, slope = next_slope;
    next_change = free_change, next_slope = free_slope;
  }
  const PruningLayer<T>& last = p.layers.back();
  const Places<T> place(samples, whole, last.values, last.n_out);
  for (int64_t c = 0; c < last.n_out; ++c) {
    store_lanes(logits + c * n_lanes, place(c) + load_lanes(change + c * n_lanes));
    store_lanes(slopes + c * n_lanes, load_lanes(slope + c * n_lanes));
  }
  return {low, high};
}

// Makes the series of n samples, at most as many as lanes, around where the trial moves them. The change
// of their losses. `samples` has room for as many as lanes.
template <class T>
MODFAST_LANE Lanes<T> build_series(Pruning<T>& p, int64_t row, int32_t* samples, int n, T* work) {
  using V = Lanes<T>;
  constexpr int64_t n_lanes = kLanes<T>;
  const int64_t n_classes = p.layers.back().n_out;
  for (int l = n; l < n_lanes; ++l) samples[l] = samples[0];
  const bool whole = n == n_lanes && samples[0] % n_lanes == 0 && samples[n - 1] == samples[0] + n - 1;
  T* fields[n_lanes];
  V t, before;
  Mask<T> targets;
  for (int l = 0; l < n_lanes; ++l) {
    fields[l] = p.fields.data() + samples[l] / n_lanes * kPruningFields * n_lanes + samples[l] % n_lanes;
    t[l] = fields[l][kMoved * n_lanes];
    before[l] = fields[l][kLoss * n_lanes];
    targets[l] = p.targets[samples[l]];
  }
  T *logits = work, *slopes = logits + p.n_widest * n_lanes;
  const Slopes<T> found = follow(p, row, samples, whole, t, logits, slopes, slopes + p.n_widest * n_lanes);
  const Exponentials<T> sums = exponentials<T>(logits, n_classes, targets, [&](int64_t c, V e) {
    store_lanes(logits + c * n_lanes, e);
  });

  V own{}, least = load_lanes(slopes), most = least;
  for (int64_t c = 0; c < n_classes; ++c) {
    const V s = load_lanes(slopes + c * n_lanes);
    own = is_class<T>(targets, c) ? s : own;
    least = smaller(least, s);
    most = larger(most, s);
  }
  const V range = most - least;
  // A range whose inverse overflows moves no loss.
  const Mask<T> flat = range <= std::numeric_limits<T>::min();
  const V scale = flat ? V{} : range, inverse = flat ? V{} : 1 / range, share = 1 / sums.total;
  V mean{};
  for (int64_t c = 0; c < n_classes; ++c) {
    const V r = (load_lanes(slopes + c * n_lanes) - own) * inverse;
    mean += load_lanes(logits + c * n_lanes) * r;
    store_lanes(slopes + c * n_lanes, r);
  }
  mean *= share;
  V moments[kDegree + 1] = {};
  for (int64_t c = 0; c < n_classes; ++c) {
    const V d = load_lanes(slopes + c * n_lanes) - mean;
    V term = load_lanes(logits + c * n_lanes) * share * d;
#pragma GCC unroll 8
    for (int k = 2; k <= kDegree; ++k) moments[k] += term *= d;
  }
  V series[kDegree];
  cumulant_series<V>(mean, moments, series);

  const V reach = kReach<T> / range;
  V results[kPruningFields];
  results[kNext] = results[kSeries] = sums.loss;
  results[kLow] = larger(found.low, t - reach);
  results[kHigh] = smaller(found.high, t + reach);
  results[kCenter] = t;
  results[kScale] = scale;
  for (int k = 0; k < kDegree; ++k) results[kSeries + 1 + k] = series[k];
  V change = sums.loss - before;
  for (int l = n; l < n_lanes; ++l) change[l] = 0;
  for (int k = kNext; k < kPruningFields; ++k) {
    if (whole) {
      store_lanes(fields[0] + k * n_lanes, results[k]);
    } else {
      for (int l = 0; l < n; ++l) fields[l][k * n_lanes] = results[k][l];
    }
  }
  return change;
}

// sums += v, in double
MODFAST_LANE void add_wide(Lanes<double> (&sums)[2], Lanes<double> v) { sums[0] += v; }
MODFAST_LANE void add_wide(Lanes<double> (&sums)[2], Lanes<float> v) {
  typedef float Half __attribute__((vector_size(kLaneBytes / 2)));
  Half halves[2];
  memcpy(halves, &v, sizeof(v));
  for (int h = 0; h < 2; ++h) sums[h] += __builtin_convertvector(halves[h], Lanes<double>);
}

// By how much the sum of losses rises if weight w of unit `row`, which reads a column of the inputs, is 0:
// the part of the blocks in entries [begin, end) of that column, whose kMoved and kNext are set.
template <class T>
double pruning_trial(Pruning<T>& p, int64_t row, T w, PruningTile<T> tile) {
  using V = Lanes<T>;
  constexpr int64_t n_lanes = kLanes<T>;
  const bool rectified = p.rectified();
  const int32_t* blocks = p.columns.index.data();
  const T* inputs = p.columns.value.data();
  T* fields = p.fields.data();
  Lanes<double> sums[2] = {};
  int64_t n_outside = 0;
  for (int64_t e = tile.begin; e < tile.end; ++e) {
    T* block = fields + blocks[e] * (kPruningFields * n_lanes);
    const auto field = [&](int k) { return load_lanes(block + k * n_lanes); };
    const V now = field(kNow), moved = now - load_lanes(inputs + e * n_lanes) * w;
    store_lanes(block + kMoved * n_lanes, moved);
    const V before = field(kLoss);
    if (rectified && !any(larger(now, moved) > V{})) {  // off, and stays so
      store_lanes(block + kNext * n_lanes, before);
      continue;
    }
    const V q = (moved - field(kCenter)) * field(kScale);
    V value = field(kSeries + kDegree);
#pragma GCC unroll 8
    for (int k = kDegree - 1; k >= 0; --k) value = value * q + field(kSeries + k);
    const Mask<T> outside = (moved < field(kLow)) | (moved > field(kHigh));
    if (any(outside)) {
      for (int l = 0; l < n_lanes; ++l) {
        tile.samples[n_outside] = static_cast<int32_t>(blocks[e] * n_lanes + l);
        n_outside += outside[l] != 0;
      }
      value = outside ? before : value;
    }
    store_lanes(block + kNext * n_lanes, value);
    add_wide(sums, value - before);
  }
  for (int64_t i = 0; i < n_outside; i += n_lanes) {
    const int n = n_outside - i < n_lanes ? static_cast<int>(n_outside - i) : n_lanes;
    add_wide(sums, build_series(p, row, tile.samples + i, n, tile.work));
  }
  double sum = 0.0;
  for (int l = 0; l < kLanes<double>; ++l) sum += sums[0][l] + sums[1][l];
  return sum;
}

// Makes what entries [begin, end) of a column were moved to what they are.
template <class T>
void pruning_commit(Pruning<T>& p, int64_t begin, int64_t end) {
  constexpr int64_t n_lanes = kLanes<T>;
  for (int64_t e = begin; e < end; ++e) {
    T* block = p.fields.data() + p.columns.index[e] * (kPruningFields * n_lanes);
    store_lanes(block + kNow * n_lanes, load_lanes(block + kMoved * n_lanes));
    store_lanes(block + kLoss * n_lanes, load_lanes(block + kNext * n_lanes));
  }
}

template <class T>
constexpr PruningKernels<T> kernels_of = {
    kLanes<T>,         pruning_columns<T>, pruning_fill_row<T>, pruning_advance<T>, pruning_settle<T>,
    pruning_losses<T>, pruning_open<T>,    pruning_trial<T>,    pruning_commit<T>,
};

constexpr BothPruningKernels kernels = {kernels_of<float>, kernels_of<double>};
