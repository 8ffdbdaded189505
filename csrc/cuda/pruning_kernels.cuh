// Kernels of the greedy pruning of a layer. Device code only; no torch header.
//
// What a visit decides is what the next one starts from, so that one block goes through the visits of a
// group of samples, as long as they are of one unit; the groups' blocks know nothing of each other. A
// thread has the same samples throughout. Mostly it only evaluates their series (math/pruning.h), for which
// it needs nobody; of a sample that has left its series its warp makes another, which takes the layers
// after, together. Between units every sample gets a warp of the whole device, to run through the layers.
#pragma once

#include <limits>

#include "pruning_layers.cuh"

namespace modfast {

// A group is one multiprocessor's: threads that hide each other's waiting, as many as leave each the
// registers that making a series takes.
template <class T>
constexpr int kVisitThreads = sizeof(T) == sizeof(float) ? 512 : 256;
template <class T>
constexpr int kVisitWarps = kVisitThreads<T> / 32;

template <class T>
constexpr T kLeastNormal = std::numeric_limits<T>::min();

// ---- one sample, by a warp

// The functions of one number, for series_reach.
template <class T>
struct Functions {
  static __device__ __forceinline__ T all(T x) { return x; }
  static __device__ __forceinline__ T log(T x) { return std::log(x); }
  static __device__ __forceinline__ T exp(T x) { return std::exp(x); }
  static __device__ __forceinline__ T smaller(T a, T b) { return std::fmin(a, b); }
  static __device__ __forceinline__ T larger(T a, T b) { return std::fmax(a, b); }
};

// What a warp finds out about a sample whose unit `row` has output t >= 0: how far the layers after change from
// what their values say, and their slopes in t. Of the last layer they stay in `change` and `slope`. Until
// which t, below and above, no ReLU switches is of the lane's own units.
template <class T>
struct Following {
  T *change, *slope;
  T low, high;

