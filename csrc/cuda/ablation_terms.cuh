// What an ablation does to one sample, by one thread or by several. Device code only; no torch header.
#pragma once

#include <cmath>

#include "../math/ablation.h"
#include "classes.cuh"

namespace modfast {

// Blocks that a multiprocessor's registers must hold.
template <class T>
constexpr int kBlocks = sizeof(T) == sizeof(float) ? 2 : 1;

// ---- functions

template <class T>
struct Exponent;
template <>
struct Exponent<float> {
  using Bits = uint32_t;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int digits = 23, bias = 127, order = 7;
  static constexpr double last = 1.0 / 5040.0;  // 1 / order!
};
template <>
struct Exponent<double> {
  using Bits = uint64_t;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double shift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int digits = 52, bias = 1023, order = 13;
  static constexpr double last = 1.0 / 6227020800.0;
};

// e^x - 1 - x for |x| <= kFar, to 20 units in the last place: with x = k ln2 + f it is
// 2^k (e^f - 1 - f) + (2^k - 1)(1 + f) - k ln2.
template <class T>
__device__ __forceinline__ T exp_excess(T x) {
  using E = Exponent<T>;
  using Bits = typename E::Bits;
  const T shifted = x * T(1.4426950408889634) + E::shift;
  const T k = shifted - E::shift;
  const T f = (x - k * E::ln2_high) - k * E::ln2_low;
  // The lowest bits of `shifted` are k.
  const T power = bit_cast<T>((bit_cast<Bits>(shifted) << E::digits) + (Bits{E::bias} << E::digits));
  // 1/2! + f/3! + f^2/4! + ...
  double coefficient = E::last;
  T sum = T(coefficient);
#pragma unroll
  for (int i = E::order; i > 2; --i) sum = sum * f + T(coefficient *= i);
  const T rest = f * f * sum;
  return power * rest + ((power - 1) * (1 + f) - k * (E::ln2_high + E::ln2_low));
}

// 1 / (1 + e^-x), by e^-|x|, which cannot overflow.
template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  const T e = std::exp(-std::abs(x));
  return (x < 0 ? e : T(1)) / (1 + e);
}

// All but ReLU, which is not needed by itself.
template <class T>
__device__ __forceinline__ T activate(Activation kind, T x) {
  switch (kind) {
    case Activation::tanh: return std::tanh(x);
    case Activation::sigmoid: return sigmoid(x);
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return x * (T(0.5) + T(0.5) * std::erf(x * T(0.70710678118654752)));
    // x (1 + tanh y) / 2 = x sigmoid(2y)
    case Activation::gelu_tanh:
      return x * sigmoid(T(1.5957691216057308) * (x + T(0.044715) * x * x * x));
    default: return x;
  }
}

// A hidden unit before an ablation: its pre-activation h and act(h); for ReLU min(h, 0) and
// -max(h, 0), since max(h + u, 0) - max(h, 0) = max(min(h, 0) + u, -max(h, 0)).
template <class T>
struct alignas(2 * sizeof(T)) Unit {
  T at, before;
};

template <class T>
__device__ __forceinline__ Unit<T> unit_of(Activation kind, T h) {
  if (kind == Activation::relu) return Unit<T>{-larger(-h, T(0)), -larger(h, T(0))};
  return Unit<T>{h, activate(kind, h)};
}

// How the unit changes by a change of its pre-activation.
template <class T>
__device__ __forceinline__ T changed(Activation kind, Unit<T> unit, T change) {
  const T moved = unit.at + change;
  if (kind == Activation::relu) return larger(moved, unit.before);
  // A fused multiply-add of the activation's last product would make something of nothing.
  return moved == unit.at ? T(0) : activate(kind, moved) - unit.before;
}

// ---- one sample

// Of a class before any ablation.
template <class T>
struct alignas(2 * sizeof(T)) Share {
  T p, log_p;
};

// Row-major matrices.
template <class T>
struct Sweep {
  const T* logits;               // [n_samples, n_classes]
  const T* scales;               // [n_samples, n_ablations]
  const int64_t* targets;        // [n_samples], if any
  Share<T>* shares;              // [n_samples, stride], after the last class with its log p and p = 0
  T* entropies;                  // [n_samples]
  double* terms;                 // [tiles, n_terms, n_ablations], or [n_terms, n_samples, n_ablations]
  unsigned long long* classes;   // correct samples [n_ablations, n_classes], with targets
  int64_t n_samples, n_ablations, n_classes, stride;
  int n_terms;                   // 3, or with targets all
  bool per_sample;

