// The one way to launch a kernel. No torch header here: the host harness of the kernels compiles this
// file as it stands, against a cuda_runtime.h of its own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../check.h"

namespace modfast {

// Threads of a block, if nothing else is said: 8 warps. Memory-bound kernels want many small blocks rather
// than few large.
constexpr int kThreads = 256;

// A multiprocessor holds at most 8 blocks of 256. Four times as many let the hardware even out blocks
// that end early, and still share a block's start among many tiles where there are many.
constexpr int64_t kBlocksPerMultiprocessor = 32;

// Whether accesses of 16 bytes may start here.
inline bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Dynamic shared memory of a kernel: a pointer `name` to T. The host harness brings its own.
#ifndef DYN_SMEM
#define DYN_SMEM(T, name)                                          \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared)
#endif

// What every block may have without asking.
constexpr int64_t kPlainShared = 48 << 10;

inline void check_cuda(cudaError_t status, const char* kernel, const char* what) {
#ifdef MODFAST_CUDA_ARCHITECTURES  // a build for one machine's GPU may have come to another
  MODFAST_CHECK(status != cudaErrorNoKernelImageForDevice, kernel, "this GPU is none of those that",
                " modfast was built for (", MODFAST_CUDA_ARCHITECTURES, "): build it again here");
#endif
  MODFAST_CHECK(status == cudaSuccess, kernel, what, " failed: ", cudaGetErrorString(status));
}

inline int64_t device_attribute(const char* name, cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), name, "finding the device");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), name, "reading the device's size");
  return value;
}

inline int64_t multiprocessors(const char* name) {
  return device_attribute(name, cudaDevAttrMultiProcessorCount);
}

// The most shared memory that a block can ask for, static and dynamic.
inline int64_t most_shared(const char* name) {
  return device_attribute(name, cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// How many blocks could work side by side, the bytes of dynamic shared memory of each, and its threads.
struct Blocks {
  int64_t wanted, shared;
  int threads;

  Blocks(int64_t wanted, int64_t shared = 0, int threads = kThreads)
      : wanted(wanted), shared(shared), threads(threads) {}
};

// Starts `kernel` on the current device and does not wait for it. The device's size bounds how many
// blocks there are, so kernels stride over the grid.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Blocks& blocks,
            cudaStream_t stream, const Arguments&... arguments) {
  if (blocks.wanted <= 0) return;
  const int64_t most = kBlocksPerMultiprocessor * multiprocessors(name);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks.wanted < most ? blocks.wanted : most));
  config.blockDim = dim3(static_cast<unsigned>(blocks.threads));
  config.dynamicSmemBytes = static_cast<size_t>(blocks.shared);
  config.stream = stream;
  if (blocks.shared > kPlainShared) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(blocks.shared)),
               name, "asking for shared memory");
  }
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, arguments...);
  // Asked for in any case, or a failed launch would be reported again by whoever asks next.
  const cudaError_t last = cudaGetLastError();
  check_cuda(launched == cudaSuccess ? last : launched, name, "launching");
}

// Also in stream order. From ordinary host memory, which may be freed at once; to it, this waits.
inline void zero(const char* name, void* at, int64_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(at, 0, static_cast<size_t>(bytes), stream), name, "clearing memory");
}
inline void copy_to_device(const char* name, void* to, const void* from, int64_t bytes,
                           cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream),
             name, "copying to the device");
}
inline void copy_to_host(const char* name, void* to, const void* from, int64_t bytes,
                         cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream),
             name, "copying from the device");
  check_cuda(cudaStreamSynchronize(stream), name, "waiting for a copy");
}

}  // namespace modfast
