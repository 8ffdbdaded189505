// What lets one header serve the host compiler, nvcc and the host harness of the CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MODFAST_BOTH __host__ __device__ __forceinline__
#else
#define MODFAST_BOTH inline __attribute__((always_inline))
#endif

namespace modfast {

template <class To, class From>
MODFAST_BOTH To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace modfast
