// Greedy pruning of the single weights of one layer on the CPU.
#include "pruning.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "../abi.h"
#include "simd.h"

#define MODFAST_KERNELS "pruning_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const BothPruningKernels* kTables[] = MODFAST_TABLES;
constexpr const char* kOp = "prune_layer";

// Samples of a tile: a sum of losses is taken tile by tile, whatever the number of threads.
constexpr int64_t kTileSamples = 4096;
// A unit whose weights were zeroed this often has its pre-activations computed anew.
constexpr int64_t kRefresh = 64;

template <class T>
const PruningKernels<T>& kernels_at_level() {
  const BothPruningKernels& both = at_level(kTables);
  if constexpr (sizeof(T) == sizeof(float)) {
    return both.in_float;
  } else {
    return both.in_double;
  }
}

int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// weight [n_out, n_in] as [group][input][output of the group], zeros at the end.
template <class T>
std::vector<T> pack(const T* weight, int64_t n_out, int64_t n_in, int64_t group) {
  std::vector<T> packed(blocks_of(n_out, group) * group * n_in);
  for (int64_t r = 0; r < n_out; ++r) {
    T* to = packed.data() + r / group * group * n_in + r % group;
    for (int64_t k = 0; k < n_in; ++k) to[k * group] = weight[r * n_in + k];
  }
  return packed;
}

// What one group of samples is pruned on, and the rule.
template <class T>
struct Task {
  const T* inputs;
  const int64_t* targets;
  int64_t n_samples;
  std::vector<const T*> weights, biases;
  const int64_t* order;
  int64_t n_visits;
  double threshold;
  const double* original;  // the loss above which `threshold` is counted, if not the running one
  double* margins;
  double* losses;
};

template <class T>
class Pruner {
 public:
  Pruner(const Task<T>& task, const std::vector<std::pair<int64_t, int64_t>>& sizes)
      : task_(task), kernels_(kernels_at_level<T>()), lanes_(kernels_.lanes) {
    p_.n_samples = task.n_samples;
    p_.n_blocks = blocks_of(task.n_samples, lanes_);
    p_.inputs = task.inputs;
    p_.targets = task.targets;
    for (size_t m = 0; m < sizes.size(); ++m) {
      const auto [n_out, n_in] = sizes[m];
      const int64_t stride = blocks_of(n_out, lanes_) * lanes_, n = p_.n_blocks * lanes_;
      MODFAST_CHECK(n * stride < std::numeric_limits<int32_t>::max(), kOp,
                    "samples times units of a layer must be below 2^31");
      std::vector<T> packed;
      if (m > 0) packed = pack(task.weights[m], n_out, n_in, kernels_.group);
      p_.layers.push_back({n_out, n_in, stride, task.biases[m], std::move(packed), {},
                           std::vector<T>(n * (m == 0 ? n_out : stride))});
      p_.n_widest = std::max(p_.n_widest, stride);
    }
    find_effects(sizes);
    p_.recent.resize(p_.n_blocks * lanes_ * kRecent * kRecentFields);
    p_.fields.resize(p_.n_blocks * kPruningFields * lanes_);
    weights_.assign(task.weights[0], task.weights[0] + sizes[0].first * sizes[0].second);
    n_changes_.resize(sizes[0].first);
    tile_blocks_ = kTileSamples / lanes_;
    const int64_t n_tiles = blocks_of(p_.n_blocks, tile_blocks_);
    samples_.resize(n_tiles * (kTileSamples + lanes_));
    work_.resize(n_tiles * kPruningWork * p_.n_widest * lanes_);
    sums_.resize(n_tiles);
    read_columns();
  }

  void run() {
    const int64_t n_in = p_.layers[0].n_in;
    for (int64_t row = 0; row < p_.layers[0].n_out; ++row) {
      fill_row(row);
      take_over(row, false);
    }
    tiles(p_.n_blocks, [&](PruningTile<T> tile) { kernels_.advance(p_, 0, tile); });
    measure();
    *task_.losses = loss_;
    for (int64_t v = 0; v < task_.n_visits; ++v) {
      const int64_t row = task_.order[v] / n_in, column = task_.order[v] % n_in;
      if (row != row_) change_row(row);
      visit(weights_[task_.order[v]], row, column, task_.margins[v]);
      task_.losses[v + 1] = loss_;
    }
  }

