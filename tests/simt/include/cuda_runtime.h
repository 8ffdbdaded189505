// The part of CUDA that modfast's kernels may use, for the host compiler. What is not here is not to be
// used in csrc/cuda, or is to be added here, with its checks, first.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "simt.h"

// ---- the language

#define __host__
#define __device__
#define __global__ __attribute__((noinline))  // so that a report can tell the kernel's name
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
// The shared variables of a library are its thread-local storage: one range to find, fill and watch.
#define __shared__ static thread_local
#define DYN_SMEM(T, name) T* const name = static_cast<T*>(::simt::dynamic_shared())

using simt::blockDim, simt::blockIdx, simt::dim3, simt::gridDim, simt::threadIdx, simt::uint3;
constexpr int warpSize = 32;

#define SIMT_VECTORS(T, name, align2, align4)                                            \
  struct alignas(align2) name##2 { T x, y; };                                            \
  struct alignas(align4) name##4 { T x, y, z, w; };                                      \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                             \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTORS(signed char, char, 2, 4)
SIMT_VECTORS(unsigned char, uchar, 2, 4)
SIMT_VECTORS(short, short, 4, 8)
SIMT_VECTORS(unsigned short, ushort, 4, 8)
SIMT_VECTORS(int, int, 8, 16)
SIMT_VECTORS(unsigned, uint, 8, 16)
SIMT_VECTORS(float, float, 8, 16)
#undef SIMT_VECTORS
struct alignas(16) double2 { double x, y; };
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- barriers

using SimtHere = std::source_location;

inline void __syncthreads(SimtHere here = SimtHere::current()) { simt::sync_block(here); }
inline int __syncthreads_count(int predicate, SimtHere here = SimtHere::current()) {
  return simt::count_block(predicate != 0, here).yes;
}
inline int __syncthreads_and(int predicate, SimtHere here = SimtHere::current()) {
  const auto votes = simt::count_block(predicate != 0, here);
  return votes.yes == votes.all;
}
inline int __syncthreads_or(int predicate, SimtHere here = SimtHere::current()) {
  return simt::count_block(predicate != 0, here).yes != 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SimtHere here = SimtHere::current()) {
  simt::sync_warp(mask, here);
}

// What the machine does itself is not hooked.
#define SIMT_UNHOOKED __attribute__((no_sanitize("thread"), no_sanitize("undefined")))

// ---- warp collectives: they exchange values, and order no memory

// The value that lane `source` brings, or the caller's own where `source` is none.
template <class T>
SIMT_UNHOOKED T simt_shuffle(const char* name, unsigned mask, T value, int source, SimtHere here) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::exchange(name, mask, bits, here, source)[source];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              SimtHere here = SimtHere::current()) {
  const int lane = simt::lane();
  return simt_shuffle("__shfl_sync", mask, value, lane / width * width + source % width, here);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 SimtHere here = SimtHere::current()) {
  const int lane = simt::lane(), source = lane - static_cast<int>(delta);
  return simt_shuffle("__shfl_up_sync", mask, value,
                      source < lane / width * width ? lane : source, here);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   SimtHere here = SimtHere::current()) {
  const int lane = simt::lane(), source = lane + static_cast<int>(delta);
  return simt_shuffle("__shfl_down_sync", mask, value,
                      source >= (lane / width + 1) * width ? lane : source, here);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  SimtHere here = SimtHere::current()) {
  const int lane = simt::lane(), source = lane ^ bits;
  return simt_shuffle("__shfl_xor_sync", mask, value,
                      source >= (lane / width + 1) * width ? lane : source, here);
}

// f(accumulated, value of a lane) over the lanes of `mask`
template <class T, class F>
SIMT_UNHOOKED T simt_reduce(const char* name, unsigned mask, T value, SimtHere here, F f) {
  const uint64_t* values = simt::exchange(name, mask, static_cast<uint64_t>(value), here);
  bool first = true;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1u) {
      const T next = static_cast<T>(values[lane]);
      value = first ? next : static_cast<T>(f(value, next));
      first = false;
    }
  }
  return value;
}

#define SIMT_REDUCE(name, T, expression)                                                   \
  inline T name(unsigned mask, T value, SimtHere here = SimtHere::current()) {             \
    return simt_reduce(#name, mask, value, here, [](T a, T b) { return expression; });     \
  }
SIMT_REDUCE(__reduce_add_sync, unsigned, a + b)
SIMT_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
SIMT_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
SIMT_REDUCE(__reduce_and_sync, unsigned, a& b)
SIMT_REDUCE(__reduce_or_sync, unsigned, a | b)
SIMT_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(a) + b))
SIMT_REDUCE(__reduce_min_sync, int, a < b ? a : b)
SIMT_REDUCE(__reduce_max_sync, int, a > b ? a : b)
#undef SIMT_REDUCE

inline unsigned __ballot_sync(unsigned mask, int predicate, SimtHere here = SimtHere::current()) {
  const uint64_t mine = predicate ? uint64_t{1} << simt::lane() : 0;
  return static_cast<unsigned>(simt_reduce("__ballot_sync", mask, mine, here,
                                           [](uint64_t a, uint64_t b) { return a | b; }));
}
inline int __any_sync(unsigned mask, int predicate, SimtHere here = SimtHere::current()) {
  return simt_reduce("__any_sync", mask, int{predicate != 0}, here, [](int a, int b) { return a | b; });
}
inline int __all_sync(unsigned mask, int predicate, SimtHere here = SimtHere::current()) {
  return simt_reduce("__all_sync", mask, int{predicate != 0}, here, [](int a, int b) { return a & b; });
}

