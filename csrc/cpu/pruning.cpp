// Greedy pruning of the single weights of one layer on the CPU.
#include "pruning.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "../pruning_arguments.h"
#include "crew.h"
#include "simd.h"

#define MODFAST_KERNELS "pruning_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const BothPruningKernels* kTables[] = MODFAST_TABLES;
constexpr const char* kOp = "prune_layer";

// At most so many samples are a tile.
constexpr int64_t kTileSamples = 1024;
// A thread for each so many: with fewer, two threads that the system leaves on one processor cost more than
// they save.
constexpr int64_t kThreadSamples = 4096;
// A trial that moves fewer blocks of samples is over before another thread has heard of it.
constexpr int64_t kFewBlocks = 8;
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
Aligned<T> pack(const T* weight, int64_t n_out, int64_t n_in, int64_t group) {
  Aligned<T> packed(blocks_of(n_out, group) * group * n_in);
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
  Pruner(const Task<T>& task, const std::vector<std::pair<int64_t, int64_t>>& sizes, Crew& crew)
      : task_(task), kernels_(kernels_at_level<T>()), lanes_(kernels_.lanes), crew_(crew) {
    p_.n_samples = task.n_samples;
    p_.n_blocks = blocks_of(task.n_samples, lanes_);
    p_.tile_blocks = blocks_of(p_.n_blocks, tiles_of(task.n_samples));
    p_.n_tiles = blocks_of(p_.n_blocks, p_.tile_blocks);
    p_.inputs = task.inputs;
    const int64_t n = p_.n_blocks * lanes_;
    p_.classes.assign(n, -1);
    std::copy_n(task.targets, task.n_samples, p_.classes.begin());
    for (size_t m = 0; m < sizes.size(); ++m) {
      const auto [n_out, n_in] = sizes[m];
      const int64_t stride = blocks_of(n_out, lanes_) * lanes_;
      MODFAST_CHECK(n * std::max<int64_t>(stride, kPruningFields) < std::numeric_limits<int32_t>::max(), kOp,
                    "samples times units of a layer must be below 2^31");
      p_.layers.push_back({n_out, n_in, stride, task.biases[m], pack(task.weights[m], n_out, n_in, kernels_.group),
                           {}, Aligned<T>(n * (m == 0 ? n_out : stride))});
      p_.n_widest = std::max(p_.n_widest, stride);
    }
    find_effects(sizes);
    if (!p_.is_last()) {
      p_.recent.resize(n * kRecent * kRecentFields);
      p_.oldest.resize(n);
    }
    p_.fields.resize(n * kPruningFields);
    p_.side.resize(p_.n_blocks);
    for (int64_t b = 0; b < p_.n_blocks; ++b) p_.tile_of.push_back(static_cast<int32_t>(b / p_.tile_blocks));
    p_.constants.resize(p_.n_tiles * kSumLanes);
    p_.sums.resize(p_.n_tiles * kSumLanes);
    weights_.assign(task.weights[0], task.weights[0] + sizes[0].first * sizes[0].second);
    n_changes_.resize(sizes[0].first);
    samples_.resize(n + p_.n_tiles * lanes_);
    work_.resize(p_.n_tiles * kPruningWork * p_.n_widest * lanes_);
  }

  void run() {
    read_inputs();
    each([](Pruner& self, PruningPart<T> part) {
      self.kernels_.advance(self.p_, 0, part);
      self.kernels_.losses(self.p_, part);
    });
    *task_.losses = loss_ = mean();
    const int64_t n_in = p_.layers[0].n_in;
    for (int64_t v = 0; v < task_.n_visits; ++v) {
      const int64_t row = task_.order[v] / n_in, column = task_.order[v] % n_in;
      if (row != row_) change_row(row);
      visit(weights_[task_.order[v]], column, task_.margins[v]);
      task_.losses[v + 1] = loss_;
    }
  }

  static int64_t tiles_of(int64_t n_samples) { return blocks_of(n_samples, kTileSamples); }

 private:
  PruningPart<T> part(int64_t begin, int64_t end, int64_t member) {
    return {begin, end, samples_.data() + (begin * p_.tile_blocks + member) * lanes_,
            work_.data() + member * kPruningWork * p_.n_widest * lanes_};
  }

  // step(*this, part) for parts of all samples.
  template <class Step>
  void each(const Step& step) {
    crew_.run(p_.n_tiles, [this, step](int64_t begin, int64_t end, int64_t member) {
      step(*this, part(begin, end, member));
    });
  }

  // Over samples, of what is in the tiles' sums.
  double mean() const {
    double lanes[kSumLanes] = {};
    const double* sums = p_.sums.data();
    for (int64_t tile = 0; tile < p_.n_tiles; ++tile, sums += kSumLanes) {
      for (int l = 0; l < kSumLanes; ++l) lanes[l] += sums[l];
    }
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0] / static_cast<double>(p_.n_samples);
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

  void read_inputs() {
    const int64_t n_in = p_.layers[0].n_in;
    Aligned<T> columns(p_.n_blocks * n_in * lanes_);
    SparseLines<T>& entries = p_.columns;
    entries.begin.resize(n_in * p_.n_tiles + 1);
    each([to = columns.data()](Pruner& self, PruningPart<T> part) { self.kernels_.columns(self.p_, part, to); });
    if (p_.is_last()) fill_columns();
    for (size_t i = 1; i < entries.begin.size(); ++i) entries.begin[i] += entries.begin[i - 1];
    for (int64_t j = 0; j < n_in; ++j) {
      if (n_entries(j) > 0) p_.layers[0].inputs.push_back(static_cast<int32_t>(j));
    }
    entries.index.resize(entries.begin.back());
    entries.value.resize(entries.begin.back() * lanes_);
    each([from = columns.data()](Pruner& self, PruningPart<T> part) { self.kernels_.start(self.p_, part, from); });
  }

  // Counts every block as an entry of the columns that have any, as a class has the losses of all.
  void fill_columns() {
    int64_t* counts = p_.columns.begin.data() + 1;
    for (int64_t j = 0; j < p_.layers[0].n_in; ++j, counts += p_.n_tiles) {
      if (std::all_of(counts, counts + p_.n_tiles, [](int64_t n) { return n == 0; })) continue;
      std::fill_n(counts, p_.n_tiles, 0);
      for (const int32_t tile : p_.tile_of) ++counts[tile];
    }
  }

  int64_t n_entries(int64_t column) const { return *p_.entries(column, p_.n_tiles) - *p_.entries(column, 0); }

  void change_row(int64_t row) {
    // Against the drift of many subtractions.
    const bool refill = row_ >= 0 && n_changes_[row_] >= kRefresh;
    if (refill) n_changes_[row_] = 0;
    each([refill](Pruner& self, PruningPart<T> part) { self.close_row(refill, part); });
    if (changed_ && !p_.is_last()) loss_ = mean();
    each([row](Pruner& self, PruningPart<T> part) { self.kernels_.open(self.p_, row, part); });
    if (p_.is_last()) loss_ = mean();
    undone_ = -1;
    changed_ = false;
    row_ = row;
  }

  void close_row(bool refill, PruningPart<T> part) {
    if (undone_ >= 0) kernels_.undo(p_, undone_, part);
    if (!changed_) return;
    if (refill) kernels_.fill_row(p_, row_, weights_.data() + row_ * p_.layers[0].n_in, part);
    kernels_.settle(p_, row_, part);
    if (!p_.is_last()) kernels_.losses(p_, part);
  }

  void visit(T& weight, int64_t column, double& margin) {
    const bool moves = weight != T(0) && n_entries(column) > 0 && (p_.is_last() || !p_.readers.empty(row_));
    double rise = 0.0;
    if (moves) {
      const PruningVisit<T> visit{row_, column, undone_, weight};
      if (n_entries(column) < kFewBlocks) {
        kernels_.trial(p_, visit, part(0, p_.n_tiles, 0));
      } else {
        each([visit](Pruner& self, PruningPart<T> part) { self.kernels_.trial(self.p_, visit, part); });
      }
      rise = p_.is_last() ? mean() - loss_ : mean();
      undone_ = -1;
    }
    const double above = task_.original == nullptr ? 0.0 : loss_ - *task_.original;
    margin = above + rise - task_.threshold;
    if (margin > 0.0) {
      if (moves) undone_ = column;
      return;
    }
    if (moves) {
      loss_ += rise;
      changed_ = true;
      ++n_changes_[row_];
    }
    weight = T(0);
  }

  const Task<T>& task_;
  const PruningKernels<T>& kernels_;
  const int64_t lanes_;
  Crew& crew_;
  Pruning<T> p_{};
  std::vector<T> weights_;
  Aligned<T> work_;
  std::vector<int32_t> samples_;
  std::vector<int64_t> n_changes_;
  double loss_ = 0.0;
  int64_t row_ = -1;
  int64_t undone_ = -1;   // the column of the last trial, if the next step is to take it back
  bool changed_ = false;  // whether weights of the row were zeroed
};

