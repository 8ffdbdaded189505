// The ablation sweeps on the CPU.
#include "ablation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "../sweeps.h"
#include "parallel.h"
#include "simd.h"

#define MODFAST_KERNELS "ablation_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const AblationKernels* kTables[] = MODFAST_TABLES;

// Samples of a tile: its sums are taken apart from the others', whatever the number of threads. A
// multiple of every block.
constexpr int64_t kTileSamples = 256;
// Counts of correct samples, per tile and class, that may lie in memory at once.
constexpr int64_t kMostCounts = int64_t{1} << 24;
// Ablations that share one transposed block of a hidden layer: more where that leaves enough to do for
// many threads. No result depends on it.
constexpr int64_t kFewShare = 16, kManyShare = 128, kManyTiles = 16;
// Exponentials that are not worth waking a thread for, and multiplications of a hidden layer.
constexpr int64_t kGrain = int64_t{1} << 16, kHiddenGrain = 8 * kGrain;
// Before a ReLU, the tables of a block cost what they save on some 45 samples: 416 sums a class and 64
// units against, for each sample, a product for each unit that is surely on less one sum for five units.
// With tables, what is rounded depends on the other ablations of a block; without, it does not. They
// serve kTableTiles tiles in a row. Those larger than kMostTables bytes are not made, so that every
// thread can have its own.
constexpr int64_t kTableSamples = 64, kTableTiles = 8, kMostTables = int64_t{1} << 23;

int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// For vectors: begins where one may, and is not filled.
template <class T>
class Memory {
 public:
  explicit Memory(int64_t n)
      : data_(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(kAlign)))) {}
  ~Memory() { ::operator delete(data_, std::align_val_t(kAlign)); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  T* data() { return data_; }

 private:
  static constexpr size_t kAlign = 64;
  T* data_;
};

AblationSweep read_sweep(const char* op, const Tensor& logits, const Tensor& scales,
                         const std::optional<Tensor>& targets, bool per_sample) {
  check_sweep(op, logits, scales, targets);
  AblationSweep sweep{};
  sweep.logits = logits.data_ptr();
  sweep.scales = scales.data_ptr();
  sweep.n_samples = logits.size(0);
  sweep.n_classes = logits.size(1);
  sweep.n_ablations = scales.size(1);
  sweep.per_sample = per_sample;
  sweep.n_terms = targets ? 5 : 3;
  if (targets) {
    sweep.targets = static_cast<const int64_t*>(targets->data_ptr());
    check_targets(op, sweep.targets, sweep.n_samples, sweep.n_classes);
  }
  return sweep;
}

