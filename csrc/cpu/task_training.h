// Small MLPs in training as their kernels see them.
#pragma once

#include "../math/optimizers.h"

namespace modfast {

// Samples of a block, of which a kernel holds all activations. Fewer make the sums of gradients cost
// more, more leave the caches: for 4-16-16-2, 64 take 1.2 times as long, 128 1.1, 512 1.05.
constexpr int64_t kBlockSamples = 256;

// What all networks share. Matrices of one element type, float or double.
struct MlpTraining {
  int64_t n_inputs, n_outputs, n_layers, n_parameters, n_samples, first_step, n_epochs;
  AdamStep adam;
  const void* x;  // [block][input][sample of the block], zeros at the end
  const void* y;  // [block][output][sample of the block]

  int64_t n_blocks() const { return (n_samples + kBlockSamples - 1) / kBlockSamples; }
};

// One network. Its parameters: for each layer weight [outputs, inputs], then bias [outputs].
struct Mlp {
  void* parameters;  // [n_parameters], as the next two
  void* exp_avgs;
  void* exp_avg_sqs;
  double* losses;  // [n_epochs]
};

// A layer of it: numbers in Mlp::parameters and in `gradients`, and memory for the current block.
struct MlpLayer {
  int64_t n_in, n_out, weight, bias;
  const void* in;  // [n_in][kBlockSamples]; of the first layer, the kernel sets it
  void* out;       // [n_out][kBlockSamples]
  const int32_t *in_active, *n_in_active;  // which units are on for any sample of the block
  int32_t *out_active, *n_out_active;
};

struct MlpTrainingKernels {
  // gradients: [n_parameters][a register's lanes]
  void (*train[2])(const MlpTraining&, const Mlp&, MlpLayer* layers, void* gradients);  // float, double
};

}  // namespace modfast
