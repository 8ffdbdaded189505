// Pruning of a layer: what its kernels work on, and those that run samples through the layers. Device code
// only; no torch header.
#pragma once

#include "../math/pruning.h"
#include "classes.cuh"

namespace modfast {

// What is kept of a series: where it holds, and a polynomial in q = (output - center) * scale. Of a
// unit of the last layer, which is a class, the loss is softplus(q) + kSeries throughout.
enum PruningField : int { kLow, kHigh, kCenter, kScale, kSeries, kPruningFields = kSeries + kDegree + 1 };
// So many are kept of each sample, since a weight that is put back takes it back to an earlier one.
constexpr int kRecent = 3;
// Numbers that a warp keeps of each unit of a layer while it makes a series.
constexpr int kPruningWork = 4;

// The pruned layer, or one after it. Of 8-byte members only: it goes to the device as integers.
template <class T>
struct PruningLayer {
  int64_t n_out, n_in;
  const T* bias;  // [group][n_out]
  T* weight;      // [group][n_in][n_out], but for weights without effect; of the pruned layer elsewhere
  T* values;      // pre-activations, with the steps from a sample to the next, and a unit
  int64_t per_sample, per_unit;

  __device__ __forceinline__ T& value(int64_t sample, int64_t unit) const {
    return values[sample * per_sample + unit * per_unit];
  }
};

template <class T>
struct Pruning {
  int64_t n_samples, n_groups, n_layers, n_widest;
  const T* inputs;               // of the pruned layer, [sample][input]
  T* columns;                    // [input][sample]
  const int64_t* targets;        // by sample
  const int64_t* groups;         // by sample
  const int64_t* begins;         // the groups' first samples, and the end
  const PruningLayer<T>* layers;
  T* weight;                     // of the pruned layer, [group][n_out][n_in]
  const uint8_t* read;           // [group][n_out]: whether the unit has any effect; null if it is a class
  const int64_t* order;
  const double* original;        // by group, the losses over which to count, if not the running ones
  double threshold;
  double* margins;               // [group][visit]
  double* losses;                // [group][visit + 1]
  int64_t n_visits;
  uint8_t* changed;              // by group, whether the last unit visited has changed
  T *now, *loss, *next;          // by sample: the unit's pre-activation, the loss, and that on trial
  T* series;                     // [kRecent][kPruningFields][sample]
  T* work;                       // [block][warp][kPruningWork * n_widest], if not in shared memory
};

using WarpClasses = TeamClasses<32>;

__device__ __forceinline__ int64_t thread_index() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }
__device__ __forceinline__ int64_t thread_count() { return int64_t{gridDim.x} * kThreads; }

// ---- before the first visit

template <class T>
__global__ void __launch_bounds__(kThreads) copy_numbers(const T* from, int64_t n, T* to) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) to[i] = from[i];
}

// A layer's weight [group][n_out][n_in] as [group][n_in][n_out], with 0 where an output has no effect by
// `counts`, if given; whether each input then has one.
template <class T>
__global__ void __launch_bounds__(kThreads)
    turn_weight(const T* from, const uint8_t* counts, int64_t n_groups, int64_t n_out, int64_t n_in, T* to,
                uint8_t* read) {
  for (int64_t i = thread_index(); i < n_groups * n_in; i += thread_count()) {
    const int64_t group = i / n_in, k = i % n_in;
    bool any = false;
    for (int64_t r = group * n_out; r < (group + 1) * n_out; ++r) {
      const T w = counts == nullptr || counts[r] ? from[r * n_in + k] : T(0);
      to[i * n_out + r - group * n_out] = w;
      any |= w != 0;
    }
    read[i] = any;
  }
}

// The inputs column by column: a warp turns 32 columns of 32 samples, whose rows stay in the cache.
template <class T>
__global__ void __launch_bounds__(kThreads) turn_inputs(const __grid_constant__ Pruning<T> p) {
  const int64_t n_in = p.layers[0].n_in, n_across = (n_in + 31) / 32, n_down = (p.n_samples + 31) / 32;
  for (int64_t i = thread_index() / 32; i < n_across * n_down; i += thread_count() / 32) {
    const int64_t s = i / n_across * 32 + threadIdx.x % 32, first = i % n_across * 32;
    for (int64_t j = first; s < p.n_samples && j < first + 32 && j < n_in; ++j) {
      p.columns[j * p.n_samples + s] = p.inputs[s * n_in + j];
    }
  }
}

// ---- one sample, by a warp

template <class T>
struct Exponentials {
  T largest, total, loss;
};

// Of logits z(c): the sum of keep(c, e^(z - largest z)), and the loss of class `target`.
template <class T, class Logit, class Keep>
__device__ __forceinline__ Exponentials<T> exponentials(const WarpClasses& classes, T largest,
                                                        int64_t target, const Logit& z, const Keep& keep) {
  T sums[2] = {};  // total, and the target's alone
  classes.each([&](int64_t c) {
    const T d = z(c) - largest, e = std::exp(d);
    sums[0] += e;
    sums[1] += c == target ? d : T(0);
    keep(c, e);
  });
  classes.merge(sums, Sum{});
  return {largest, sums[0], std::log(sums[0]) - sums[1]};
}

// The pre-activations of units [first, end) of the pruned layer from its weights, those of all layers after
// from it, and the losses: of all groups, or those whose last visits have changed the unit. Whole sums, so
// that visits leave no rounding behind.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    settle(const __grid_constant__ Pruning<T> p, int64_t first, int64_t end, bool all) {
  const int lane = threadIdx.x % 32;
  for (int64_t s = thread_index() / 32; s < p.n_samples; s += thread_count() / 32) {
    const int64_t group = p.groups[s];
    if (!all && !p.changed[group]) continue;
    const PruningLayer<T>& own = p.layers[0];
    const T* x = p.inputs + s * own.n_in;
    for (int64_t row = first; row < end; ++row) {
      const T* weight = p.weight + (group * own.n_out + row) * own.n_in;
      T sum[1] = {};
      WarpClasses{own.n_in}.each([&](int64_t j) { sum[0] += x[j] * weight[j]; });
      WarpClasses{own.n_in}.merge(sum, Sum{});
      if (row % 32 == lane) own.value(s, row) = sum[0] + own.bias[group * own.n_out + row];
    }
    for (int64_t m = 1; m < p.n_layers; ++m) {
      const PruningLayer<T>&before = p.layers[m - 1], &after = p.layers[m];
      __syncwarp();
      WarpClasses{after.n_out}.each([&](int64_t r) {
        const T* weight = after.weight + group * after.n_in * after.n_out + r;
        T sum = 0;
        for (int64_t k = 0; k < after.n_in; ++k) {
          sum += larger(before.value(s, k), T(0)) * weight[k * after.n_out];
        }
        after.value(s, r) = sum + after.bias[group * after.n_out + r];
      });
    }
    // A lane reads the logits that it wrote.
    const PruningLayer<T>& last = p.layers[p.n_layers - 1];
    const WarpClasses classes{last.n_out};
    const auto z = [&](int64_t c) { return last.value(s, c); };
    T largest[1] = {-INFINITY};
    classes.each([&](int64_t c) { largest[0] = larger(largest[0], z(c)); });
    classes.merge(largest, Largest{});
    const T loss = exponentials<T>(classes, largest[0], p.targets[s], z, [](int64_t, T) {}).loss;
    if (lane == 0) p.loss[s] = loss;
  }
}

}  // namespace modfast
