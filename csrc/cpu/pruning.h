// The greedy pruning of one layer as its kernels see it.
//
// Samples stand in blocks of as many as a register has lanes; every array of a sample's numbers is
// [block][number][lane]. Lanes past the last sample have inputs and losses of 0. Some blocks are a tile:
// a sum over samples is taken in each, whatever the number of threads.
#pragma once

#include <cstdint>
#include <new>
#include <type_traits>
#include <vector>

#include "../math/pruning.h"

namespace modfast {

// In whole lines of the cache, so that a register is never loaded from two, nor a line written by two threads.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class Other>
  AlignedAllocator(const AlignedAllocator<Other>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  void deallocate(T* data, size_t) { ::operator delete(data, kAlignment); }
  bool operator==(const AlignedAllocator&) const { return true; }

  static constexpr std::align_val_t kAlignment{64};
};
template <class T>
using Aligned = std::vector<T, AlignedAllocator<T>>;

template <class T>
using IntegerOf = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, int64_t>;

// What is kept of each sample about the unit whose weights are being visited.
enum PruningField : int {
  kNow,              // its pre-activation t, and in the next field another: the block's `side` says which is
                     // true as things stand, and the other was before the last trial
  kLoss = kNow + 2,  // the sample's loss, likewise
  kLow = kLoss + 2,  // where the series holds: from this u = max(t, 0)
  kHigh,             // to this
  kCenter,           // it is a polynomial in q = (u - center) * scale
  kScale,
  kSeries,           // the loss at the center, then kDegree coefficients
  kPruningFields = kSeries + kDegree + 1,
};
// Of a unit of the last layer, which is a class, the loss is softplus((t - center) * scale) and a constant
// throughout, and only kNow, kCenter, kScale and the constants' sums are kept.

// Series that each sample had before: an output wanders to and fro. Two of these save two thirds of the series
// that would be made anew where many weights are put back, as in the first layer of a dense 784-64-64-10, and
// less than a tenth where few are, as in the second after the last.
constexpr int kRecent = 2, kRecentFields = kPruningFields - kLow;

// Entries of a matrix, line by line.
template <class T>
struct SparseLines {
  std::vector<int64_t> begin{0};
  std::vector<int32_t> index;
  Aligned<T> value;

  bool empty(int64_t line) const { return begin[line] == begin[line + 1]; }
};

template <class T>
struct PruningLayer {
  int64_t n_out, n_in;
  int64_t stride;               // n_out, rounded up to whole registers
  const T* bias;                // [n_out]
  Aligned<T> packed;            // weight, [group of outputs][input][output of the group]
  std::vector<int32_t> inputs;  // those that have any effect
  // Pre-activations: of the pruned layer [block][unit][lane], of others [sample][stride].
  Aligned<T> values;
};

template <class T>
struct Pruning {
  int64_t n_samples, n_blocks;
  int64_t tile_blocks, n_tiles;
  std::vector<int32_t> tile_of;         // by block
  const T* inputs;                      // of the pruned layer, [n_samples, n_in]
  Aligned<IntegerOf<T>> classes;        // the samples' targets; -1 past the last
  std::vector<PruningLayer<T>> layers;  // the pruned one, then those after it; ReLU in between
  // By units of the pruned layer, the weights of the next that have any effect; also as [unit][stride].
  SparseLines<T> readers;
  Aligned<T> dense_readers;
  std::vector<T> inverses;              // of their weights, finite
  Aligned<T> fields;                    // [block][field][lane]
  std::vector<int32_t> side;            // of each block: 0 or 1
  std::vector<T> recent;                // [sample][kRecent][kRecentFields]
  std::vector<uint8_t> oldest;          // of these, by sample
  // By inputs of the pruned layer and tiles, the blocks where they are not all zero, or of a last layer all
  // blocks; `value` is [entry][lane].
  SparseLines<T> columns;
  Aligned<double> constants;            // of the losses of a class, [tile][kSumLanes]
  Aligned<double> sums;                 // [tile][kSumLanes], of which the sum over all is wanted
  int64_t n_widest;                     // stride of the widest layer

  bool is_last() const { return layers.size() == 1; }
  // The entries of a column in a tile begin here; those of the next tile, or column, follow.
  const int64_t* entries(int64_t column, int64_t tile) const { return &columns.begin[column * n_tiles + tile]; }
};
constexpr int kSumLanes = 8;

// Tiles [begin, end), with memory of their own.
template <class T>
struct PruningPart {
  int64_t begin, end;
  int32_t* samples;  // room for those of the tiles, and a block more
  T* work;           // [kPruningWork][units of the widest layer][lane]
};
constexpr int kPruningWork = 5;

// A trial of one weight, and the column of the trial before it if that is to be undone, or -1.
template <class T>
struct PruningVisit {
  int64_t row, column, undone;
  T weight;
};

template <class T>
struct PruningKernels {
  int lanes, group;
  void (*columns)(Pruning<T>&, PruningPart<T>, T*);
  void (*start)(Pruning<T>&, PruningPart<T>, const T*);
  void (*advance)(Pruning<T>&, size_t, PruningPart<T>);
  void (*losses)(Pruning<T>&, PruningPart<T>);
  void (*fill_row)(Pruning<T>&, int64_t, const T*, PruningPart<T>);
  void (*settle)(Pruning<T>&, int64_t, PruningPart<T>);
  void (*open)(Pruning<T>&, int64_t, PruningPart<T>);
  void (*trial)(Pruning<T>&, PruningVisit<T>, PruningPart<T>);
  void (*undo)(Pruning<T>&, int64_t, PruningPart<T>);
};

struct BothPruningKernels {
  PruningKernels<float> in_float;
  PruningKernels<double> in_double;
};

}  // namespace modfast
