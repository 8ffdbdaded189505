// The trials of greedy pruning; compiled per SIMD level by for_each_level.h.
#include "lanes_kernels.h"
#include "pruning_layers_kernels.h"
#include "pruning_classes_kernels.h"

// Makes ready to visit weights of unit `row`, for the tiles of a part: no series holds as yet, but of a class
// its losses are to be known, and their sums are taken. Lanes past the last sample keep the series of 0 that
// they got at first.
template <class T>
void pruning_open(Pruning<T>& p, int64_t row, PruningPart<T> part) {
  constexpr int64_t n_lanes = kLanes<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const PruningLayer<T>& own = p.layers[0];
  for_each_block(p, part, [&](int64_t b) {
    T* block = p.fields.data() + b * kPruningFields * n_lanes;
    store_lanes(block + (kNow + p.side[b]) * n_lanes,
                load_lanes(own.values.data() + (b * own.n_out + row) * n_lanes));
    if (p.is_last()) return;
    const int64_t n = p.n_samples - b * n_lanes;
    T* recent = p.recent.data() + b * n_lanes * kRecent * kRecentFields;
    for (int r = 0; r < n_lanes * kRecent; ++r) recent[r * kRecentFields] = infinity;  // its kLow
    for (int l = 0; l < n_lanes; ++l) {
      block[kLow * n_lanes + l] = l < n ? infinity : -infinity;
      block[kHigh * n_lanes + l] = l < n ? -infinity : infinity;
    }
  });
  if (!p.is_last()) return;
  for (int64_t tile = part.begin; tile < part.end; ++tile) open_class(p, row, tile);
}

// Some samples' pre-activations in a layer after the pruned one, of n of its units.
template <class T>
class Places {
 public:
  MODFAST_LANE Places(const int32_t* samples, const PruningLayer<T>& layer, int64_t n, T* work)
      : values_(layer.values.data()), turned_(n * 4 > layer.n_out ? work : nullptr) {
    for (int l = 0; l < kLanes<T>; ++l) first_[l] = samples[l] * static_cast<int32_t>(layer.stride);
    if (turned_ == nullptr) return;
    transpose_rows([&](int64_t l) { return values_ + first_[l]; }, kLanes<T>, layer.stride, kLanes<T>, work);
  }

  MODFAST_LANE Lanes<T> operator()(int64_t unit) const {
    return turned_ != nullptr ? load_lanes(turned_ + unit * kLanes<T>) : gather(values_ + unit, first_);
  }

 private:
  const T *values_, *turned_;
  int32_t first_[kLanes<T>];
};

// Between which outputs of the unit no ReLU switches.
template <class T>
struct Segment {
  Lanes<T> low, high;
};

