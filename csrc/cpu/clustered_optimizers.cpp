// The fused optimizer steps clustered_sgd_ and clustered_adam_ on the CPU.
#include "../math/optimizers.h"

#include "../math/clusterability.h"
#include "../math/number.h"
#include "parallel.h"
#include "simd.h"

namespace modfast {

struct OptimizerKernels {
  void (*sgd[kDtypes])(const Weight&, const void*, void*, Tile, Slopes, const Sgd<double>&, double*);
  void (*adam[kDtypes])(const Weight&, const void*, void*, void*, Tile, Slopes, const AdamStep&,
                        double*);
};

}  // namespace modfast

#define MODFAST_KERNELS "clustered_optimizers_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const OptimizerKernels* kTables[] = MODFAST_TABLES;

// Runs `step(weight index, tile, slopes, sums of the tile)` on every tile and replaces `sums`.
template <class Step>
void step_all(const std::vector<Weight>& list, Sums sums, double scale, const Step& step) {
  std::vector<Slopes> slopes(list.size(), Slopes{0.0, 0.0});
  for (size_t i = 0; i < sums.n_labeled; ++i) {
    slopes[i] = penalty_slopes(sums.data[2 * i], sums.data[2 * i + 1], scale);
  }
  TileSums partial(list);
  for_each_tile(list, [&](size_t i, int64_t tile, int64_t running) {
    step(i, Tile::at(list[i].tiling, tile), slopes[i], partial.at(running));
  });
  partial.collect(list, sums.data, sums.n_labeled);
}

void clustered_sgd_(const Tensors& weights, const Tensors& grads, const Tensors& momentum_buffers,
                    const Tensor& labels, const Tensor& sums, double scale, double lr,
                    double momentum, double dampening, double weight_decay, bool nesterov,
                    bool first) {
  constexpr const char* op = "clustered_sgd_";
  const Sums s = read_sums(op, sums, weights);
  const std::vector<Weight> list = read_weights(op, weights, labels, s.n_labeled);
  const std::vector<void*> g = read_companions(op, "grads", grads, weights);
  std::vector<void*> buffers(list.size(), nullptr);
  if (momentum != 0.0) {
    buffers = read_companions(op, "momentum_buffers", momentum_buffers, weights);
  }
  const Sgd<double> options{lr, momentum, dampening, weight_decay, nesterov, first};
  const OptimizerKernels& kernels = at_level(kTables);
  step_all(list, s, scale, [&](size_t i, Tile tile, Slopes slopes, double* tile_sums) {
    kernels.sgd[static_cast<int>(list[i].dtype)](list[i], g[i], buffers[i], tile, slopes, options,
                                                 tile_sums);
  });
}

void clustered_adam_(const Tensors& weights, const Tensors& grads, const Tensors& exp_avgs,
                     const Tensors& exp_avg_sqs, const Tensors& steps, const Tensor& labels,
                     const Tensor& sums, double scale, double lr, double beta1, double beta2,
                     double eps, double weight_decay, bool decoupled) {
  constexpr const char* op = "clustered_adam_";
  const Sums s = read_sums(op, sums, weights);
  const std::vector<Weight> list = read_weights(op, weights, labels, s.n_labeled);
  const std::vector<void*> g = read_companions(op, "grads", grads, weights);
  const std::vector<void*> means = read_companions(op, "exp_avgs", exp_avgs, weights);
  const std::vector<void*> squares = read_companions(op, "exp_avg_sqs", exp_avg_sqs, weights);
  const std::vector<double> counts = count_steps(op, steps, weights.size());
  const OptimizerKernels& kernels = at_level(kTables);
  step_all(list, s, scale, [&](size_t i, Tile tile, Slopes slopes, double* tile_sums) {
    const AdamStep step{lr, beta1, beta2, eps, weight_decay, decoupled, counts[i]};
    kernels.adam[static_cast<int>(list[i].dtype)](list[i], g[i], means[i], squares[i], tile, slopes,
                                                  step, tile_sums);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("clustered_sgd_", TORCH_BOX(&clustered_sgd_));
  m.impl("clustered_adam_", TORCH_BOX(&clustered_adam_));
}

}  // namespace modfast
