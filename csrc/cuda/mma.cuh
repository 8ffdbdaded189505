// Tensor cores: the one place of inline PTX. The host harness has a twin of each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace modfast {

// c += a * b, of bytes [16, 32] and [32, 8], by a whole warp. With g = lane / 4 and t = lane % 4, a lane
// holds a[g, 4t], a[g + 8, 4t], a[g, 16 + 4t], a[g + 8, 16 + 4t] and b[4t, g], b[16 + 4t, g], each
// with the three that follow along the 32, and c[g, 2t], c[g, 2t + 1], c[g + 8, 2t], c[g + 8, 2t + 1].
__device__ __forceinline__ void multiply_bytes(int (&c)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  simt_multiply_bytes(c, a, b);
#endif
}

}  // namespace modfast