// The twin of csrc/cuda/mma.cuh's product of bytes.
SIMT_UNHOOKED inline void simt_multiply_bytes(int (&c)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2],
                                              SimtHere here = SimtHere::current()) {
  const uint64_t mine[3] = {a[0] | uint64_t{a[1]} << 32, a[2] | uint64_t{a[3]} << 32,
                            b[0] | uint64_t{b[1]} << 32};
  uint64_t all[3][32];
  for (int i = 0; i < 3; ++i) {
    std::memcpy(all[i], simt::exchange("mma", 0xffffffffu, mine[i], here), sizeof(all[i]));
  }
  const int lane = simt::lane();
  for (int i = 0; i < 4; ++i) {
    for (int t = 0; t < 4; ++t) {
      const int row = lane / 4 * 4 + t, col = (lane % 4 * 2 + i % 2) * 4 + t;
      for (int half = 0; half < 2; ++half) {
        for (int byte = 0; byte < 32; byte += 8) {
          const unsigned x = all[half][row] >> (i / 2 * 32 + byte) & 0xff;
          const unsigned y = all[2][col] >> (half * 32 + byte) & 0xff;
          c[i] += static_cast<int>(x * y);
        }
      }
    }
  }
}

// ---- memory
// Not inlined, so that the return address lies in the kernel; not hooked, because each tells the
// checker itself what kind of access it is.

#define SIMT_ACCESS __attribute__((noinline)) SIMT_UNHOOKED
#define SIMT_CALLER __builtin_return_address(0)

template <class T>
SIMT_ACCESS T __ldg(const T* from) {
  simt::access(from, sizeof(T), alignof(T), simt::Access::constant, SIMT_CALLER);
  return *from;
}
// Reads that only differ in what they leave in a cache.
template <class T>
SIMT_ACCESS T __ldcs(const T* from) {
  simt::access(from, sizeof(T), alignof(T), simt::Access::read, SIMT_CALLER);
  return *from;
}
template <class T>
SIMT_ACCESS void __stcs(T* to, T value) {
  simt::access(to, sizeof(T), alignof(T), simt::Access::write, SIMT_CALLER);
  *to = value;
}

// Only the types that the hardware has are taken, as in CUDA's own overloads.
template <class T, class... Allowed>
concept SimtOneOf = (std::is_same_v<T, Allowed> || ...);
template <class T>
concept SimtInteger = SimtOneOf<T, int, unsigned, unsigned long long>;

#define SIMT_ATOMIC(name, constraint, expression)                                     \
  template <constraint T>                                                             \
  SIMT_ACCESS T name(T* at, std::type_identity_t<T> value) {                          \
    simt::access(at, sizeof(T), alignof(T), simt::Access::atomic, SIMT_CALLER);       \
    const T old = *at;                                                                \
    *at = static_cast<T>(expression);                                                 \
    return old;                                                                       \
  }
template <class T>
concept SimtAddable = SimtInteger<T> || SimtOneOf<T, float, double>;
template <class T>
concept SimtExchangeable = SimtInteger<T> || SimtOneOf<T, float>;
template <class T>
concept SimtComparable = SimtInteger<T> || SimtOneOf<T, long long>;
template <class T>
concept SimtSubtractable = SimtOneOf<T, int, unsigned>;
SIMT_ATOMIC(atomicAdd, SimtAddable, old + value)
SIMT_ATOMIC(atomicSub, SimtSubtractable, old - value)
SIMT_ATOMIC(atomicExch, SimtExchangeable, value)
SIMT_ATOMIC(atomicMin, SimtComparable, old < value ? old : value)
SIMT_ATOMIC(atomicMax, SimtComparable, old > value ? old : value)
SIMT_ATOMIC(atomicAnd, SimtInteger, old & value)
SIMT_ATOMIC(atomicOr, SimtInteger, old | value)
SIMT_ATOMIC(atomicXor, SimtInteger, old ^ value)
#undef SIMT_ATOMIC

template <SimtInteger T>
SIMT_ACCESS T atomicCAS(T* at, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  simt::access(at, sizeof(T), alignof(T), simt::Access::atomic, SIMT_CALLER);
  const T old = *at;
  if (old == compare) *at = value;
  return old;
}
#undef SIMT_ACCESS
#undef SIMT_CALLER

// ---- bits

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }

// ---- the run-time library, as far as launch.cuh asks for it

enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// One multiprocessor, so that small inputs make blocks stride over the grid.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 1 : static_cast<int>(simt::kMaxShared);
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  simt::allow_shared(kernel, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  if (!simt::host_access(at, bytes, simt::Access::write)) return cudaErrorLaunchFailure;
  std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t) {
  const bool writes = kind == cudaMemcpyHostToDevice;
  if (!simt::host_access(writes ? to : from, bytes,
                         writes ? simt::Access::write : simt::Access::read)) {
    return cudaErrorLaunchFailure;
  }
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
// A report is told once, as the text of the launch's error.
inline cudaError_t cudaGetLastError() {
  return simt::failed() ? cudaErrorLaunchFailure : cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : simt::take_report();
}

// The parameters lie with the host, and each thread gets its copy.
template <class... Parameters>
struct SimtCall {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> parameters;

  SIMT_UNHOOKED static void run(const void* call) {
    static_cast<const SimtCall*>(call)->expand(std::index_sequence_for<Parameters...>{});
  }
  template <size_t... i>
  SIMT_UNHOOKED void expand(std::index_sequence<i...>) const {
    kernel(std::get<i>(parameters)...);
  }
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const SimtCall<Parameters...> call{kernel, {static_cast<Arguments&&>(arguments)...}};
  const bool good = simt::launch(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                                 reinterpret_cast<const void*>(kernel), &call.run, &call);
  return good ? cudaSuccess : cudaErrorLaunchFailure;
}
