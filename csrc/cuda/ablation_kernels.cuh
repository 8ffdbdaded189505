// Kernels of the ablation sweeps. Device code only; no torch header.
//
// Bound by arithmetic: some 30 operations for each sample, ablation and class. Few classes stay in a
// thread's registers; more are shared by a team of threads. Sums are taken in two passes, first of each
// tile of samples, so that no result depends on the launch.
#pragma once

#include "ablation_terms.cuh"

namespace modfast {

// Fills in shares and entropies, a sample a team.
template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    prepare_samples(const __grid_constant__ Sweep<T> sweep) {
  constexpr int kTeams = kThreads / kTeam;
  const TeamClasses<kTeam> classes{sweep.n_classes};
  for (int64_t n = int64_t{blockIdx.x} * kTeams + threadIdx.x / kTeam; n < sweep.n_samples;
       n += int64_t{gridDim.x} * kTeams) {
    const T* logits = sweep.logits + n * sweep.n_classes;
    Share<T>* shares = sweep.shares + n * sweep.stride;
    T largest[1] = {logits[0]};
    classes.each([&](int64_t c) { largest[0] = larger(largest[0], logits[c]); });
    classes.merge(largest, Largest{});
    T sums[2] = {};
    classes.each([&](int64_t c) {
      const T d = logits[c] - largest[0], e = std::exp(d);
      sums[0] += e;
      sums[1] += e * d;
    });
    classes.merge(sums, Sum{});
    const T log_total = std::log(sums[0]), share = 1 / sums[0];
    classes.each([&](int64_t c) {
      const T d = logits[c] - largest[0];
      shares[c] = Share<T>{std::exp(d) * share, d - log_total};
    });
    const T last = logits[sweep.n_classes - 1] - largest[0] - log_total;
    for (int64_t c = sweep.n_classes + classes.rank(); c < sweep.stride; c += kTeam) {
      shares[c] = Share<T>{0, last};
    }
    if (classes.rank() == 0) sweep.entropies[n] = log_total - sums[1] * share;
  }
}

// ---- few classes: a block takes kStep samples of kGroup ablations, a thread 2 of both

constexpr int kStep = 2 * kWarps;
constexpr int kGroup = 2 * 32;

template <class T, int kClasses>
using Changes = T[2][2][kClasses];  // by the thread's samples and ablations

// What the thread has of a block's samples and ablations; what lies beyond the end repeats the last.
struct Corner {
  int64_t sample, ablation;  // of the block
  int64_t last_sample, last_ablation;

  __device__ __forceinline__ int64_t n(int i) const {
    const int64_t at = sample + threadIdx.x / 32 * 2 + i;
    return at < last_sample ? at : last_sample;
  }
  __device__ __forceinline__ int64_t a(int i) const {
    const int64_t at = ablation + threadIdx.x % 32 + i * 32;
    return at < last_ablation ? at : last_ablation;
  }
};

// The logits change by scales times updates [n_ablations, n_classes].
template <class T>
struct LogitUpdates {
  const T* updates;

  template <int kClasses>
  __device__ __forceinline__ void fill(const Sweep<T>& sweep, const Corner& corner,
                                       Changes<T, kClasses>& changes) const {
    const int last = static_cast<int>(sweep.n_classes) - 1;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const T* update = updates + corner.a(a) * sweep.n_classes;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const T u = update[c < last ? c : last];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          changes[n][a][c] = sweep.scales[corner.n(n) * sweep.n_ablations + corner.a(a)] * u;
        }
      }
    }
  }
};

// The last hidden layer.
template <class T>
struct HiddenLayer {
  const T* hidden;   // [n_samples, n_hidden]
  const T* updates;  // [n_ablations, n_hidden]
  const T* weight;   // [n_classes, n_hidden]
  int64_t n_hidden;
  Activation activation;
};

// Its pre-activations change by scales times updates. The block goes through kUnits hidden units at a
// time, which are staged in shared memory, and those beyond the end as zeros.
template <class T, bool kRelu>
struct HiddenUpdates : HiddenLayer<T> {
  static constexpr int kUnits = 16;

