// The training of many small MLPs, train_mlps_, on the CPU: one network a thread, all epochs.
#include "task_training.h"

#include <algorithm>
#include <memory>
#include <new>
#include <numeric>

#include "../abi.h"
#include "simd.h"

#define MODFAST_KERNELS "task_training_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const MlpTrainingKernels* kTables[] = MODFAST_TABLES;
constexpr size_t kAlignment = 64;
constexpr const char* kOp = "train_mlps_";

struct FreeAligned {
  void operator()(void* memory) const { operator delete[](memory, std::align_val_t(kAlignment)); }
};
using Memory = std::unique_ptr<void, FreeAligned>;

Memory allocate(size_t bytes) { return Memory(operator new[](bytes, std::align_val_t(kAlignment))); }

// Puts samples order[begin, end) that are near each other into one block, so that more units are off for
// a whole block: parts them by the input that differs most among them, and then each part again.
template <class T>
void gather_near(const T* x, int64_t d, int64_t begin, int64_t end, std::vector<int64_t>& order) {
  const int64_t n_blocks = (end - begin + kBlockSamples - 1) / kBlockSamples;
  if (n_blocks < 2) return;
  int64_t widest = 0;
  double most = -1.0;
  const int64_t step = n_blocks;  // some kBlockSamples tell enough
  for (int64_t j = 0; j < d; ++j) {
    double sum = 0.0, squares = 0.0, n = 0.0;
    for (int64_t i = begin; i < end; i += step, ++n) {
      const double value = x[order[i] * d + j];
      sum += value;
      squares += value * value;
    }
    const double variance = squares - sum * sum / n;
    if (variance > most) {
      most = variance;
      widest = j;
    }
  }
  const int64_t middle = begin + n_blocks / 2 * kBlockSamples;
  std::nth_element(order.begin() + begin, order.begin() + middle, order.begin() + end,
                   [=](int64_t a, int64_t b) {
                     const T left = x[a * d + widest], right = x[b * d + widest];
                     return left != right ? left < right : a < b;
                   });
  gather_near(x, d, begin, middle, order);
  gather_near(x, d, middle, end, order);
}

// values [n, d] as [block][column][sample of the block], in that order, zeros at the end.
template <class T>
Memory by_blocks(const Tensor& values, const std::vector<int64_t>& order) {
  const int64_t n = values.size(0), d = values.size(1);
  const int64_t n_blocks = (n + kBlockSamples - 1) / kBlockSamples, size = n_blocks * d * kBlockSamples;
  Memory memory = allocate(size * sizeof(T));
  T* to = static_cast<T*>(memory.get());
  const T* from = static_cast<const T*>(values.data_ptr());
  std::fill(to, to + size, T(0));
  for (int64_t i = 0; i < n; ++i) {
    T* sample = to + i / kBlockSamples * d * kBlockSamples + i % kBlockSamples;
    for (int64_t j = 0; j < d; ++j) sample[j * kBlockSamples] = from[order[i] * d + j];
  }
  return memory;
}

// The layers of MLPs of given widths, and the memory that one in training needs.
template <class T>
struct Workspace {
  Workspace(const std::vector<int64_t>& sizes, int64_t n_parameters)
      : gradients(allocate(n_parameters * kAlignment)) {
    const int64_t n_units = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    units = allocate(n_units * kBlockSamples * sizeof(T));
    active.resize(n_units);
    n_active.resize(sizes.size());
    // All of the inputs take part; the kernel writes what follows.
    std::iota(active.begin(), active.begin() + sizes[0], 0);
    n_active[0] = static_cast<int32_t>(sizes[0]);
    T* in = static_cast<T*>(units.get());
    int32_t* in_active = active.data();
    int64_t parameter = 0;
    for (size_t l = 0; l + 1 < sizes.size(); ++l) {
      const int64_t n_in = sizes[l], n_out = sizes[l + 1], bias = parameter + n_in * n_out;
      T* out = in + n_in * kBlockSamples;
      layers.push_back(MlpLayer{n_in, n_out, parameter, bias, in, out, in_active, &n_active[l],
                                in_active + n_in, &n_active[l + 1]});
      in = out;
      in_active += n_in;
      parameter = bias + n_out;
    }
  }

  Memory gradients, units;
  std::vector<int32_t> active, n_active;
  std::vector<MlpLayer> layers;
};

