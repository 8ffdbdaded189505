// The greedy pruning of one layer as its kernels see it.
//
// Samples stand in blocks of as many as a register has lanes; every array of a sample's numbers is
// [block][number][lane]. Lanes past the last sample have inputs and losses of 0.
#pragma once

#include <vector>

#include "../math/pruning.h"

namespace modfast {

// What is kept of each sample about the unit whose weights are being visited.
enum PruningField : int {
  kNow,     // its pre-activation, and the sample's loss
  kLoss,
  kMoved,   // both, if the weight that is on trial were zero
  kNext,
  kLow,     // where the series holds
  kHigh,
  kCenter,  // it is a polynomial in q = (pre-activation - center) * scale
  kScale,
  kSeries,  // the loss at the center, then kDegree coefficients
  kPruningFields = kSeries + kDegree + 1,
};
// Of a unit of the last layer, which is a class, the loss is softplus(q) + kSeries throughout.

// Series that each sample had before: a pre-activation wanders to and fro, so that two of these save two
// thirds of the series that would be made anew.
constexpr int kRecent = 2, kRecentFields = kPruningFields - kLow;

// Entries of a matrix, line by line.
template <class T>
struct SparseLines {
  std::vector<int64_t> begin{0};
  std::vector<int32_t> index;
  std::vector<T> value;

  bool empty(int64_t line) const { return begin[line] == begin[line + 1]; }
};

template <class T>
struct PruningLayer {
  int64_t n_out, n_in;
  int64_t stride;               // n_out, rounded up to whole registers
  const T* bias;                // [n_out]
  std::vector<T> packed;        // weight, [group of outputs][input][output of the group]
  std::vector<int32_t> inputs;  // those that have any effect
  // Pre-activations: of the pruned layer [block][unit][lane], of others [sample][stride].
  std::vector<T> values;
};

template <class T>
struct Pruning {
  int64_t n_samples, n_blocks;
  const T* inputs;                      // of the pruned layer, [n_samples, n_in]
  const int64_t* targets;
  std::vector<PruningLayer<T>> layers;  // the pruned one, then those after it; ReLU in between
  // By units of the pruned layer, the weights of the next that have any effect; also as [unit][stride].
  SparseLines<T> readers;
  std::vector<T> dense_readers;
  std::vector<T> inverses;              // of their weights, finite
  std::vector<T> fields;                // [block][field][lane]
  std::vector<T> recent;                // [sample][kRecent][kRecentFields]
  // By inputs of the pruned layer, the blocks where they are not all zero; `value` is [entry][lane].
  SparseLines<T> columns;
  int64_t n_widest;                     // stride of the widest layer

  bool is_last() const { return layers.size() == 1; }
};

// Blocks, or entries of a column, [begin, end), with memory of its own.
template <class T>
struct PruningTile {
  int64_t begin, end;
  int32_t* samples;  // room for those of the tile, and a block more
  T* work;           // [kPruningWork][units of the widest layer][lane]
};
constexpr int kPruningWork = 5;

template <class T>
struct PruningKernels {
  int lanes, group;
  void (*columns)(Pruning<T>&, PruningTile<T>, T*);
  void (*fill_row)(Pruning<T>&, int64_t, const T*, PruningTile<T>);
  void (*advance)(Pruning<T>&, size_t, PruningTile<T>);
  void (*settle)(Pruning<T>&, int64_t, bool, PruningTile<T>);
  double (*losses)(Pruning<T>&, PruningTile<T>);
  void (*open)(Pruning<T>&, int64_t, PruningTile<T>);
  double (*trial)(Pruning<T>&, int64_t, T, PruningTile<T>);
  void (*commit)(Pruning<T>&, PruningTile<T>);
};

struct BothPruningKernels {
  PruningKernels<float> in_float;
  PruningKernels<double> in_double;
};

}  // namespace modfast
