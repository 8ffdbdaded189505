// The ablation sweeps as their kernels see them.
#pragma once

#include "../math/ablation.h"

namespace modfast {

// Row-major matrices of one element type, float or double.
struct AblationSweep {
  const void* logits;      // [n_samples, n_classes]
  const void* scales;      // [n_samples, n_ablations]
  const void* updates;     // of the logits: [block of ablations][class][ablation of the block]; of a
                           // hidden layer: [n_ablations, n_hidden]
  const int64_t* targets;  // [n_samples], if any
  const void* hidden;      // [n_samples, n_hidden]
  const void* weight;      // packed by groups of classes
  void* prepared;
  int64_t n_samples, n_ablations, n_classes, n_hidden;
  Activation activation;
  bool per_sample;
  int n_terms;          // 3, or with targets all
  int64_t term_stride;  // from one term to the next

  bool has_targets() const { return n_terms == kMostTerms; }
};

// Samples [begin, end), whose sums go to `terms` [n_terms, n_ablations] (by sample: each sample's to
// a row of its own), and whose correct ones are counted in `classes` [n_classes, n_ablations], if any.
struct SampleTile {
  int64_t begin, end;
  double* terms;
  int32_t* classes;
};

struct AblationKernels {
  int block[2];  // samples of a block, float and double
  int groups[2];
  void (*prepare[2])(const AblationSweep&, int64_t, int64_t);
  void (*logits[2])(const AblationSweep&, SampleTile, int64_t);
  void (*hidden[2])(const AblationSweep&, SampleTile, int64_t, int64_t, void*);
};

}  // namespace modfast