template <class T>
void train_all(MlpTraining& all, const std::vector<int64_t>& sizes, const Tensor& x, const Tensor& y,
               const Tensor& parameters, const Tensor& exp_avgs, const Tensor& exp_avg_sqs,
               double* losses) {
  std::vector<int64_t> order(x.size(0));
  std::iota(order.begin(), order.end(), 0);
  gather_near(static_cast<const T*>(x.data_ptr()), x.size(1), 0, x.size(0), order);
  const Memory x_blocks = by_blocks<T>(x, order), y_blocks = by_blocks<T>(y, order);
  all.x = x_blocks.get();
  all.y = y_blocks.get();
  const auto train = at_level(kTables).train[sizeof(T) == sizeof(double)];
  const auto row = [&](const Tensor& t, int64_t i) -> void* {
    return static_cast<T*>(t.data_ptr()) + i * all.n_parameters;
  };
  // A network is worth a thread at any size, as each goes through all epochs.
  torch::stable::parallel_for(0, parameters.size(0), 1, [&](int64_t begin, int64_t end) {
    Workspace<T> workspace(sizes, all.n_parameters);
    for (int64_t i = begin; i < end; ++i) {
      const Mlp mlp{row(parameters, i), row(exp_avgs, i), row(exp_avg_sqs, i), losses + i * all.n_epochs};
      train(all, mlp, workspace.layers.data(), workspace.gradients.get());
    }
  });
}

void check_matrix(const char* name, const Tensor& t, int64_t rows, int64_t cols, const Tensor& like) {
  MODFAST_CHECK(t.scalar_type() == like.scalar_type() && t.is_cpu() && t.dim() == 2 &&
                    t.size(0) == rows && t.size(1) == cols && t.is_contiguous(),
                kOp, name, " must have shape [", rows, ", ", cols, "], the dtype of x, and be contiguous");
}

Tensor train_mlps_(const Tensor& x, const Tensor& y, std::vector<int64_t> sizes,
                   const Tensor& parameters, const Tensor& exp_avgs, const Tensor& exp_avg_sqs,
                   int64_t step, int64_t epochs, double lr, double beta1, double beta2, double eps) {
  const auto dtype = x.scalar_type();
  MODFAST_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, kOp,
                "x must be float32 or float64, got ", torch::headeronly::toString(dtype));
  MODFAST_CHECK(sizes.size() >= 2, kOp, "sizes must hold at least two widths, got ", sizes.size());
  MODFAST_CHECK(step >= 0 && epochs >= 0, kOp, "step and epochs must be at least 0, got ", step, " and ",
                epochs);
  MlpTraining all{};
  all.n_inputs = sizes.front();
  all.n_outputs = sizes.back();
  all.n_layers = static_cast<int64_t>(sizes.size()) - 1;
  for (int64_t l = 0; l < all.n_layers; ++l) {
    MODFAST_CHECK(sizes[l] >= 1 && sizes[l + 1] >= 1, kOp, "sizes must be at least 1");
    all.n_parameters += (sizes[l] + 1) * sizes[l + 1];
  }
  MODFAST_CHECK(x.dim() == 2 && x.size(0) >= 1, kOp, "x must be a matrix with at least one row");
  all.n_samples = x.size(0);
  all.first_step = step + 1;
  all.n_epochs = epochs;
  all.adam = AdamStep{lr, beta1, beta2, eps, 0.0, false, 0.0};
  MODFAST_CHECK(parameters.dim() == 2, kOp, "parameters must have 2 dimensions");
  const int64_t n_models = parameters.size(0);
  check_matrix("x", x, all.n_samples, all.n_inputs, x);
  check_matrix("y", y, all.n_samples, all.n_outputs, x);
  check_matrix("parameters", parameters, n_models, all.n_parameters, x);
  check_matrix("exp_avgs", exp_avgs, n_models, all.n_parameters, x);
  check_matrix("exp_avg_sqs", exp_avg_sqs, n_models, all.n_parameters, x);
  Tensor losses = empty_beside(x, {n_models, epochs}, aoti_torch_dtype_float64());
  double* to = static_cast<double*>(losses.data_ptr());
  if (dtype == ScalarType::Double) {
    train_all<double>(all, sizes, x, y, parameters, exp_avgs, exp_avg_sqs, to);
  } else {
    train_all<float>(all, sizes, x, y, parameters, exp_avgs, exp_avg_sqs, to);
  }
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) { m.impl("train_mlps_", TORCH_BOX(&train_mlps_)); }

}  // namespace modfast