  __device__ __forceinline__ int64_t target(int64_t n) const {
    return targets != nullptr ? __ldg(targets + n) : -1;
  }
  __device__ __forceinline__ bool is_class(int64_t c) const { return c >= 0 && c < n_classes; }
};

template <class T>
struct Found {
  T terms[kMostTerms];
};

// The terms of kAblations ablations of sample n, which change the logit of class c by change(c, k).
template <int kAblations, class T, class Classes, class Change>
__device__ __forceinline__ void ablation_terms(const Sweep<T>& sweep, int64_t n, const Classes& classes,
                                               const Change& change, Found<T> (&found)[kAblations]) {
  constexpr int K = kAblations;
  using Index = typename Classes::Index;
  const Share<T>* shares = sweep.shares + n * sweep.stride;
  const T entropy = sweep.entropies[n];
  const bool known = sweep.is_class(sweep.target(n));
  const Index target = known ? static_cast<Index>(sweep.target(n)) : -1;
  T mean[K] = {}, ends[2 * K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    ends[k] = change(0, k);
    ends[K + k] = -ends[k];
  }
  classes.each([&](Index c) {
    const T p = shares[c].p;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const T r = change(c, k);
      mean[k] += p * r;
      ends[k] = larger(ends[k], r);
      ends[K + k] = larger(ends[K + k], -r);
    }
  });
  classes.merge(mean, Sum{});
  classes.merge(ends, Largest{});
  T own[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    own[k] = known ? classes.template at<T>(target, [&](Index c) { return shares[c].log_p + change(c, k); })
                   : T(INFINITY);
  }
  T sums[4 * K] = {};  // excess, second, first, and whether a class comes before the target
  bool wrong[K] = {};
  classes.each([&](Index c) {
    const Share<T> share = shares[c];
    const T centered = share.p * (share.log_p + entropy);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const T r = change(c, k), x = r - mean[k], g = exp_excess(x), moved = x + g, w = share.log_p + r;
      sums[k] += share.p * g;
      sums[K + k] += share.p * x * moved;
      sums[2 * K + k] += centered * moved;
      wrong[k] |= c < target ? w >= own[k] : w > own[k];
    }
  });
#pragma unroll
  for (int k = 0; k < K; ++k) sums[3 * K + k] = wrong[k] ? 1 : 0;
  classes.merge(sums, Sum{});
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const T share = 1 / (1 + sums[k]);
    AblationTerms<T> terms =
        near_terms<T>(mean[k], share, sums[K + k], sums[2 * K + k], std::log1p(sums[k]));
    if (ends[k] + ends[K + k] > kFar) {
      T largest[1] = {shares[0].log_p + change(0, k)};
      classes.each([&](Index c) { largest[0] = larger(largest[0], shares[c].log_p + change(c, k)); });
      classes.merge(largest, Largest{});
      T parts[3] = {};  // total, before, after
      classes.each([&](Index c) {
        const T log_p = shares[c].log_p, w = log_p + change(c, k) - largest[0];
        const T e = c < sweep.n_classes ? std::exp(w) : T(0);
        parts[0] += e;
        parts[1] += e * log_p;
        parts[2] += e * w;
      });
      classes.merge(parts, Sum{});
      terms = far_terms<T>(mean[k], entropy, largest[0], parts[0], std::log(parts[0]), parts[1], parts[2]);
    }
    // Only rounding goes below 0. Of a target that is no class the loss is no number.
    found[k] = Found<T>{{terms.entropy_difference, larger(terms.kl_ablated_original, T(0)),
                         larger(terms.kl_original_ablated, T(0)), known ? terms.log_sum - own[k] : T(NAN),
                         known && sums[3 * K + k] == 0 ? T(1) : T(0)}};
  }
}

// Keeps what was found of sample n and ablation a, but for sums.
template <class T>
__device__ __forceinline__ void keep(const Sweep<T>& sweep, int64_t n, int64_t a, const Found<T>& found) {
  if (sweep.per_sample) {
#pragma unroll
    for (int k = 0; k < kMostTerms; ++k) {
      if (k < sweep.n_terms) sweep.terms[(k * sweep.n_samples + n) * sweep.n_ablations + a] = found.terms[k];
    }
  }
  if (sweep.n_terms == kMostTerms && found.terms[4] != 0) {
    atomicAdd(sweep.classes + a * sweep.n_classes + sweep.target(n), 1ull);
  }
}

}  // namespace modfast
