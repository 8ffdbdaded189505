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
  const void* weight;      // [group of classes][hidden unit][class of the group]
  void* prepared;
  int64_t n_samples, n_ablations, n_classes, n_hidden;
  Activation activation;
  int64_t group;  // classes of a group
  bool tables;    // before a ReLU: of the changes of units that stay on
  bool per_sample;
  bool joined;  // samples may share a logarithm
  int n_terms;          // 3, or with targets all
  int64_t term_stride;  // from one term to the next

  bool has_targets() const { return n_terms == kMostTerms; }
};

// Classes of a group before a ReLU, whose changes are kept in registers, and the most classes.
constexpr int kReluWide = 10, kReluNarrow = 4, kReluClasses = 64;

// Samples [begin, end), whose sums go to `terms` [n_terms, n_ablations] (by sample: each sample's to
// a row of its own), and whose correct ones are counted in `classes` [n_classes, n_ablations], if any.
struct SampleTile {
  int64_t begin, end;
  double* terms;
  int32_t* classes;
};

struct AblationKernels {
  int block[2];  // samples of a block, float and double
  int groups[2];  // classes of a group before any activation
  void (*prepare[2])(const AblationSweep&, int64_t, int64_t);
  void (*logits[2])(const AblationSweep&, SampleTile, int64_t);
  // Before a ReLU: the bytes of workspace, what they hold for one block, and the sweep of it.
  int64_t (*relu_bytes[2])(const AblationSweep&);
  void (*relu_tables[2])(const AblationSweep&, int64_t, void*);
  void (*relu[2])(const AblationSweep&, SampleTile, int64_t, void*);
  void (*hidden[2])(const AblationSweep&, SampleTile, int64_t, int64_t, void*);
};

}  // namespace modfast
