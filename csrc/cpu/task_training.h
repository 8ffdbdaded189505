// Small MLPs in training as their kernels see them.
#pragma once

#include "../math/optimizers.h"

namespace modfast {

// Samples of a block, of which a kernel holds all activations: few enough for the first-level cache.
constexpr int64_t kBlockSamples = 128;

// What all networks share. Matrices of one element type, float or double.
struct MlpTraining {
  const int64_t* sizes;  // [n_layers + 1], from the input to the output
  int64_t n_layers, n_parameters, n_samples, first_step, n_epochs;
  AdamStep adam;
  const void* x;  // [block][input][sample of the block], zeros at the end
  const void* y;  // [block][output][sample of the block]

  int64_t n_blocks() const { return (n_samples + kBlockSamples - 1) / kBlockSamples; }
  int64_t n_inputs() const { return sizes[0]; }
  int64_t n_outputs() const { return sizes[n_layers]; }
};

// One network. Its parameters: for each layer weight [outputs, inputs], then bias [outputs].
struct Mlp {
  void* parameters;  // [n_parameters], as the next two
  void* exp_avgs;
  void* exp_avg_sqs;
  double* losses;  // [n_epochs]
};

// Memory that a kernel writes, 64-byte aligned.
struct MlpWorkspace {
  void* units;      // [units of all layers but the input][kBlockSamples]
  void* gradients;  // [n_parameters][a register's lanes]
  int32_t* active;  // [units of all layers]
  int32_t* n_active;  // [n_layers + 1]
};

struct MlpTrainingKernels {
  void (*train[2])(const MlpTraining&, const Mlp&, const MlpWorkspace&);  // float, double
};

}  // namespace modfast
