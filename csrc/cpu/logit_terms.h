// What ablations that give whole logits do, as the kernels see it.
#pragma once

#include "../math/ablation.h"

namespace modfast {

// Row-major, of one element type, float or double.
struct LogitTerms {
  const void* logits;      // [n_samples, n_classes]
  const void* ablated;     // [n_ablations, n_samples, n_classes]
  const int64_t* targets;  // [n_samples], if any
  int64_t n_samples, n_ablations, n_classes;
  int n_terms;  // 3, or with targets all

  bool has_targets() const { return n_terms == kMostTerms; }
};

struct LogitTermsKernels {
  int lanes[2];  // float and double
  // The terms of one sample's ablations, [n_ablations][kMostTerms]; the workspace holds three values for
  // each class, of which there are as many as fill whole lanes.
  void (*sample[2])(const LogitTerms&, int64_t sample, void* workspace, double* terms);
};

}  // namespace modfast
