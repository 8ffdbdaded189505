// Kernels of the ablation sweeps; compiled per SIMD level by for_each_level.h.
#include "lanes_kernels.h"
#include "activations_kernels.h"
#include "class_sums_kernels.h"
#include "ablation_terms_kernels.h"
#include "ablation_relu_kernels.h"

// Samples [tile.begin, tile.end) of the ablations of one block: a lane is an ablation.
template <class T>
void sweep_logits(const AblationSweep& sweep, SampleTile tile, int64_t block) {
  using V = Lanes<T>;
  const int64_t n_classes = sweep.n_classes;
  const T* updates = static_cast<const T*>(sweep.updates) + block * kLanes<T> * n_classes;
  const auto update = [=](int64_t c) { return load_lanes(updates + c * kLanes<T>); };
  V low = update(0), high = low;
  for (int64_t c = 1; c < n_classes; ++c) {
    low = smaller(low, update(c));
    high = larger(high, update(c));
  }
  const V span = high - low;
  BlockTerms<T> terms(sweep, tile, block);
  for (int64_t i = tile.begin; i < tile.end; ++i) {
    const V scales = terms.scales(i);
    const T* p = terms.probabilities(i);
    const V mean = mean_change<T>(n_classes, [=](int64_t c) { return p[c * kBlock<T>]; }, update);
    terms.add(i, larger(scales, -scales) * span, scales * mean,
              [&](int64_t c) { return scales * update(c); });
  }
  terms.finish();
}

// Classes whose logits are kept in registers at a time: the larger fills them with two vectors of
// samples each, the smaller wastes less where there are few classes.
constexpr int kWide = MODFAST_SIMD_BITS == 512 ? 10 : 5;
constexpr int kNarrow = MODFAST_SIMD_BITS == 512 ? 4 : 2;

// weight: [n_classes, n_hidden]. packed: [group of classes][hidden unit][class of the group].
template <int kGroup, class T, class Delta>
MODFAST_LANE void changes_of_group(const T* packed, int64_t n_hidden, const Delta& delta, T* changes) {
  using V = Lanes<T>;
  V sums[kGroup][2] = {};
  for (int64_t j = 0; j < n_hidden; ++j) {
    const V a = delta(j, 0), b = delta(j, 1);
#pragma GCC unroll 16
    for (int c = 0; c < kGroup; ++c) {
      sums[c][0] += a * packed[j * kGroup + c];
      sums[c][1] += b * packed[j * kGroup + c];
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kGroup; ++c) {
    store_lanes(changes + c * kBlock<T>, sums[c][0]);
    store_lanes(changes + c * kBlock<T> + kLanes<T>, sums[c][1]);
  }
}

template <int kGroup, class T, class Delta>
MODFAST_LANE void all_changes(const AblationSweep& sweep, const Delta& delta, T* changes) {
  const T* packed = static_cast<const T*>(sweep.weight);
  for (int64_t c = 0; c < sweep.n_classes; c += kGroup) {
    changes_of_group<kGroup>(packed + c * sweep.n_hidden, sweep.n_hidden, delta,
                             changes + c * kBlock<T>);
  }
}

template <class T>
MODFAST_LANE double total(const T* values) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int l = 0; l < kBlock<T>; ++l) sum += values[l];
  return sum;
}