template <class F>
void for_each(int64_t n, int64_t cost, const F& f) {
  for_ranges(n, cost, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// rows [n_rows, n_cols] as [block of rows][column][row of the block], with zeros for the rows that are
// missing.
template <class T>
class Packed {
 public:
  Packed(const void* rows, int64_t n_rows, int64_t n_cols, int64_t block)
      : memory_(blocks_of(n_rows, block) * block * n_cols) {
    const T* from = static_cast<const T*>(rows);
    for (int64_t i = 0; i < blocks_of(n_rows, block) * block; ++i) {
      T* to = memory_.data() + i / block * block * n_cols + i % block;
      for (int64_t j = 0; j < n_cols; ++j) to[j * block] = i < n_rows ? from[i * n_cols + j] : T(0);
    }
  }

  T* data() { return memory_.data(); }

 private:
  Memory<T> memory_;
};

// Of two sizes of groups, the one that leaves fewer places empty.
int64_t group_of(int64_t n_classes, int64_t wide, int64_t narrow) {
  return blocks_of(n_classes, wide) * wide <= blocks_of(n_classes, narrow) * narrow ? wide : narrow;
}

// Where the terms of each tile of samples go, and what they add up to.
class Tiles {
 public:
  explicit Tiles(const AblationSweep& sweep, const Tensor& logits, int64_t n_tile)
      : sweep_(sweep), n_tile_(n_tile), n_(blocks_of(sweep.n_samples, n_tile)) {
    const int64_t k = sweep.n_terms, n = sweep.n_samples, a = sweep.n_ablations;
    const int32_t dtype = aoti_torch_dtype_float64();
    terms_ = sweep.per_sample ? empty_beside(logits, {k, n, a}, dtype) : empty_beside(logits, {k, a}, dtype);
    classes_ = empty_beside(logits, {a, sweep.has_targets() ? sweep.n_classes : 0}, dtype);
    if (!sweep.per_sample) sums_.resize(n_ * k * a);
    if (sweep.has_targets()) counts_.assign(n_groups() * sweep.n_classes * a, 0);
  }

  int64_t size() const { return n_; }

  SampleTile at(int64_t i) {
    const int64_t begin = i * n_tile_, end = std::min(begin + n_tile_, sweep_.n_samples);
    double* terms = sweep_.per_sample ? static_cast<double*>(terms_.data_ptr()) + begin * sweep_.n_ablations
                                      : sums_.data() + i * sweep_.n_terms * sweep_.n_ablations;
    int32_t* counts = counts_.empty() || sweep_.per_sample
                          ? nullptr
                          : counts_.data() + i * sweep_.n_classes * sweep_.n_ablations;
    return SampleTile{begin, end, terms, counts};
  }

  std::tuple<Tensor, Tensor> collect() {
    const int64_t a = sweep_.n_ablations, n_terms = sweep_.n_terms * a;
    double* terms = static_cast<double*>(terms_.data_ptr());
    if (!sweep_.per_sample) {
      std::fill(terms, terms + n_terms, 0.0);
      for (int64_t i = 0; i < n_; ++i) {
        for (int64_t j = 0; j < n_terms; ++j) terms[j] += sums_[i * n_terms + j];
      }
    } else if (sweep_.has_targets()) {
      const double* correct = terms + 4 * sweep_.n_samples * a;
      for (int64_t i = 0; i < sweep_.n_samples; ++i) {
        for (int64_t j = 0; j < a; ++j) counts_[sweep_.targets[i] * a + j] += correct[i * a + j] != 0.0;
      }
    }
    if (sweep_.has_targets()) {
      double* classes = static_cast<double*>(classes_.data_ptr());
      const int64_t n_classes = sweep_.n_classes;
      std::fill(classes, classes + a * n_classes, 0.0);
      for (int64_t i = 0; i < n_groups(); ++i) {
        const int32_t* counts = counts_.data() + i * n_classes * a;
        for (int64_t c = 0; c < n_classes; ++c) {
          for (int64_t j = 0; j < a; ++j) classes[j * n_classes + c] += counts[c * a + j];
        }
      }
    }
    return {terms_, classes_};
  }

 private:
  int64_t n_groups() const { return sweep_.per_sample ? 1 : n_; }

  const AblationSweep& sweep_;
  int64_t n_tile_, n_;
  Tensor terms_, classes_;
  std::vector<double> sums_;
  std::vector<int32_t> counts_;
};

int64_t tile_samples(const AblationSweep& sweep) {
  int64_t n = kTileSamples;
  const int64_t counts = sweep.has_targets() ? sweep.n_classes * sweep.n_ablations : 0;
  while (n < sweep.n_samples && counts * blocks_of(sweep.n_samples, n) > kMostCounts) n *= 2;
  return n;
}

// What all ablations share of the samples.
template <class T>
class Prepared {
 public:
  Prepared(const AblationKernels& kernels, AblationSweep& sweep)
      : memory_(blocks_of(sweep.n_samples, kernels.block[kType]) * kernels.block[kType] * 3 * sweep.n_classes) {
    const int64_t block = kernels.block[kType];
    sweep.prepared = memory_.data();
    for_each(blocks_of(sweep.n_samples, block), block * sweep.n_classes,
             [&](int64_t i) { kernels.prepare[kType](sweep, i, i + 1); });
  }

 private:
  static constexpr int kType = sizeof(T) == sizeof(double);
  Memory<T> memory_;
};

template <class T>
std::tuple<Tensor, Tensor> run_logits(AblationSweep& sweep, const Tensor& logits, const Tensor& updates) {
  constexpr int t = sizeof(T) == sizeof(double);
  const AblationKernels& kernels = at_level(kTables);
  const Prepared<T> prepared(kernels, sweep);
  const int64_t block = kernels.block[t] / 2, n_blocks = blocks_of(sweep.n_ablations, block);
  Packed<T> packed(updates.data_ptr(), sweep.n_ablations, sweep.n_classes, block);
  sweep.updates = packed.data();
  sweep.joined = true;
  Tiles tiles(sweep, logits, tile_samples(sweep));
  const int64_t n = std::min(kTileSamples, sweep.n_samples);
  for_each(tiles.size() * n_blocks, n * block * sweep.n_classes, [&](int64_t i) {
    kernels.logits[t](sweep, tiles.at(i / n_blocks), i % n_blocks);
  });
  return tiles.collect();
}

template <class T>
std::tuple<Tensor, Tensor> run_relu(AblationSweep& sweep, const Tensor& logits, const Tensor& weight) {
  constexpr int t = sizeof(T) == sizeof(double);
  const AblationKernels& kernels = at_level(kTables);
  const Prepared<T> prepared(kernels, sweep);
  const int64_t block = kernels.block[t] / 2, n_blocks = blocks_of(sweep.n_ablations, block);
  sweep.group = group_of(sweep.n_classes, kReluWide, kReluNarrow);
  Packed<T> packed(weight.data_ptr(), sweep.n_classes, sweep.n_hidden, sweep.group);
  sweep.weight = packed.data();
  // Of fewer samples, the sums are those of the terms of each, whose logarithms are the least of the work.
  sweep.joined = sweep.n_samples > kTileSamples;
  sweep.tables = sweep.n_samples >= kTableSamples && sweep.n_hidden > 0;
  if (kernels.relu_bytes[t](sweep) > kMostTables) sweep.tables = false;
  Tiles tiles(sweep, logits, tile_samples(sweep));
  const int64_t n_shares = blocks_of(tiles.size(), kTableTiles), n = n_blocks * n_shares;
  const auto run = [&](int64_t begin, int64_t end) {
    Memory<char> workspace(kernels.relu_bytes[t](sweep));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t now = i / n_shares, first = i % n_shares * kTableTiles;
      if (i == begin || first == 0) kernels.relu_tables[t](sweep, now, workspace.data());
      for (int64_t tile = first; tile < std::min(first + kTableTiles, tiles.size()); ++tile) {
        kernels.relu[t](sweep, tiles.at(tile), now, workspace.data());
      }
    }
  };
  if (sweep.n_samples * sweep.n_ablations * sweep.n_hidden * sweep.n_classes <= kHiddenGrain) {
    run(0, n);
  } else {
    torch::stable::parallel_for(0, n, 1, run);
  }
  return tiles.collect();
}

template <class T>
std::tuple<Tensor, Tensor> run_hidden(AblationSweep& sweep, const Tensor& logits, const Tensor& weight) {
  constexpr int t = sizeof(T) == sizeof(double);
  const AblationKernels& kernels = at_level(kTables);
  const int64_t n_classes = sweep.n_classes, n_hidden = sweep.n_hidden;
  const Prepared<T> prepared(kernels, sweep);
  sweep.group = group_of(n_classes, kernels.groups[0], kernels.groups[1]);
  Packed<T> packed(weight.data_ptr(), n_classes, n_hidden, sweep.group);
  sweep.weight = packed.data();
  Tiles tiles(sweep, logits, tile_samples(sweep));
  const int64_t share = tiles.size() < kManyTiles ? kFewShare : kManyShare;
  const int64_t n_shares = blocks_of(sweep.n_ablations, share);
  const int64_t n_workspace =
      (3 * n_hidden + n_classes + kernels.groups[0] + kMostTerms + share) * kernels.block[t];
  const int64_t cost = std::min(kTileSamples, sweep.n_samples) * share * n_hidden * n_classes;
  const auto run = [&](int64_t begin, int64_t end) {
    Memory<T> workspace(n_workspace);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % n_shares * share;
      kernels.hidden[t](sweep, tiles.at(i / n_shares), first,
                        std::min(first + share, sweep.n_ablations), workspace.data());
    }
  };
  const int64_t n = tiles.size() * n_shares;
  if (n * cost <= kHiddenGrain) {
    run(0, n);
  } else {
    torch::stable::parallel_for(0, n, 1, run);
  }
  return tiles.collect();
}

