// What ablations that give whole logits do. Device code only; no torch header.
//
// Bound by memory or arithmetic alike: each logit is read once, and costs some 60 operations. A thread goes
// through its classes by kItems at a time and keeps of those that it has had one `Part`; at the end of a row
// the threads' parts become one. No memory depends on the number of classes.
#pragma once

#include "../math/number.h"
#include "ablation_kernels.cuh"

namespace modfast {

// Of some classes of a sample and how their logits z change by r: `top` is the largest z, `total` the sum of
// e^(z - top). The others are means by these weights: `log` of z - top, `mean` + `rest` of r, and with x = r
// less that and g = e^x - 1 - x `excess` of g, `second` of x (x + g), `first` of (z - top - log) (x + g).
// `rest` is what a number as large as `mean` cannot tell.
template <class T>
struct Part {
  T top, total, log, mean, rest, excess, second, first;

  // The same of another lane.
  __device__ __forceinline__ Part of_lane(unsigned mask, int offset) const {
    return Part{__shfl_xor_sync(mask, top, offset),    __shfl_xor_sync(mask, total, offset),
                __shfl_xor_sync(mask, log, offset),    __shfl_xor_sync(mask, mean, offset),
                __shfl_xor_sync(mask, rest, offset),   __shfl_xor_sync(mask, excess, offset),
                __shfl_xor_sync(mask, second, offset), __shfl_xor_sync(mask, first, offset)};
  }
};

// What a part adds to the means of a whole, which its mean r and z - top exceed by d and `above`: with
// t = e^d - 1, e^(x + d) - 1 = (1 + t) (e^x - 1) + t.
template <class T>
__device__ __forceinline__ void add_part(const Part<T>& part, T share, T d, T above, Part<T>& whole) {
  // Not as 1 + t, of which nothing is left where it is small.
  const T by = std::exp(d), beyond = exp_excess(d), grown = by * part.excess, moved = grown + (d + beyond);
  whole.excess += share * (grown + beyond);
  whole.second += share * (by * part.second + d * moved);
  whole.first += share * (by * part.first + above * moved);
}

template <class T>
__device__ __forceinline__ Part<T> joined(const Part<T>& a, const Part<T>& b) {
  if (a.total == 0) return b;
  if (b.total == 0) return a;
  const T top = larger(a.top, b.top), weight = a.total * std::exp(a.top - top);
  const T other = b.total * std::exp(b.top - top), total = weight + other;
  const T of_a = weight / total, of_b = other / total;
  const T by = (b.mean - a.mean) + (b.rest - a.rest), above = (b.log - a.log) + (b.top - a.top);
  Part<T> whole{top, total, a.log + (a.top - top) + of_b * above, a.mean, a.rest + of_b * by, 0, 0, 0};
  add_part(a, of_a, -of_b * by, -of_b * above, whole);
  add_part(b, of_b, of_a * by, of_a * above, whole);
  return whole;
}

// Of the parts of all threads of a team, for all of them alike.
template <int kTeam, class T>
__device__ __forceinline__ Part<T> joined_team(Part<T> part) {
  constexpr int kLanes = TeamClasses<kTeam>::kLanes;
  const unsigned mask = (0xffffffffu >> (32 - kLanes)) << (threadIdx.x % 32 / kLanes * kLanes);
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    const Part<T> other = part.of_lane(mask, offset);
    // In one order, so that both lanes find the same bits.
    Part<T> low = part, high = other;
    if ((threadIdx.x & offset) != 0) {
      low = other;
      high = part;
    }
    part = joined(low, high);
  }
  if constexpr (kTeam > 32) {
    __shared__ Part<T> of_warp[kWarps];
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = part;
    __syncthreads();
    part = of_warp[0];
    for (int warp = 1; warp < kWarps; ++warp) part = joined(part, of_warp[warp]);
    // No barrier here: the row's bounds are merged before the next parts are.
  }
  return part;
}

constexpr int kItems = 8;

// A row's logits before and after an ablation.
template <class S>
struct Rows {
  const S* z;
  const S* w;
  int64_t n;
};