// Samples [tile.begin, tile.end), a lane each, of ablations [begin, end). `tile.begin` is a multiple
// of kBlock. workspace: (3 n_hidden + n_classes + kWide + kMostTerms + end - begin) kBlock.
template <class T>
void sweep_hidden(const AblationSweep& sweep, SampleTile tile, int64_t begin, int64_t end,
                  void* workspace) {
  using V = Lanes<T>;
  constexpr int64_t n_block = kBlock<T>;
  const int64_t n_hidden = sweep.n_hidden, n_classes = sweep.n_classes;
  T* hidden = static_cast<T*>(workspace);
  T* before = hidden + n_hidden * n_block;
  T* deltas = before + n_hidden * n_block;
  T* changes = deltas + n_hidden * n_block;
  T* found = changes + (n_classes + kWide) * n_block;
  T* scales = found + kMostTerms * n_block;
  if (!sweep.per_sample) {
    for (int k = 0; k < sweep.n_terms; ++k) {
      for (int64_t a = begin; a < end; ++a) tile.terms[k * sweep.term_stride + a] = 0.0;
    }
  }
  for (int64_t first = tile.begin; first < tile.end; first += n_block) {
    const int64_t n = tile.end - first < n_block ? tile.end - first : n_block;
    transpose(static_cast<const T*>(sweep.hidden) + first * n_hidden, n, n_hidden, n_hidden, n_block,
              hidden);
    transpose(static_cast<const T*>(sweep.scales) + first * sweep.n_ablations + begin, n, end - begin,
              sweep.n_ablations, n_block, scales);
    activate<T>(sweep.activation, hidden, before, n_hidden * n_block);
    const T* p = static_cast<const T*>(sweep.prepared) + first / n_block * 3 * n_classes * n_block;
    const T* centered = p + n_classes * n_block;
    const T* log_p = centered + n_classes * n_block;
    for (int64_t a = begin; a < end; ++a) {
      const T* update = static_cast<const T*>(sweep.updates) + a * n_hidden;
      const T* scale = scales + (a - begin) * n_block;
      const V s[2] = {load_lanes(scale), load_lanes(scale + kLanes<T>)};
      for (int64_t j = 0; j < n_hidden; ++j) {
        T* to = deltas + j * n_block;
        const T* from = hidden + j * n_block;
        store_lanes(to, load_lanes(from) + s[0] * update[j]);
        store_lanes(to + kLanes<T>, load_lanes(from + kLanes<T>) + s[1] * update[j]);
      }
      activate<T>(sweep.activation, deltas, deltas, n_hidden * n_block);
#pragma omp simd
      for (int64_t i = 0; i < n_hidden * n_block; ++i) deltas[i] -= before[i];
      const auto delta = [&](int64_t j, int h) {
        return load_lanes(deltas + j * n_block + h * kLanes<T>);
      };
      if (sweep.group == kWide) {
        all_changes<kWide, T>(sweep, delta, changes);
      } else {
        all_changes<kNarrow, T>(sweep, delta, changes);
      }
      for (int h = 0; h < 2; ++h) {
        const auto at = [&](const T* values) {
          return [=](int64_t c) { return load_lanes(values + c * n_block + h * kLanes<T>); };
        };
        const auto change = at(changes);
        V low = change(0), high = low;
        for (int64_t c = 1; c < n_classes; ++c) {
          low = smaller(low, change(c));
          high = larger(high, change(c));
        }
        const V mean = mean_change<T>(n_classes, at(p), change);
        Mask<T> target{};
        if (sweep.has_targets()) {
          for (int l = 0; l < kLanes<T>; ++l) {
            const int64_t i = first + h * kLanes<T> + l;
            target[l] = i < tile.end ? sweep.targets[i] : -1;
          }
        }
        Found<T> f{};
        ablation_terms<T>(
            n_classes, high - low, mean, sweep.has_targets(), at(p), at(centered), at(log_p), change,
            [&](int64_t c) { return target == static_cast<int32_t>(c); },
            [&](int64_t c) { return target > static_cast<int32_t>(c); }, f);
        const Mask<T> here = target >= 0;
        const V parts[kMostTerms] = {f.terms.entropy_difference, f.terms.kl_ablated_original,
                                     f.terms.kl_original_ablated, here ? f.loss : V{},
                                     here ? f.correct : V{}};
        for (int k = 0; k < sweep.n_terms; ++k) {
          store_lanes(found + k * n_block + h * kLanes<T>, parts[k]);
        }
      }
      for (int k = 0; k < sweep.n_terms; ++k) {
        if (sweep.per_sample) {
          for (int64_t l = 0; l < n; ++l) {
            const int64_t row = (first - tile.begin + l) * sweep.n_ablations;
            tile.terms[k * sweep.term_stride + row + a] = found[k * n_block + l];
          }
        } else {
          tile.terms[k * sweep.term_stride + a] += total(found + k * n_block);
        }
      }
      if (tile.classes != nullptr) {
        for (int64_t l = 0; l < n; ++l) {
          tile.classes[sweep.targets[first + l] * sweep.n_ablations + a] += found[4 * n_block + l] != T(0);
        }
      }
    }
  }
}

constexpr AblationKernels kernels = {
    {kBlock<float>, kBlock<double>},
    {kWide, kNarrow},
    {prepare<float>, prepare<double>},
    {sweep_logits<float>, sweep_logits<double>},
    {relu_bytes<float>, relu_bytes<double>},
    {relu_tables<float>, relu_tables<double>},
    {sweep_relu<float>, sweep_relu<double>},
    {sweep_hidden<float>, sweep_hidden<double>},
};