// Of the samples, as many as lanes, whose unit `row` has output t >= 0: the logits to `logits` and their
// slopes in t to `slopes`, [class][lane]. `before`: t as the layers' values have it. `work`: room for three
// layers.
template <class T>
MODFAST_LANE Segment<T> follow(const Pruning<T>& p, int64_t row, const int32_t* samples, Lanes<T> t,
                               Lanes<T> before, T* logits, T* slopes, T* work) {
  using V = Lanes<T>;
  constexpr int64_t n_lanes = kLanes<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const V zero{};
  // How much a layer's pre-activations change, and their slopes.
  T *change = logits, *slope = slopes, *next_change = work, *next_slope = work + p.n_widest * n_lanes;
  T* const turned = next_slope + p.n_widest * n_lanes;
  const V moved = t - before;
  const int64_t first_reader = p.readers.begin[row], n_readers = p.readers.begin[row + 1] - first_reader;
  const int32_t* readers = p.readers.index.data() + first_reader;
  const T* weights = p.readers.value.data() + first_reader;
  V low = zero, high = splat(infinity);
  if (p.layers.size() == 2) {
    for (int64_t k = 0; k < p.layers[1].n_out * n_lanes; k += n_lanes) {
      store_lanes(change + k, zero);
      store_lanes(slope + k, zero);
    }
    for (int64_t e = 0; e < n_readers; ++e) {
      store_lanes(change + readers[e] * n_lanes, moved * weights[e]);
      store_lanes(slope + readers[e] * n_lanes, splat(weights[e]));
    }
  } else {
    // Of the first layer only the unit's readers change, all with t.
    const T* inverses = p.inverses.data() + first_reader;
    const Places<T> place(samples, p.layers[1], n_readers, turned);
    for (int64_t e = 0; e < n_readers; ++e) {
      const int64_t k = readers[e] * n_lanes;
      const V h = place(readers[e]), v = h + moved * weights[e], crossing = t - v * inverses[e];
      const V lower = larger(low, crossing), upper = smaller(high, crossing);
      if (weights[e] > T(0)) {
        low = v > zero ? lower : low;
        high = v > zero ? high : upper;
      } else {
        low = v > zero ? low : lower;
        high = v > zero ? upper : high;
      }
      store_lanes(change + k, larger(v, zero) - larger(h, zero));
      store_lanes(slope + k, v > zero ? splat(weights[e]) : zero);
    }
  }
  for (size_t m = 1; m + 1 < p.layers.size(); ++m) {
    const PruningLayer<T>& next = p.layers[m + 1];
    const int32_t* units = m == 1 ? readers : next.inputs.data();
    const int64_t n_units = m == 1 ? n_readers : static_cast<int64_t>(next.inputs.size());
    if (m > 1) {
      const Places<T> place(samples, p.layers[m], n_units, turned);
      for (int64_t e = 0; e < n_units; ++e) {
        const int64_t k = units[e] * n_lanes;
        const V h = place(units[e]), s = load_lanes(slope + k);
        const V v = h + load_lanes(change + k), crossing = t - v / s;
        const Mask<T> on = v > zero, moves = s != zero, above = moves & ((s < zero) == on);
        high = above ? smaller(high, crossing) : high;
        low = moves & ~above ? larger(low, crossing) : low;
        store_lanes(change + k, larger(v, zero) - larger(h, zero));
        store_lanes(slope + k, on ? s : zero);
      }
    }
    for (int64_t g = 0; g < groups_of(next.n_out); ++g) {
      const T* packed = next.packed.data() + g * kGroup * next.n_in;
      V sums[kGroup][2] = {};
      for (int64_t e = 0; e < n_units; ++e) {
        const int64_t k = units[e];
        const V c = load_lanes(change + k * n_lanes), s = load_lanes(slope + k * n_lanes);
#pragma GCC unroll 16
        for (int r = 0; r < kGroup; ++r) {
          sums[r][0] += c * packed[k * kGroup + r];
          sums[r][1] += s * packed[k * kGroup + r];
        }
      }
      const int64_t first = g * kGroup, n = next.n_out - first < kGroup ? next.n_out - first : kGroup;
      for (int r = 0; r < n; ++r) {
        store_lanes(next_change + (first + r) * n_lanes, sums[r][0]);
        store_lanes(next_slope + (first + r) * n_lanes, sums[r][1]);
      }
    }
    T *const free_change = change, *const free_slope = slope;
    change = next_change, slope = next_slope;
    next_change = free_change, next_slope = free_slope;
  }
  const PruningLayer<T>& last = p.layers.back();
  const Places<T> place(samples, last, last.n_out, turned);
  for (int64_t c = 0; c < last.n_out; ++c) {
    store_lanes(logits + c * n_lanes, place(c) + load_lanes(change + c * n_lanes));
    store_lanes(slopes + c * n_lanes, load_lanes(slope + c * n_lanes));
  }
  return {low, high};
}

// The largest |q| of a series whose r have this variance v, in units of their range. As in math/pruning.h, but
// for d = r - mean, of which |mean(e^(d q)) - 1| <= v e^|q|, as |d| <= 1: v is the probability of classes
// other than the target at most, and mostly a small part of it.
template <class T>
MODFAST_LANE Lanes<T> series_reach(Lanes<T> variance) {
  constexpr T most = kMostSurety, least = T(0.4f) / T(5e6f);
  const Lanes<T> surety = smaller(log_up<T>(T(0.4f) / larger(variance, splat(least))), splat(most));
  const Lanes<T> radius = smaller(surety, splat(T(kDegree + 1)));
  const Lanes<T> growth = exp_down<T>((surety - radius - most) / T(kDegree + 1)) * T(kMostGrowth);
  return larger(splat(SeriesReach<T>::any), radius * growth * SeriesReach<T>::of_radius);
}

// Adds to the sums of a sample's tile. As each has a place there, it does not matter which other samples
// are done at a time.
template <class T>
MODFAST_LANE void add_sample(Pruning<T>& p, int32_t sample, T value) {
  p.sums[p.tile_of[sample / kLanes<T>] * kSumLanes + sample % kLanes<double>] += value;
}