// Ends a crew's work, also where an error does.
struct Ended {
  Crew& crew;
  ~Ended() { crew.end(); }
};

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
  // Each thread takes groups as long as there are any, and then helps with those of others.
  std::deque<Crew> crews;
  int64_t n_threads = 0;
  for (const Task<T>& task : tasks) {
    const int64_t n_own = blocks_of(task.n_samples, kThreadSamples);
    crews.emplace_back(n_own - 1);
    n_threads += n_own;
  }
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t begin, int64_t) {
    for (int64_t g = next++; g < n_groups; g = next++) {
      const Ended ended{crews[g]};
      Pruner<T>(tasks[g], shapes, crews[g]).run();
    }
    for (int64_t i = 0; i < n_groups; ++i) crews[(begin + i) % n_groups].join();
  };
  n_threads = std::min<int64_t>(n_threads, torch::stable::get_num_threads());
  if (n_threads == 1) {
    run(0, 1);
  } else {
    torch::stable::parallel_for(0, n_threads, 1, run);
  }
}

std::tuple<Tensor, Tensor> prune_layer(const Tensor& inputs, std::vector<Tensor> weights,
                                       std::vector<Tensor> biases, const Tensor& targets,
                                       const Tensor& sizes, const Tensor& order,
                                       std::optional<Tensor> original, double threshold) {
  check_samples(kOp, inputs, sizes);
  MODFAST_CHECK(inputs.size(0) < std::numeric_limits<int32_t>::max(), kOp, "inputs must be below 2^31, got ",
                inputs.size(0));
  const int64_t n_groups = sizes.numel();
  check_sizes(kOp, static_cast<const int64_t*>(sizes.data_ptr()), n_groups, inputs.size(0));
  const int64_t n_classes = check_network(kOp, inputs, weights, biases, targets, order, original, n_groups);
  const int64_t* classes = static_cast<const int64_t*>(targets.data_ptr());
  check_range(kOp, "targets", classes, targets.numel(), n_classes);
  check_range(kOp, "order", static_cast<const int64_t*>(order.data_ptr()), order.numel(),
              weights[0].size(1) * weights[0].size(2));
  const int32_t float64 = aoti_torch_dtype_float64();
  Tensor margins = empty_beside(inputs, {n_groups, order.numel()}, float64);
  Tensor losses = empty_beside(inputs, {n_groups, order.numel() + 1}, float64);
  const auto run = inputs.scalar_type() == ScalarType::Float ? run_groups<float> : run_groups<double>;
  run(inputs, weights, biases, classes, sizes, order, original, threshold, margins, losses);
  return {margins, losses};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) { m.impl("prune_layer", TORCH_BOX(&prune_layer)); }

}  // namespace modfast
