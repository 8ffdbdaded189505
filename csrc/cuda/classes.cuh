// Who has which of a sample's classes, or of any line of numbers: a thread, or several that exchange what
// they find. Device code only; no torch header.
#pragma once

#include <cmath>

#include "launch.cuh"

namespace modfast {

constexpr int kWarps = kThreads / 32;

template <class T>
__device__ __forceinline__ T larger(T a, T b) {
  return std::fmax(a, b);
}

// The classes are all this thread's.
template <int n>
struct OwnClasses {
  using Index = int;

  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
    for (int c = 0; c < n; ++c) f(c);
  }
  // f(target), with nothing but constants as indices, which registers need.
  template <class T, class F>
  __device__ __forceinline__ T at(int64_t target, const F& f) const {
    T found = 0;
    each([&](int c) { found = c == target ? f(c) : found; });
    return found;
  }
  template <class T, int k, class F>
  __device__ __forceinline__ void merge(T (&)[k], const F&) const {}
};

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return larger(a, b);
  }
};

// The classes are shared by a team, some threads of a warp or a whole block.
template <int kTeam>
struct TeamClasses {
  using Index = int64_t;
  static constexpr int kLanes = kTeam < 32 ? kTeam : 32;
  int64_t n;

  __device__ __forceinline__ int rank() const { return threadIdx.x % kTeam; }

  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll 2
    for (int64_t c = rank(); c < n; c += kTeam) f(c);
  }
  template <class T, class F>
  __device__ __forceinline__ T at(int64_t target, const F& f) const {
    return f(target);
  }
  // Of the values of all threads, for all of them alike.
  template <class T, int k, class F>
  __device__ __forceinline__ void merge(T (&values)[k], const F& f) const {
    const unsigned mask = (0xffffffffu >> (32 - kLanes)) << (threadIdx.x % 32 / kLanes * kLanes);
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int i = 0; i < k; ++i) values[i] = f(values[i], __shfl_xor_sync(mask, values[i], offset));
    }
    if constexpr (kTeam > 32) {
      __shared__ T of_warp[kWarps][k];
      if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int i = 0; i < k; ++i) of_warp[threadIdx.x / 32][i] = values[i];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < k; ++i) {
        values[i] = of_warp[0][i];
        for (int warp = 1; warp < kWarps; ++warp) values[i] = f(values[i], of_warp[warp][i]);
      }
      // No barrier here: between two merges of one kind, which share of_warp, is another.
    }
  }
};

}  // namespace modfast