// Makes the series of n samples, at most as many as lanes, around where the trial moves them, and adds the
// changes of their losses. `samples` has room for as many as lanes.
template <class T>
MODFAST_LANE void build_series(Pruning<T>& p, int64_t row, int32_t* samples, int n, T* work) {
  using V = Lanes<T>;
  constexpr int n_lanes = kLanes<T>;
  const int64_t n_classes = p.layers.back().n_out;
  for (int l = n; l < n_lanes; ++l) samples[l] = samples[0];
  const bool whole = n == n_lanes && samples[0] % n_lanes == 0 && samples[n - 1] == samples[0] + n - 1;
  const PruningLayer<T>& own = p.layers[0];
  int32_t places[n_lanes], now[n_lanes], before[n_lanes], units[n_lanes];
  for (int l = 0; l < n_lanes; ++l) {
    const int32_t block = samples[l] / n_lanes, lane = samples[l] % n_lanes;
    places[l] = block * (kPruningFields * n_lanes) + lane;
    now[l] = places[l] + p.side[block] * n_lanes;
    before[l] = places[l] + (1 - p.side[block]) * n_lanes;
    units[l] = (block * static_cast<int32_t>(own.n_out) + static_cast<int32_t>(row)) * n_lanes + lane;
  }
  T* const fields = p.fields.data();
  const V zero{}, t = larger(gather(fields + kNow * n_lanes, now), zero);
  const Mask<T> targets = (Mask<T>)gather(reinterpret_cast<const T*>(p.classes.data()), samples);
  T *logits = work, *slopes = logits + p.n_widest * n_lanes;
  const Segment<T> found = follow(p, row, samples, t, larger(gather(own.values.data(), units), zero), logits, slopes,
                                  slopes + p.n_widest * n_lanes);
  const Exponentials<T> sums = exponentials<T>(logits, n_classes, targets, [&](int64_t c, V e) {
    store_lanes(logits + c * n_lanes, e);
  });

  V of_target{}, least = load_lanes(slopes), most = least;
  for (int64_t c = 0; c < n_classes; ++c) {
    const V s = load_lanes(slopes + c * n_lanes);
    of_target = is_class<T>(targets, c) ? s : of_target;
    least = smaller(least, s);
    most = larger(most, s);
  }
  const V range = most - least;
  // A range whose inverse overflows moves no loss.
  const Mask<T> flat = range <= std::numeric_limits<T>::min();
  const V scale = flat ? V{} : range, inverse = flat ? V{} : 1 / range, share = 1 / sums.total;
  V mean{};
  for (int64_t c = 0; c < n_classes; ++c) {
    const V r = (load_lanes(slopes + c * n_lanes) - of_target) * inverse;
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

  const V reach = series_reach<T>(moments[2]) / range;
  V results[kPruningFields];
  results[kSeries] = sums.loss;
  results[kLow] = larger(found.low, t - reach);
  results[kHigh] = smaller(found.high, t + reach);
  results[kCenter] = t;
  results[kScale] = scale;
  for (int k = 0; k < kDegree; ++k) results[kSeries + 1 + k] = series[k];
  for (int l = 0; l < n; ++l) {
    const T* series_before = fields + places[l] + kLow * n_lanes;
    if (series_before[0] > series_before[(kHigh - kLow) * n_lanes]) continue;  // there was none
    uint8_t& oldest = p.oldest[samples[l]];
    T* recent = p.recent.data() + (int64_t{samples[l]} * kRecent + oldest) * kRecentFields;
    for (int k = 0; k < kRecentFields; ++k) recent[k] = series_before[k * n_lanes];
    oldest = (oldest + 1) % kRecent;
  }
  for (int k = kLow; k < kPruningFields; ++k) {
    if (whole) {
      store_lanes(fields + places[0] + k * n_lanes, results[k]);
    } else {
      for (int l = 0; l < n; ++l) fields[places[l] + k * n_lanes] = results[k][l];
    }
  }
  const V change = sums.loss - gather(fields + kLoss * n_lanes, before);
  for (int l = 0; l < n; ++l) {
    fields[now[l] + kLoss * n_lanes] = sums.loss[l];
    add_sample(p, samples[l], change[l]);
  }
}

// Of n samples that a trial moves out of their series, those that it moves into one they had before get
// that back. The others come first then: how many.
template <class T>
MODFAST_LANE int64_t recall(Pruning<T>& p, int32_t* samples, int64_t n) {
  constexpr int64_t n_lanes = kLanes<T>;
  int64_t n_left = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t s = samples[i];
    T* fields = p.fields.data() + s / n_lanes * kPruningFields * n_lanes + s % n_lanes;
    const int side = p.side[s / n_lanes];
    const T t = fields[(kNow + side) * n_lanes] > T(0) ? fields[(kNow + side) * n_lanes] : T(0);
    T* recent = p.recent.data() + s * (kRecent * kRecentFields);
    int r = 0;
    for (; r < kRecent; ++r, recent += kRecentFields) {
      if (t >= recent[0] && t <= recent[kHigh - kLow]) break;
    }
    if (r == kRecent) {
      samples[n_left++] = samples[i];
      continue;
    }
    for (int k = 0; k < kRecentFields; ++k) {
      const T current = fields[(kLow + k) * n_lanes];
      fields[(kLow + k) * n_lanes] = recent[k];
      recent[k] = current;
    }
    const T q = (t - fields[kCenter * n_lanes]) * fields[kScale * n_lanes];
    T value = fields[(kSeries + kDegree) * n_lanes];
#pragma GCC unroll 8
    for (int k = kDegree - 1; k >= 0; --k) value = value * q + fields[(kSeries + k) * n_lanes];
    fields[(kLoss + side) * n_lanes] = value;
    add_sample(p, samples[i], value - fields[(kLoss + 1 - side) * n_lanes]);
  }
  return n_left;
}