  template <int kClasses>
  __device__ __forceinline__ void fill(const Sweep<T>& sweep, const Corner& corner,
                                       Changes<T, kClasses>& changes) const {
    // Rows are longer than what they hold, against bank conflicts and to be read by 16 bytes.
    alignas(16) __shared__ Unit<T> units[kUnits][kStep + 2];
    alignas(16) __shared__ T weights[kUnits][(kClasses + 3) / 4 * 4];
    __shared__ T staged[kUnits][kGroup + 1];
    const Activation kind = kRelu ? Activation::relu : this->activation;
    const int64_t n_hidden = this->n_hidden;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, unit = threadIdx.x % kUnits;
    T scales[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int a = 0; a < 2; ++a) {
        scales[n][a] = sweep.scales[corner.n(n) * sweep.n_ablations + corner.a(a)];
#pragma unroll
        for (int c = 0; c < kClasses; ++c) changes[n][a][c] = 0;
      }
    }
    const auto stage = [&](const T* rows, int64_t row, int64_t last, int64_t j) {
      return j < n_hidden ? rows[(row < last ? row : last) * n_hidden + j] : T(0);
    };
    for (int64_t first = 0; first < n_hidden; first += kUnits) {
      const int64_t j = first + unit;
      for (int i = threadIdx.x / kUnits; i < kStep; i += kThreads / kUnits) {
        units[unit][i] =
            unit_of(kind, stage(this->hidden, corner.sample + i, corner.last_sample, j));
      }
      for (int i = threadIdx.x / kUnits; i < kGroup; i += kThreads / kUnits) {
        staged[unit][i] = stage(this->updates, corner.ablation + i, corner.last_ablation, j);
      }
      for (int i = threadIdx.x / kUnits; i < kClasses; i += kThreads / kUnits) {
        weights[unit][i] = stage(this->weight, i, sweep.n_classes - 1, j);
      }
      __syncthreads();
#pragma unroll 2
      for (int u = 0; u < kUnits; ++u) {
        T row[kClasses];
#pragma unroll
        for (int c = 0; c < kClasses; ++c) row[c] = weights[u][c];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const Unit<T> before = units[u][2 * warp + n];
#pragma unroll
          for (int a = 0; a < 2; ++a) {
            const T delta = changed(kind, before, scales[n][a] * staged[u][lane + 32 * a]);
#pragma unroll
            for (int c = 0; c < kClasses; ++c) changes[n][a][c] += delta * row[c];
          }
        }
      }
      // The next units overwrite these.
      __syncthreads();
    }
  }
};

template <class T, int kClasses, class Updates>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    sweep_few(const __grid_constant__ Sweep<T> sweep, const __grid_constant__ Updates updates) {
  __shared__ double sums[kMostTerms][kWarps][kGroup];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t n_groups = (sweep.n_ablations + kGroup - 1) / kGroup;
  const int64_t n_tiles = (sweep.n_samples + kStep - 1) / kStep;
  for (int64_t block = blockIdx.x; block < n_tiles * n_groups; block += gridDim.x) {
    const int64_t tile = block / n_groups;
    const Corner corner{tile * kStep, block % n_groups * kGroup, sweep.n_samples - 1,
                        sweep.n_ablations - 1};
    Changes<T, kClasses> changes;
    updates.template fill<kClasses>(sweep, corner, changes);
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const int64_t ablation = corner.ablation + lane + 32 * a;
      double own[kMostTerms] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t n = corner.sample + 2 * warp + i;
        if (n < sweep.n_samples && ablation < sweep.n_ablations) {
          Found<T> found[1];
          ablation_terms(sweep, n, OwnClasses<kClasses>{},
                         [&](int64_t c, int) { return changes[i][a][c]; }, found);
          keep(sweep, n, ablation, found[0]);
#pragma unroll
          for (int k = 0; k < kMostTerms; ++k) own[k] += found[0].terms[k];
        }
      }
#pragma unroll
      for (int k = 0; k < kMostTerms; ++k) sums[k][warp][lane + 32 * a] = own[k];
    }
    if (sweep.per_sample) continue;
    __syncthreads();
    for (int i = threadIdx.x; i < sweep.n_terms * kGroup; i += kThreads) {
      const int k = i / kGroup, a = i % kGroup;
      double sum = 0.0;
      for (int w = 0; w < kWarps; ++w) sum += sums[k][w][a];
      if (corner.ablation + a < sweep.n_ablations) {
        sweep.terms[(tile * sweep.n_terms + k) * sweep.n_ablations + corner.ablation + a] = sum;
      }
    }
    // The next block's samples overwrite the sums.
    __syncthreads();
  }
}

// ---- many classes: a team takes a tile of samples and kTogether ablations

constexpr int kTogether = 4;

// Samples of a tile. Where there are most classes, each sample is worth a block.
template <int kTeam>
constexpr int kTile = kTeam > 32 ? 1 : 4;

// Samples [begin, end) and the ablations from `first` on. `begin` is a multiple of the tile.
struct Chunk {
  int64_t begin, end, first, n_ablations;

  __device__ __forceinline__ int64_t pair(int64_t n, int64_t a) const {
    return (n - begin) * n_ablations + a - first;
  }
};

