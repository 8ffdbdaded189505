// What an ablation does to one sample's class probabilities, from the change of its logits.
//
// With p the probabilities before, r the changes of the logits, m = sum p r and x = r - m:
//   q = p e^x / (1 + G),   G = sum p g(x),   g(x) = e^x - 1 - x,   since sum p x = 0;
//   KL(p | q) = log(1 + G),   KL(q | p) = sum p x (x + g) / (1 + G) - log(1 + G),
//   H(p) - H(q) = sum p (log p - sum p log p) (x + g) / (1 + G) + KL(q | p).
// All terms of a sum are of the order of the result, so that small divergences keep their digits,
// and a change of nothing gives exactly 0. That holds while e^x does not overflow; beyond kFar,
// the largest logit is taken out first, as a log-softmax does.
#pragma once

#include "portable.h"

namespace modfast {

// The range of a sample's changes from which on e^x is no longer taken of them as they are.
constexpr int kFar = 64;

// Entropy, both divergences and, with targets, loss and correctness.
constexpr int kMostTerms = 5;

template <class V>
struct AblationTerms {
  V entropy_difference;
  V kl_ablated_original;
  V kl_original_ablated;
  V log_sum;  // log sum p e^r: the loss of class c is log_sum - r_c - log p_c
};

// `share`: 1 / (1 + G); `second`: sum p x (x + g); `first`: sum p (log p - mean log p) (x + g).
template <class V>
MODFAST_BOTH AblationTerms<V> near_terms(V mean, V share, V second, V first, V log1p_excess) {
  const V after = second * share - log1p_excess;
  return {first * share + after, after, log1p_excess, log1p_excess + mean};
}

// Of logits w = log p + r and their largest: `total`: sum e^(w - largest); `before`, `after`: the sums
// of the same times log p, and times (w - largest). r itself, which may be huge, stays out of KL(q | p).
template <class V>
MODFAST_BOTH AblationTerms<V> far_terms(V mean, V entropy, V largest, V total, V log_total, V before,
                                        V after) {
  const V log_sum = largest + log_total, negative_entropy = after / total - log_total;
  return {entropy + negative_entropy, negative_entropy - before / total, log_sum - mean, log_sum};
}

enum class Activation : int { identity, relu, tanh, sigmoid, silu, gelu, gelu_tanh };
constexpr const char* kActivations[] = {"identity", "relu", "tanh",     "sigmoid",
                                        "silu",     "gelu", "gelu_tanh"};
constexpr int kNumActivations = 7;

}  // namespace modfast