 private:
  // f(tile) over tiles of n blocks, or entries, from the `first` on.
  template <class F>
  void tiles(int64_t n, const F& f, int64_t first = 0) {
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        f(PruningTile<T>{first + i * tile_blocks_, first + std::min((i + 1) * tile_blocks_, n),
                         samples_.data() + i * (kTileSamples + lanes_),
                         work_.data() + i * kPruningWork * p_.n_widest * lanes_});
      }
    };
    const int64_t n_tiles = blocks_of(n, tile_blocks_);
    if (n_tiles < 2) {
      run(0, n_tiles);
    } else {
      torch::stable::parallel_for(0, n_tiles, 1, run);
    }
  }

  // The mean over samples of what f(tile) sums up, added tile by tile in their order.
  template <class F>
  double mean(int64_t n, const F& f, int64_t first = 0) {
    tiles(n, [&](PruningTile<T> tile) { sums_[(tile.begin - first) / tile_blocks_] = f(tile); }, first);
    double sum = 0.0;
    for (int64_t i = 0; i < blocks_of(n, tile_blocks_); ++i) sum += sums_[i];
    return sum / static_cast<double>(p_.n_samples);
  }

  // From the last layer on back: which inputs of each layer have any effect, and on which outputs those of
  // the first have one.
  void find_effects(const std::vector<std::pair<int64_t, int64_t>>& sizes) {
    std::vector<bool> counts(sizes.back().first, true);
    if (!p_.is_last()) p_.dense_readers.resize(p_.layers[1].n_in * p_.layers[1].stride);
    for (size_t m = sizes.size(); m-- > 1;) {
      const auto [n_out, n_in] = sizes[m];
      std::vector<bool> before(n_in, false);
      for (int64_t k = 0; k < n_in; ++k) {
        for (int64_t r = 0; r < n_out; ++r) {
          const T weight = task_.weights[m][r * n_in + k];
          if (weight == T(0) || !counts[r]) continue;
          before[k] = true;
          if (m > 1) break;
          p_.readers.index.push_back(static_cast<int32_t>(r));
          p_.readers.value.push_back(weight);
          p_.dense_readers[k * p_.layers[1].stride + r] = weight;
          constexpr T most = std::numeric_limits<T>::max();
          p_.inverses.push_back(std::clamp(1 / weight, -most, most));
        }
        if (m == 1) p_.readers.begin.push_back(static_cast<int64_t>(p_.readers.index.size()));
        if (before[k]) p_.layers[m].inputs.push_back(static_cast<int32_t>(k));
      }
      counts = before;
    }
  }

  void read_columns() {
    const int64_t n_in = p_.layers[0].n_in, n_blocks = p_.n_blocks;
    std::vector<T> dense(n_blocks * n_in * lanes_);
    tiles(n_blocks, [&](PruningTile<T> tile) { kernels_.columns(p_, tile, dense.data()); });
    SparseLines<T>& columns = p_.columns;
    columns.index.reserve(n_blocks * n_in);
    columns.value.reserve(n_blocks * n_in * lanes_);
    for (int64_t j = 0; j < n_in; ++j) {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const T* x = dense.data() + (b * n_in + j) * lanes_;
        if (std::all_of(x, x + lanes_, [](T value) { return value == T(0); })) continue;
        columns.index.push_back(static_cast<int32_t>(b));
        columns.value.insert(columns.value.end(), x, x + lanes_);
      }
      columns.begin.push_back(static_cast<int64_t>(columns.index.size()));
    }
  }

  void fill_row(int64_t row) {
    const T* weights = weights_.data() + row * p_.layers[0].n_in;
    tiles(p_.n_blocks, [&](PruningTile<T> tile) { kernels_.fill_row(p_, row, weights, tile); });
  }

  void take_over(int64_t row, bool into_others) {
    tiles(p_.n_blocks, [&](PruningTile<T> tile) { kernels_.settle(p_, row, into_others, tile); });
  }

  void measure() {
    loss_ = mean(p_.n_blocks, [&](PruningTile<T> tile) { return kernels_.losses(p_, tile); });
  }

  void change_row(int64_t row) {
    if (changed_) {
      // Against the drift of many subtractions.
      if (n_changes_[row_] >= kRefresh) {
        fill_row(row_);
        n_changes_[row_] = 0;
      }
      take_over(row_, true);
      measure();
    }
    changed_ = false;
    row_ = row;
    tiles(p_.n_blocks, [&](PruningTile<T> tile) { kernels_.open(p_, row, tile); });
  }

  void visit(T& weight, int64_t row, int64_t column, double& margin) {
    const int64_t first = p_.columns.begin[column], n = p_.columns.begin[column + 1] - first;
    double rise = 0.0;
    const bool moves = weight != T(0) && n > 0 && (p_.is_last() || !p_.readers.empty(row));
    if (moves) {
      rise = mean(n, [&](PruningTile<T> tile) { return kernels_.trial(p_, row, weight, tile); }, first);
    }
    const double above = task_.original == nullptr ? 0.0 : loss_ - *task_.original;
    margin = above + rise - task_.threshold;
    if (margin > 0.0) return;
    if (moves) {
      tiles(n, [&](PruningTile<T> tile) { kernels_.commit(p_, tile); }, first);
      loss_ += rise;
      changed_ = true;
      ++n_changes_[row];
    }
    weight = T(0);
  }

  const Task<T>& task_;
  const PruningKernels<T>& kernels_;
  const int64_t lanes_;
  int64_t tile_blocks_;
  Pruning<T> p_{};
  std::vector<T> weights_, work_;
  std::vector<int32_t> samples_;
  std::vector<int64_t> n_changes_;
  std::vector<double> sums_;
  double loss_ = 0.0;
  int64_t row_ = -1;
  bool changed_ = false;
};