// The logits' changes: of each pair of a chunk, or else scales times updates [n_ablations, n_classes].
template <class T>
struct ManyChanges {
  const T* pairs;
  const T* updates;
};

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    sweep_many(const __grid_constant__ Sweep<T> sweep, const Chunk chunk, const ManyChanges<T> changes) {
  constexpr int kTeams = kThreads / kTeam, K = kTogether;
  const TeamClasses<kTeam> classes{sweep.n_classes};
  const int64_t n_groups = (chunk.n_ablations + K - 1) / K;
  const int64_t n_tiles = (chunk.end - chunk.begin + kTile<kTeam> - 1) / kTile<kTeam>;
  for (int64_t i = int64_t{blockIdx.x} * kTeams + threadIdx.x / kTeam; i < n_tiles * n_groups;
       i += int64_t{gridDim.x} * kTeams) {
    const int64_t begin = chunk.begin + i / n_groups * kTile<kTeam>;
    const int64_t end = begin + kTile<kTeam> < chunk.end ? begin + kTile<kTeam> : chunk.end;
    const int64_t first = i % n_groups * K, n_left = chunk.n_ablations - first;
    // Each of the first threads keeps one ablation.
    const bool keeps = classes.rank() < K && classes.rank() < n_left;
    const int64_t mine = chunk.first + first + classes.rank();
    double own[kMostTerms] = {};
    for (int64_t n = begin; n < end; ++n) {
      T factors[K];
      const T* rows[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int64_t a = chunk.first + first + (k < n_left ? k : n_left - 1);
        factors[k] = changes.pairs != nullptr ? T(1) : sweep.scales[n * sweep.n_ablations + a];
        rows[k] = changes.pairs != nullptr ? changes.pairs + chunk.pair(n, a) * sweep.n_classes
                                           : changes.updates + a * sweep.n_classes;
      }
      Found<T> found[K];
      ablation_terms(sweep, n, classes, [&](int64_t c, int k) { return factors[k] * rows[k][c]; }, found);
      Found<T> chosen = found[0];
#pragma unroll
      for (int k = 1; k < K; ++k) chosen = classes.rank() == k ? found[k] : chosen;
      if (keeps) keep(sweep, n, mine, chosen);
#pragma unroll
      for (int k = 0; k < kMostTerms; ++k) own[k] += chosen.terms[k];
    }
    if (keeps && !sweep.per_sample) {
      const int64_t tile = begin / kTile<kTeam>;
#pragma unroll
      for (int k = 0; k < kMostTerms; ++k) {
        if (k < sweep.n_terms) sweep.terms[(tile * sweep.n_terms + k) * sweep.n_ablations + mine] = own[k];
      }
    }
  }
}

// How the hidden units change, for each pair of a chunk [samples, ablations, n_hidden]; a pair a warp.
template <class T>
__global__ void __launch_bounds__(kThreads)
    change_units(const __grid_constant__ Sweep<T> sweep, const Chunk chunk, const HiddenLayer<T> layer,
                 T* deltas) {
  const int64_t n_pairs = (chunk.end - chunk.begin) * chunk.n_ablations;
  for (int64_t pair = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; pair < n_pairs;
       pair += int64_t{gridDim.x} * kWarps) {
    const int64_t n = chunk.begin + pair / chunk.n_ablations, a = chunk.first + pair % chunk.n_ablations;
    const T scale = sweep.scales[n * sweep.n_ablations + a];
    for (int64_t j = threadIdx.x % 32; j < layer.n_hidden; j += 32) {
      const Unit<T> unit = unit_of(layer.activation, layer.hidden[n * layer.n_hidden + j]);
      deltas[pair * layer.n_hidden + j] =
          changed(layer.activation, unit, scale * layer.updates[a * layer.n_hidden + j]);
    }
  }
}

// ---- what the tiles add up to

// tiles: [n_tiles, n]. A block takes kTileColumns of the n, and kRows tiles at a time.
constexpr int kTileColumns = 8;

static __global__ void __launch_bounds__(kThreads)
    collect_tiles(const double* tiles, int64_t n_tiles, int64_t n, double* sums) {
  constexpr int kColumns = kTileColumns, kRows = kThreads / kColumns;
  __shared__ double parts[kRows][kColumns];
  const int row = threadIdx.x / kColumns, column = threadIdx.x % kColumns;
  for (int64_t first = int64_t{blockIdx.x} * kColumns; first < n; first += int64_t{gridDim.x} * kColumns) {
    const bool valid = first + column < n;
    double sum = 0.0;
#pragma unroll 4
    for (int64_t tile = row; valid && tile < n_tiles; tile += kRows) sum += tiles[tile * n + first + column];
    parts[row][column] = sum;
    __syncthreads();
    if (row == 0 && valid) {
      for (int r = 1; r < kRows; ++r) sum += parts[r][column];
      sums[first + column] = sum;
    }
    // The next columns overwrite the parts.
    __syncthreads();
  }
}

// Counts, in place, as doubles.
static __global__ void __launch_bounds__(kThreads) count_in_doubles(unsigned long long* counts, int64_t n) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kThreads) {
    counts[i] = bit_cast<unsigned long long>(static_cast<double>(counts[i]));
  }
}

}  // namespace modfast
