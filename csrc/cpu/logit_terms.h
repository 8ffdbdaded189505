// What ablations that give whole logits do, as the kernels see it.
#pragma once

#include "../math/ablation.h"
#include "../math/number.h"

namespace modfast {

// Row-major, of one element type.
struct LogitTerms {
  const void* logits;      // [n_samples, n_classes]
  const void* ablated;     // [n_ablations, n_samples, n_classes]
  const int64_t* targets;  // [n_samples], if any
  int64_t n_samples, n_ablations, n_classes;
  int n_terms;  // 3, or with targets all

  bool has_targets() const { return n_terms == kMostTerms; }
};

// For each element type.
struct LogitTermsKernels {
  // Bytes of a thread's workspace. It has a bound in the ablations, and some 1.6 for each class.
  int64_t (*workspace[4])(const LogitTerms&);
  // The terms of one sample's ablations, [n_ablations][kMostTerms].
  void (*sample[4])(const LogitTerms&, int64_t sample, void* workspace, double* terms);
};

}  // namespace modfast
