// Kernels of digitize and digitize_edges. Device code only; no torch header.
//
// Memory-bound: ranges take one read of the values, codes another and their writing. A thread keeps to
// its columns on its way down the rows, so that their rules stay in registers.
#pragma once

#include "../math/binning.h"
#include "launch.cuh"
#include "packs.cuh"

namespace modfast {

// How the grid walks through values [n, d] in packs of V.
struct Walk {
  int64_t size, d;
  int64_t period;  // packs after which the columns repeat; 1 where all columns are one

  static Walk of(int64_t size, int64_t d, int v, bool each) {
    int64_t a = d, b = v;
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return Walk{size, d, each ? d / a : 1};
  }
};

// `begin(v, column)` comes before values of a column in place v of a pack, `use(at, pack)` takes
// values, and `end()` comes after the last of these columns.
template <int V, bool kEach, class T, class Begin, class Use, class End>
__device__ __forceinline__ void walk_columns(const T* x, const Walk& walk, const Begin& begin,
                                             const Use& use, const End& end) {
  constexpr int kBatch = 4;  // packs under way
  const int64_t n_threads = int64_t{gridDim.x} * kThreads;
  const int64_t me = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t n_packs = walk.size / V;
  // With more columns than threads, a thread gets other columns with each pack.
  const bool keeps = walk.period <= n_threads;
  const int64_t stride = keeps ? n_threads / walk.period * walk.period : n_threads;
  const auto start = [&](int64_t pack) {
    if constexpr (kEach) {
      int64_t column = pack * V % walk.d;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        begin(v, column);
        column = column + 1 < walk.d ? column + 1 : 0;
      }
    } else {
      begin(0, int64_t{0});
    }
  };
  if (me < stride && me < n_packs) {
    if (keeps) start(me);
    Pack<T, V> packs[kBatch];
    for (int64_t first = me; first < n_packs; first += kBatch * stride) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int64_t pack = first + b * stride;
        if (pack < n_packs) packs[b] = load_pack<T, V>(x + pack * V);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int64_t pack = first + b * stride;
        if (pack < n_packs) {
          if (!keeps) start(pack);
          use(pack * V, packs[b]);
          if (!keeps) end();
        }
      }
    }
    if (keeps) end();
  }
  // What is left of the last pack.
  const int64_t at = n_packs * V + me;
  if (at < walk.size) {
    begin(0, at % walk.d);
    use(at, Pack<T, 1>{{x[at]}});
    end();
  }
}

template <class C>
__device__ __forceinline__ bool is_number(C x) {
  return x - x == 0;
}

// Numbers as integers in the same order. Those of finite numbers are neither 0 nor all ones, so that
// memory of zeros holds the maximum of none.
__device__ __forceinline__ uint32_t order_key(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ unsigned long long order_key(double x) {
  const unsigned long long bits = bit_cast<unsigned long long>(x);
  return bits >> 63 != 0 ? ~bits : bits | 0x8000000000000000u;
}
__device__ __forceinline__ float number_of(uint32_t key) {
  return bit_cast<float>(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}
__device__ __forceinline__ double number_of(unsigned long long key) {
  return bit_cast<double>(key >> 63 != 0 ? key & 0x7fffffffffffffffu : ~key);
}
template <class C>
using key_t = decltype(order_key(C{}));

// Ranges of up to this many columns are merged within blocks.
constexpr int kSharedRanges = 1024;

// keys: zeros [1 or d, 2]; gets the greatest key of each column, and of the complements.
template <class T, int V, bool kEach>
__global__ void __launch_bounds__(kThreads)
    find_limits(const T* x, const Walk walk, key_t<compute_t<T>>* keys) {
  using C = compute_t<T>;
  using Key = key_t<C>;
  constexpr int kSlots = kEach ? V : 1;
  __shared__ Key merged[2 * kSharedRanges];
  const int n_keys = kEach && walk.d <= kSharedRanges ? 2 * static_cast<int>(walk.d) : kEach ? 0 : 2;
  for (int i = threadIdx.x; i < n_keys; i += kThreads) merged[i] = 0;
  __syncthreads();
  Key* target = n_keys > 0 ? merged : keys;
  Key lowest[kSlots], highest[kSlots];
  int64_t columns[kSlots];
  walk_columns<V, kEach>(
      x, walk,
      [&](int v, int64_t column) {
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          if (slot >= v) {
            columns[slot] = kEach ? column : 0;
            lowest[slot] = highest[slot] = 0;
          }
        }
      },
      [&](int64_t, const auto& pack) {
        constexpr int kValues = sizeof(pack) / sizeof(T);
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
          constexpr int kMask = kEach ? -1 : 0;
          const C value = load(pack.values[v]);
          if (is_number(value)) {
            const Key key = order_key(value);
            Key& low = lowest[v & kMask];
            Key& high = highest[v & kMask];
            low = ~key > low ? ~key : low;
            high = key > high ? key : high;
          }
        }
      },
      [&] {
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          if (highest[slot] != 0) {
            atomicMax(target + 2 * columns[slot], lowest[slot]);
            atomicMax(target + 2 * columns[slot] + 1, highest[slot]);
          }
        }
      });
  __syncthreads();
  for (int i = threadIdx.x; i < n_keys; i += kThreads) {
    if (merged[i] != 0) atomicMax(keys + i, merged[i]);
  }
}