std::tuple<Tensor, Tensor> ablation_sweep(const Tensor& logits, const Tensor& scales,
                                          const Tensor& updates, std::optional<Tensor> targets,
                                          bool per_sample) {
  constexpr const char* op = "ablation_sweep";
  AblationSweep sweep = read_sweep(op, logits, scales, targets, per_sample);
  check_matrix(op, "updates", updates, sweep.n_ablations, sweep.n_classes, logits);
  sweep.term_stride = sweep.n_ablations * (per_sample ? sweep.n_samples : 1);
  const bool is_double = logits.scalar_type() == ScalarType::Double;
  return is_double ? run_logits<double>(sweep, logits, updates)
                   : run_logits<float>(sweep, logits, updates);
}

std::tuple<Tensor, Tensor> ablation_sweep_hidden(const Tensor& logits, const Tensor& hidden,
                                                 const Tensor& scales, const Tensor& updates,
                                                 std::string activation, const Tensor& weight,
                                                 std::optional<Tensor> targets, bool per_sample) {
  constexpr const char* op = "ablation_sweep_hidden";
  AblationSweep sweep = read_sweep(op, logits, scales, targets, per_sample);
  check_hidden(op, logits, hidden, scales, updates, weight);
  sweep.n_hidden = hidden.size(1);
  sweep.activation = read_activation(op, activation);
  sweep.hidden = hidden.data_ptr();
  sweep.updates = updates.data_ptr();
  sweep.term_stride = sweep.n_ablations * (per_sample ? sweep.n_samples : 1);
  const bool is_double = logits.scalar_type() == ScalarType::Double;
  if (sweep.activation == Activation::relu && sweep.n_classes <= kReluClasses) {
    return is_double ? run_relu<double>(sweep, logits, weight)
                     : run_relu<float>(sweep, logits, weight);
  }
  return is_double ? run_hidden<double>(sweep, logits, weight)
                   : run_hidden<float>(sweep, logits, weight);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("ablation_sweep", TORCH_BOX(&ablation_sweep));
  m.impl("ablation_sweep_hidden", TORCH_BOX(&ablation_sweep_hidden));
}

}  // namespace modfast