  __device__ __forceinline__ Following(const Pruning<T>& p, int64_t group, int64_t row, int64_t s, T t,
                                       T* work)
      : change(work), slope(work + p.n_widest) {
    T *next_change = slope + p.n_widest, *next_slope = next_change + p.n_widest;
    const T moved = t - larger(p.layers[0].value(s, row), T(0));
    low = 0;
    high = INFINITY;
    const PruningLayer<T>& reader = p.layers[1];
    const T* weight = reader.weight + (group * reader.n_in + row) * reader.n_out;
    WarpClasses{reader.n_out}.each([&](int64_t k) {
      change[k] = moved * weight[k];
      slope[k] = weight[k];
    });
    for (int64_t m = 1; m + 1 < p.n_layers; ++m) {
      const PruningLayer<T>&layer = p.layers[m], &next = p.layers[m + 1];
      WarpClasses{layer.n_out}.each([&](int64_t k) {
        const T h = layer.value(s, k), v = h + change[k], by = slope[k];
        if (by != 0) {
          const T crossing = t - v / by;
          if ((by < 0) == (v > 0)) {
            high = std::fmin(high, crossing);
          } else {
            low = std::fmax(low, crossing);
          }
        }
        change[k] = larger(v, T(0)) - larger(h, T(0));
        slope[k] = v > 0 ? by : T(0);
      });
      __syncwarp();
      WarpClasses{next.n_out}.each([&](int64_t r) {
        const T* of_output = next.weight + group * next.n_in * next.n_out + r;
        T sums[2] = {};
        for (int64_t k = 0; k < next.n_in; ++k) {
          sums[0] += change[k] * of_output[k * next.n_out];
          sums[1] += slope[k] * of_output[k * next.n_out];
        }
        next_change[r] = sums[0];
        next_slope[r] = sums[1];
      });
      T *const free_change = change, *const free_slope = slope;
      change = next_change, slope = next_slope;
      next_change = free_change, next_slope = free_slope;
    }
  }
};

// Makes a series of a sample around t, the first of its series. The loss at t.
template <class T>
__device__ __forceinline__ T build_series(const Pruning<T>& p, int64_t group, int64_t row, int64_t s, T t,
                                          T* work) {
  // Of the sample before, other lanes may still be reading `work`; of this one, its series.
  __syncwarp();
  const Following<T> found(p, group, row, s, t, work);
  T *const logits = found.change, *const slopes = found.slope;
  const PruningLayer<T>& last = p.layers[p.n_layers - 1];
  const WarpClasses classes{last.n_out};
  const int64_t target = p.targets[s];
  T ends[5] = {found.low, -found.high, -INFINITY, -INFINITY, -INFINITY};
  T of_target[1] = {};
  classes.each([&](int64_t c) {
    const T z = logits[c] += last.value(s, c);
    ends[2] = larger(ends[2], z);
    ends[3] = larger(ends[3], -slopes[c]);
    ends[4] = larger(ends[4], slopes[c]);
    of_target[0] += c == target ? slopes[c] : T(0);
  });
  classes.merge(ends, Largest{});
  classes.merge(of_target, Sum{});
  const T range = ends[4] + ends[3];
  // A range whose inverse overflows moves no loss.
  const bool flat = range <= kLeastNormal<T>;
  const T inverse = flat ? T(0) : 1 / range;
  T sums[2] = {};  // of classes other than the target, and of the slopes
  const Exponentials<T> exps = exponentials<T>(
      classes, ends[2], target, [&](int64_t c) { return logits[c]; },
      [&](int64_t c, T e) {
        const T r = (slopes[c] - of_target[0]) * inverse;
        sums[0] += c == target ? T(0) : e;
        sums[1] += e * r;
        logits[c] = e;
        slopes[c] = r;
      });
  classes.merge(sums, Sum{});
  const T share = 1 / exps.total, mean = sums[1] * share;
  T from_second[kDegree - 1] = {};
  classes.each([&](int64_t c) {
    const T d = slopes[c] - mean;
    T term = logits[c] * share * d;
#pragma unroll
    for (int k = 0; k < kDegree - 1; ++k) from_second[k] += term *= d;
  });
  classes.merge(from_second, Sum{});
  T moments[kDegree + 1] = {}, series[kDegree];
#pragma unroll
  for (int k = 2; k <= kDegree; ++k) moments[k] = from_second[k - 2];
  cumulant_series<T>(mean, moments, series);

  const T reach = series_reach<Functions<T>, T, T>(sums[0] * share) / range;
  T fields[kPruningFields];
  fields[kLow] = larger(ends[0], t - reach);
  fields[kHigh] = std::fmin(-ends[1], t + reach);
  fields[kCenter] = t;
  fields[kScale] = flat ? T(0) : range;
  fields[kSeries] = exps.loss;
#pragma unroll
  for (int k = 0; k < kDegree; ++k) fields[kSeries + 1 + k] = series[k];
  // A lane moves a field, chosen with constants as indices, which registers need.
  const int lane = threadIdx.x % 32;
  T mine = 0;
#pragma unroll
  for (int k = 0; k < kPruningFields; ++k) mine = k == lane ? fields[k] : mine;
  if (lane < kPruningFields) {
    const int64_t step = kPruningFields * p.n_samples;
    T* place = p.series + lane * p.n_samples + s;
#pragma unroll
    for (int r = kRecent - 1; r > 0; --r) place[r * step] = place[(r - 1) * step];
    place[0] = mine;
  }
  return exps.loss;
}

// ---- one sample, by its thread

template <class T>
__device__ __forceinline__ T softplus(T x) {
  return larger(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}

// The series of a sample, of which the first that holds is used.
template <class T, bool kLast>
struct SampleSeries {
  const Pruning<T>& p;
  int64_t s;

  __device__ __forceinline__ T& at(int r, int field) const {
    return p.series[(r * kPruningFields + field) * p.n_samples + s];
  }

  // Before the visits of unit `row`, whose pre-activation is taken over. For a class the loss is softplus(t -
  // o) + o - z_target, with o the log-sum-exp of the others' logits z; softplus(o - t) if it is the target.
  __device__ __forceinline__ void open(int64_t row) const {
    const PruningLayer<T>& own = p.layers[0];
    p.now[s] = own.value(s, row);
    if constexpr (!kLast) {
#pragma unroll
      for (int r = 0; r < kRecent; ++r) at(r, kLow) = INFINITY;
    } else {
      T largest = -INFINITY, total = 0;
      for (int64_t c = 0; c < own.n_out; ++c) largest = c == row ? largest : larger(largest, own.value(s, c));
      for (int64_t c = 0; c < own.n_out; ++c) total += c == row ? T(0) : std::exp(own.value(s, c) - largest);
      const T others = own.n_out == 1 ? largest : largest + std::log(total);
      const bool is_target = p.targets[s] == row;
      at(0, kCenter) = others;
      at(0, kScale) = is_target ? -1 : 1;
      at(0, kSeries) = is_target ? T(0) : others - own.value(s, p.targets[s]);
      p.loss[s] = of_class(p.now[s]);
    }
  }

  __device__ __forceinline__ T of_class(T t) const {
    return softplus((t - at(0, kCenter)) * at(0, kScale)) + at(0, kSeries);
  }

  // The loss at a unit's output t, or at a class's logit; false where no series says it.
  __device__ __forceinline__ bool evaluate(T t, T& loss) const {
    if constexpr (kLast) {
      loss = of_class(t);
      return true;
    } else {
      for (int r = 0; r < kRecent; ++r) {
        if (!(t >= at(r, kLow) && t <= at(r, kHigh))) continue;
        const T q = (t - at(r, kCenter)) * at(r, kScale);
        loss = at(r, kSeries + kDegree);
#pragma unroll
        for (int k = kDegree - 1; k >= 0; --k) loss = loss * q + at(r, kSeries + k);
        return true;
      }
      return false;
    }
  }
};

// ---- the visits

// The sum over the warps that have samples, for all threads alike, always in the same order. `sums` takes
// turns, so that none is written that another thread has yet to read.
template <int kMost>
struct BlockSum {
  double (*sums)[kMost];
  int turn = 0;

  __device__ __forceinline__ double operator()(double mine, int64_t n_samples) {
    const int warp = threadIdx.x / 32;
    const int n_warps = n_samples < 32 * kMost ? static_cast<int>(n_samples + 31) / 32 : kMost;
    turn ^= 1;
    if (warp < n_warps) {
      double sum[1] = {mine};
      WarpClasses{32}.merge(sum, Sum{});
      if (threadIdx.x % 32 == 0) sums[turn][warp] = sum[0];
    }
    __syncthreads();
    double sum = 0.0;
    for (int w = 0; w < n_warps; ++w) sum += sums[turn][w];
    return sum;
  }
};

// Visits [first, end) of the order, which are of unit `row` and of no weight twice. A block takes a group.
template <class T, bool kLast>
__global__ void __launch_bounds__(kVisitThreads<T>, 1)
    visit_unit(const __grid_constant__ Pruning<T> p, int64_t row, int64_t first, int64_t end) {
  constexpr int kStep = kVisitThreads<T>, kWarpsHere = kVisitWarps<T>;
  __shared__ double sums[2][kWarpsHere];
  DYN_SMEM(T, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T* work = p.work == nullptr ? shared : p.work + blockIdx.x * kWarpsHere * kPruningWork * p.n_widest;
  work += warp * kPruningWork * p.n_widest;
  const int64_t n_out = p.layers[0].n_out, n_in = p.layers[0].n_in;
  BlockSum<kWarpsHere> sum_up{sums};
  for (int64_t group = blockIdx.x; group < p.n_groups; group += gridDim.x) {
    const int64_t begin = p.begins[group], n = p.begins[group + 1] - begin;
    T* const weights = p.weight + group * n_out * n_in;
    double* const margins = p.margins + group * p.n_visits;
    double* const losses = p.losses + group * (p.n_visits + 1);
    const bool has_effect = kLast || p.read[group * n_out + row];
    double mine = 0.0;
    for (int64_t s = begin + threadIdx.x; s < begin + n; s += kStep) {
      mine += p.loss[s];
      SampleSeries<T, kLast>{p, s}.open(row);
    }
    double running = sum_up(mine, n) / static_cast<double>(n);
    if (threadIdx.x == 0 && first == 0) losses[0] = running;
    bool changed = false;
    // A visit's weight is read a visit before, as the wait is long.
    const auto weight_of = [&](int64_t v) { return v < end ? weights[p.order[v]] : T(0); };
    T w = weight_of(first);
    for (int64_t v = first; v < end; ++v) {
      const int64_t at = p.order[v];
      const T* column = p.columns + (at - row * n_in) * p.n_samples;
      const T next_weight = weight_of(v + 1);
      const bool moves = w != 0 && has_effect;
      double rise = 0.0;
      if (moves) {
        mine = 0.0;
        // All of a warp go through the same samples, of which it makes series together.
        for (int64_t s = begin + threadIdx.x; s - lane < begin + n; s += kStep) {
          const T x = s < begin + n ? __ldg(column + s) : T(0);
          const SampleSeries<T, kLast> series{p, s};
          T t = 0, value = 0, before = 0;
          bool outside = false;
          if (x != 0) {
            const T now = p.now[s];
            t = now - x * w;
            value = before = p.loss[s];
            // Else it is off, and stays so; a class never is.
            const bool counts = kLast || now > 0 || t > 0;
            if constexpr (!kLast) t = larger(t, T(0));
            if (counts) outside = !series.evaluate(t, value);
          }
          if constexpr (!kLast) {
            for (unsigned left = __ballot_sync(0xffffffffu, outside); left != 0; left &= left - 1) {
              const int from = __ffs(static_cast<int>(left)) - 1;
              const T there = __shfl_sync(0xffffffffu, t, from);
              const T found = build_series(p, group, row, s - lane + from, there, work);
              if (lane == from) value = found;
            }
          }
          if (x != 0) p.next[s] = value;
          mine += static_cast<double>(value) - static_cast<double>(before);
        }
        rise = sum_up(mine, n) / static_cast<double>(n);
      }
      const double above = p.original == nullptr ? 0.0 : running - p.original[group];
      const double margin = above + rise - p.threshold;
      if (moves && !(margin > 0.0)) {
        for (int64_t s = begin + threadIdx.x; s < begin + n; s += kStep) {
          const T x = __ldg(column + s);
          if (x == 0) continue;
          p.now[s] -= x * w;
          p.loss[s] = p.next[s];
        }
        running += rise;
        changed = true;
        if (threadIdx.x == 0) weights[at] = 0;
      }
      if (threadIdx.x == 0) {
        margins[v] = margin;
        losses[v + 1] = running;
      }
      w = next_weight;
    }
    if (threadIdx.x == 0) p.changed[group] = changed;
  }
}

}  // namespace modfast