// Takes the last trial of a weight back, which read a column of the inputs, for one tile.
template <class T>
MODFAST_LANE void undo_tile(Pruning<T>& p, int64_t column, int64_t tile) {
  const int64_t* entries = p.entries(column, tile);
  for (int64_t e = entries[0]; e < entries[1]; ++e) p.side[p.columns.index[e]] ^= 1;
}

template <class T>
void pruning_undo(Pruning<T>& p, int64_t column, PruningPart<T> part) {
  for (int64_t tile = part.begin; tile < part.end; ++tile) undo_tile(p, column, tile);
}

// What a trial does to one tile if the unit is no class, but for samples that leave their series: these go to
// `outside`. Where their list ends then.
template <class T>
MODFAST_LANE int32_t* try_unit(Pruning<T>& p, PruningVisit<T> visit, int64_t tile, int32_t* outside) {
  using V = Lanes<T>;
  constexpr int64_t n_lanes = kLanes<T>;
  const int64_t* entries = p.entries(visit.column, tile);
  Lanes<double> sums[2] = {};
  for (int64_t e = entries[0]; e < entries[1]; ++e) {
    const int32_t b = p.columns.index[e];
    T* block = p.fields.data() + b * (kPruningFields * n_lanes);
    const auto field = [&](int k) { return load_lanes(block + k * n_lanes); };
    const int before = p.side[b], side = p.side[b] = 1 - before;
    const V now = field(kNow + before), loss = field(kLoss + before);
    const V moved = now - load_lanes(p.columns.value.data() + e * n_lanes) * visit.weight;
    store_lanes(block + (kNow + side) * n_lanes, moved);
    const Mask<T> counts = larger(now, moved) > V{};
    if (!any(counts)) {  // off, and stays so
      store_lanes(block + (kLoss + side) * n_lanes, loss);
      continue;
    }
    const V u = larger(moved, V{}), q = (u - field(kCenter)) * field(kScale);
    V value = field(kSeries + kDegree);
#pragma GCC unroll 8
    for (int k = kDegree - 1; k >= 0; --k) value = value * q + field(kSeries + k);
    const Mask<T> leaves = ((u < field(kLow)) | (u > field(kHigh))) & counts;
    if (any(leaves)) {
      for (uint32_t left = bits<T>(leaves); left != 0; left &= left - 1) {
        *outside++ = static_cast<int32_t>(b * n_lanes + __builtin_ctz(left));
      }
      value = leaves ? loss : value;
    }
    value = counts ? value : loss;
    store_lanes(block + (kLoss + side) * n_lanes, value);
    add_wide<T>(sums, value - loss);
  }
  store_sums(p, tile, sums);
  return outside;
}

// Sets a weight to 0 for the tiles of a part, after it has taken the last trial back if need be: kNow and
// kLoss, and by how much the losses' sums rise; of a class, what they are then.
template <class T>
void pruning_trial(Pruning<T>& p, PruningVisit<T> visit, PruningPart<T> part) {
  constexpr int64_t n_lanes = kLanes<T>;
  int32_t* outside = part.samples;
  for (int64_t tile = part.begin; tile < part.end; ++tile) {
    if (visit.undone >= 0) undo_tile(p, visit.undone, tile);
    if (p.is_last()) {
      try_class(p, visit, tile);
    } else {
      outside = try_unit(p, visit, tile, outside);
    }
  }
  const int64_t n = recall(p, part.samples, outside - part.samples);
  for (int64_t i = 0; i < n; i += n_lanes) {
    build_series(p, visit.row, part.samples + i, n - i < n_lanes ? static_cast<int>(n - i) : n_lanes, part.work);
  }
}

template <class T>
constexpr PruningKernels<T> kernels_of = {
    kLanes<T>,           kGroup,             pruning_columns<T>, pruning_start<T>,
    pruning_advance<T>,  pruning_losses<T>,  pruning_fill_row<T>, pruning_settle<T>,
    pruning_open<T>,     pruning_trial<T>,   pruning_undo<T>,
};

constexpr BothPruningKernels kernels = {kernels_of<float>, kernels_of<double>};