// The terms of one ablation of one sample, of which `target` is a class or -1.
template <int kTeam, class S, class T = compute_t<S>>
__device__ __forceinline__ Found<T> row_terms(const Rows<S>& row, int64_t target) {
  const TeamClasses<kTeam> classes{row.n};
  const T own = target >= 0 ? load(row.w[target]) : T(INFINITY);
  Part<T> part{};
  T ends[3] = {-T(INFINITY), -T(INFINITY), 0};  // largest r, largest -r, whether a class comes before the target
  for (int64_t first = classes.rank(); first < row.n; first += kItems * kTeam) {
    T z[kItems], r[kItems], e[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t c = first + i * kTeam;
      const bool is_class = i == 0 || c < row.n;
      // Beyond the last class the thread's first is repeated, without weight.
      z[i] = load(row.z[is_class ? c : first]);
      const T w = load(row.w[is_class ? c : first]);
      r[i] = w - z[i];
      e[i] = is_class ? T(1) : T(0);
      if (is_class && (c < target ? w >= own : w > own)) ends[2] = 1;
      ends[0] = larger(ends[0], r[i]);
      ends[1] = larger(ends[1], -r[i]);
    }
    Part<T> some{z[0], 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
    for (int i = 1; i < kItems; ++i) some.top = larger(some.top, z[i]);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      z[i] -= some.top;
      e[i] *= std::exp(z[i]);
      some.total += e[i];
      some.log += e[i] * z[i];
      some.mean += e[i] * r[i];
    }
    const T share = 1 / some.total;
    some.log *= share;
    some.mean *= share;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const T x = r[i] - some.mean, g = exp_excess(x), moved = x + g, p = e[i] * share;
      some.rest += p * x;
      some.excess += p * g;
      some.second += p * x * moved;
      some.first += p * (z[i] - some.log) * moved;
    }
    // From about `mean` to about all of it.
    const T less = std::exp(-some.rest);
    some.second = less * (some.second - some.rest * (some.rest + some.excess));
    some.excess = less * (some.excess - some.rest * some.rest / 2);
    some.first *= less;
    part = joined(part, some);
  }
  part = joined_team<kTeam>(part);
  classes.merge(ends, Largest{});
  const T mean = part.mean + part.rest, log_total = std::log(part.total), share = 1 / (1 + part.excess);
  const auto log_p = [&](int64_t c) { return load(row.z[c]) - part.top - log_total; };
  const auto moved = [&](int64_t c) { return log_p(c) + (load(row.w[c]) - load(row.z[c])); };
  AblationTerms<T> terms =
      near_terms<T>(mean, share, part.second, part.first, std::log1p(part.excess));
  if (!(ends[0] + ends[1] <= kFar)) {
    T largest[1] = {moved(0)};
    classes.each([&](int64_t c) { largest[0] = larger(largest[0], moved(c)); });
    classes.merge(largest, Largest{});
    T parts[3] = {};  // total, before, after
    classes.each([&](int64_t c) {
      const T w = moved(c) - largest[0], e = std::exp(w);
      parts[0] += e;
      parts[1] += e * log_p(c);
      parts[2] += e * w;
    });
    classes.merge(parts, Sum{});
    terms = far_terms<T>(mean, log_total - part.log, largest[0], parts[0], std::log(parts[0]), parts[1],
                         parts[2]);
  }
  const bool known = target >= 0;
  // Only rounding goes below 0. Of a target that is no class the loss is no number.
  return Found<T>{{terms.entropy_difference,
                   terms.kl_ablated_original < 0 ? T(0) : terms.kl_ablated_original,
                   terms.kl_original_ablated < 0 ? T(0) : terms.kl_original_ablated,
                   known ? terms.log_sum - moved(target) : T(NAN), known && ends[2] == 0 ? T(1) : T(0)}};
}

// logits [n_samples, n_classes], ablated [n_ablations, n_samples, n_classes]. A team takes a tile of samples
// of one ablation.
template <class S, int kTeam>
__global__ void __launch_bounds__(kThreads, kBlocks<compute_t<S>>)
    whole_logits(const __grid_constant__ Sweep<compute_t<S>> sweep, const S* logits, const S* ablated) {
  using T = compute_t<S>;
  constexpr int kTeams = kThreads / kTeam;
  const TeamClasses<kTeam> classes{sweep.n_classes};
  const int64_t n_tiles = (sweep.n_samples + kTile<kTeam> - 1) / kTile<kTeam>;
  for (int64_t i = int64_t{blockIdx.x} * kTeams + threadIdx.x / kTeam; i < n_tiles * sweep.n_ablations;
       i += int64_t{gridDim.x} * kTeams) {
    const int64_t tile = i / sweep.n_ablations, a = i % sweep.n_ablations, begin = tile * kTile<kTeam>;
    const int64_t end = begin + kTile<kTeam> < sweep.n_samples ? begin + kTile<kTeam> : sweep.n_samples;
    double own[kMostTerms] = {};
    for (int64_t n = begin; n < end; ++n) {
      const int64_t target = sweep.is_class(sweep.target(n)) ? sweep.target(n) : -1;
      const Rows<S> row{logits + n * sweep.n_classes, ablated + (a * sweep.n_samples + n) * sweep.n_classes,
                        sweep.n_classes};
      const Found<T> found = row_terms<kTeam>(row, target);
      if (classes.rank() == 0) keep(sweep, n, a, found);
#pragma unroll
      for (int k = 0; k < kMostTerms; ++k) own[k] += found.terms[k];
    }
    if (classes.rank() == 0 && !sweep.per_sample) {
#pragma unroll
      for (int k = 0; k < kMostTerms; ++k) {
        if (k < sweep.n_terms) sweep.terms[(tile * sweep.n_terms + k) * sweep.n_ablations + a] = own[k];
      }
    }
  }
}

}  // namespace modfast
