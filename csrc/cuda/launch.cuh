// The one way to launch a kernel. No torch header here: the host harness of the kernels compiles this
// file as it stands, against a cuda_runtime.h of its own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../check.h"

namespace modfast {

// Threads of every block: 8 warps. Memory-bound kernels want many small blocks rather than few large.
constexpr int kThreads = 256;

// A multiprocessor holds at most 8 blocks of 256. Four times as many let the hardware even out blocks
// that end early, and still share a block's start among many tiles where there are many.
constexpr int64_t kBlocksPerMultiprocessor = 32;

inline void check_cuda(cudaError_t status, const char* kernel, const char* what) {
  MODFAST_CHECK(status == cudaSuccess, kernel, what, " failed: ", cudaGetErrorString(status));
}

// Starts `kernel` on the current device and does not wait for it. `wanted` is how many blocks could
// work side by side; the device's size bounds how many there are, so kernels stride over the grid.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t wanted, cudaStream_t stream,
            const Arguments&... arguments) {
  if (wanted <= 0) return;
  int device = 0, multiprocessors = 0;
  check_cuda(cudaGetDevice(&device), name, "finding the device");
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), name,
             "reading the device's size");
  const int64_t most = kBlocksPerMultiprocessor * multiprocessors;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(wanted < most ? wanted : most));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, arguments...);
  // Asked for in any case, or a failed launch would be reported again by whoever asks next.
  const cudaError_t last = cudaGetLastError();
  check_cuda(launched == cudaSuccess ? last : launched, name, "launching");
}

}  // namespace modfast