void check_tensor(const char* name, size_t index, const Tensor& tensor, const Tensor& inputs,
                  const std::vector<int64_t>& shape) {
  const auto sizes = tensor.sizes();
  MODFAST_CHECK(tensor.is_cpu() && tensor.is_contiguous() &&
                    std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()),
                kOp, name, "[", index, "] must be contiguous on the CPU, and fit the other tensors' shapes");
  MODFAST_CHECK(tensor.scalar_type() == inputs.scalar_type(), kOp, name, "[", index,
                "] must have the dtype of inputs");
}

const int64_t* check_integers(const char* name, const Tensor& tensor) {
  MODFAST_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.dim() == 1 &&
                    tensor.scalar_type() == ScalarType::Long,
                kOp, name, " must be int64 of 1 dimension, contiguous on the CPU");
  return static_cast<const int64_t*>(tensor.data_ptr());
}

void check_range(const char* name, const int64_t* values, int64_t n, int64_t limit) {
  for (int64_t i = 0; i < n; ++i) {
    MODFAST_CHECK(values[i] >= 0 && values[i] < limit, kOp, name, "[", i, "] must be from 0 to ", limit - 1,
                  ", got ", values[i]);
  }
}

template <class T>
void run_groups(const Tensor& inputs, const Tensors& weights, const Tensors& biases, const int64_t* targets,
                const Tensor& sizes, const Tensor& order, const std::optional<Tensor>& original,
                double threshold, const Tensor& margins, const Tensor& losses) {
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for (const Tensor& weight : weights) shapes.emplace_back(weight.size(1), weight.size(2));
  const auto at = [](const Tensor& tensor, int64_t group) {
    return static_cast<const T*>(tensor.data_ptr()) + group * (tensor.numel() / tensor.size(0));
  };
  const int64_t n_groups = sizes.numel(), n_visits = order.numel();
  const int64_t* n_samples = static_cast<const int64_t*>(sizes.data_ptr());
  std::vector<Task<T>> tasks(n_groups);
  int64_t first = 0;
  for (int64_t g = 0; g < n_groups; ++g) {
    Task<T>& task = tasks[g];
    task.inputs = static_cast<const T*>(inputs.data_ptr()) + first * inputs.size(1);
    task.targets = targets + first;
    task.n_samples = n_samples[g];
    for (const Tensor& weight : weights) task.weights.push_back(at(weight, g));
    for (const Tensor& bias : biases) task.biases.push_back(at(bias, g));
    task.order = static_cast<const int64_t*>(order.data_ptr());
    task.n_visits = n_visits;
    task.threshold = threshold;
    task.original = original ? static_cast<const double*>(original->data_ptr()) + g : nullptr;
    task.margins = static_cast<double*>(margins.data_ptr()) + g * n_visits;
    task.losses = static_cast<double*>(losses.data_ptr()) + g * (n_visits + 1);
    first += n_samples[g];
  }
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) Pruner<T>(tasks[g], shapes).run();
  };
  if (n_groups == 1) {
    run(0, 1);
  } else {
    torch::stable::parallel_for(0, n_groups, 1, run);
  }
}