// Ranges and rules from keys or, if given, limits.
template <class C>
__global__ void __launch_bounds__(kThreads)
    make_rules(const key_t<C>* keys, const C* limits, int64_t n_ranges, int bins, C* range,
               UniformBins<C>* rules) {
  for (int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x; r < n_ranges;
       r += int64_t{gridDim.x} * kThreads) {
    C lo = 0, hi = 0;  // nothing finite: 0
    if (limits != nullptr) {
      lo = limits[2 * r];
      hi = limits[2 * r + 1];
    } else if (keys[2 * r + 1] != 0) {
      lo = number_of(static_cast<key_t<C>>(~keys[2 * r]));
      hi = number_of(keys[2 * r + 1]);
    }
    range[2 * r] = lo;
    range[2 * r + 1] = hi;
    rules[r] = UniformBins<C>::of(lo, hi, bins);
  }
}

template <class C>
struct Rules {
  const UniformBins<C>* uniform;  // [1 or d]
  const C* thresholds;            // [1 or d, bins] of the notebook rule and of edges in double, else null
  int bins;
  bool looked_up;                 // multiplication finds the nearest threshold

  // Of finite x in column `r` of them.
  __device__ __forceinline__ int code(const UniformBins<C>& rule, int64_t r, C x) const {
    if (thresholds == nullptr && rule.direct) return rule.code(x, bins);
    x = x < rule.lo ? rule.lo : x;
    x = x > rule.hi ? rule.hi : x;
    if (thresholds == nullptr) {
      return count_thresholds(UniformEdges<C>{rule, bins}, bins - 1, x);
    }
    if (looked_up) {
      const int nearest = static_cast<int>((x - rule.lo) * rule.scale + static_cast<C>(0.5));
      return notebook_code(nearest + (thresholds[r * bins + nearest] <= x ? 1 : 0), bins);
    }
    return notebook_code(count_thresholds(thresholds + r * bins, bins, x), bins);
  }
};

// Codes become bytes or, if wide, 16-bit numbers.
template <int V>
__device__ __forceinline__ void store_codes(void* out, bool wide, int64_t at, const int (&codes)[V]) {
  if (wide) {
    Pack<int16_t, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.values[v] = static_cast<int16_t>(codes[v]);
    store_pack(static_cast<int16_t*>(out) + at, pack);
  } else {
    Pack<uint8_t, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.values[v] = static_cast<uint8_t>(codes[v]);
    store_pack(static_cast<uint8_t*>(out) + at, pack);
  }
}

// not_finite: zeros [d]. `walk.d` is 1 where all of the `d` columns have one rule.
template <class T, int V, bool kEach>
__global__ void __launch_bounds__(kThreads, 2)
    write_codes(const T* x, const Walk walk, const Rules<compute_t<T>> rules, int64_t d, bool wide,
                void* out, unsigned long long* not_finite) {
  using C = compute_t<T>;
  constexpr int kMask = kEach ? -1 : 0;
  UniformBins<C> own[kEach ? V : 1];
  walk_columns<V, kEach>(
      x, walk, [&](int v, int64_t column) { own[v] = rules.uniform[kEach ? column : 0]; },
      [&](int64_t at, const auto& pack) {
        constexpr int kValues = sizeof(pack) / sizeof(T);
        int codes[kValues];
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
          const C value = load(pack.values[v]);
          codes[v] = 0;
          if (is_number(value)) {
            const int64_t r = kEach && rules.thresholds != nullptr ? (at + v) % d : 0;
            codes[v] = rules.code(own[v & kMask], r, value);
          } else {
            atomicAdd(not_finite + (at + v) % d, 1u);
          }
        }
        store_codes(out, wide, at, codes);
      },
      [] {});
}

// edges: [1 or d, m]; `walk.d` is 1 for one row of them.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    write_edge_codes(const T* x, const Walk walk, const compute_t<T>* edges, int m, bool wide,
                     void* out) {
  const compute_t<T>* own[V];
  walk_columns<V, true>(
      x, walk, [&](int v, int64_t column) { own[v] = edges + column * m; },
      [&](int64_t at, const auto& pack) {
        constexpr int kValues = sizeof(pack) / sizeof(T);
        int codes[kValues];
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
          codes[v] = count_thresholds(own[v], m, load(pack.values[v]));
        }
        store_codes(out, wide, at, codes);
      },
      [] {});
}

}  // namespace modfast