std::tuple<Tensor, Tensor> prune_layer(const Tensor& inputs, std::vector<Tensor> weights,
                                       std::vector<Tensor> biases, const Tensor& targets,
                                       const Tensor& sizes, const Tensor& order,
                                       std::optional<Tensor> original, double threshold) {
  const Dtype dtype = float_dtype(inputs, kOp, "inputs", 0);
  MODFAST_CHECK(dtype == Dtype::float32 || dtype == Dtype::float64, kOp, "inputs must be float32 or float64");
  MODFAST_CHECK(inputs.dim() == 2, kOp, "inputs must have 2 dimensions");
  check_tensor("inputs", 0, inputs, inputs, {inputs.size(0), inputs.size(1)});
  const int64_t* n_samples = check_integers("sizes", sizes);
  const int64_t n_groups = sizes.numel();
  MODFAST_CHECK(n_groups > 0, kOp, "sizes must not be empty");
  int64_t n = 0;
  for (int64_t g = 0; g < n_groups; ++g) {
    MODFAST_CHECK(n_samples[g] > 0, kOp, "sizes[", g, "] must be at least 1, got ", n_samples[g]);
    n += n_samples[g];
  }
  MODFAST_CHECK(n == inputs.size(0) && n < std::numeric_limits<int32_t>::max(), kOp,
                "sizes must add up to the samples of inputs, ", inputs.size(0), ", got ", n);
  MODFAST_CHECK(!weights.empty() && weights.size() == biases.size(), kOp,
                "weights must not be empty, and biases must be as many, got ", weights.size(), " and ",
                biases.size());
  int64_t n_in = inputs.size(1);
  for (size_t m = 0; m < weights.size(); ++m) {
    MODFAST_CHECK(weights[m].dim() == 3 && weights[m].size(1) > 0, kOp, "weights[", m,
                  "] must have 3 dimensions and an output");
    const int64_t n_out = weights[m].size(1);
    check_tensor("weights", m, weights[m], inputs, {n_groups, n_out, n_in});
    check_tensor("biases", m, biases[m], inputs, {n_groups, n_out});
    n_in = n_out;
  }
  const int64_t* classes = check_integers("targets", targets);
  MODFAST_CHECK(targets.numel() == n, kOp, "targets must be as many as inputs, ", n, ", got ", targets.numel());
  check_range("targets", classes, n, n_in);
  check_range("order", check_integers("order", order), order.numel(), weights[0].size(1) * weights[0].size(2));
  if (original) {
    MODFAST_CHECK(original->is_cpu() && original->is_contiguous() && original->dim() == 1 &&
                      original->size(0) == n_groups && original->scalar_type() == ScalarType::Double,
                  kOp, "original must be float64 of shape [", n_groups, "], contiguous on the CPU");
  }
  const int32_t float64 = aoti_torch_dtype_float64();
  Tensor margins = empty_beside(inputs, {n_groups, order.numel()}, float64);
  Tensor losses = empty_beside(inputs, {n_groups, order.numel() + 1}, float64);
  const auto run = dtype == Dtype::float32 ? run_groups<float> : run_groups<double>;
  run(inputs, weights, biases, classes, sizes, order, original, threshold, margins, losses);
  return {margins, losses};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) { m.impl("prune_layer", TORCH_BOX(&prune_layer)); }

}  // namespace modfast
