// Compiles the kernels of MODFAST_KERNELS once per SIMD level, each in a namespace of its name and with
// MODFAST_SIMD_BITS set (512, 256, or 0 for plain code), and collects their tables.
//
//   #define MODFAST_KERNELS "x_kernels.h"   // defines `constexpr Table kernels = {...};`
//   #include "for_each_level.h"
//   at_level(MODFAST_TABLES)                // the table of the level in use
//
// Include everything else before: functions defined by then stay at the baseline, so that none of
// them is emitted with instructions that some processor lacks. Kernels call only what is inlined.
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MODFAST_SIMD_BITS 0
namespace modfast::baseline {
#include MODFAST_KERNELS
}
#undef MODFAST_SIMD_BITS

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif
#define MODFAST_SIMD_BITS 256
namespace modfast::avx2 {
#include MODFAST_KERNELS
}
#undef MODFAST_SIMD_BITS
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,prefer-vector-width=512")
#endif
#define MODFAST_SIMD_BITS 512
namespace modfast::avx512 {
#include MODFAST_KERNELS
}
#undef MODFAST_SIMD_BITS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define MODFAST_TABLES \
  { &baseline::kernels, &avx2::kernels, &avx512::kernels }

#else  // other processors: one level, whatever their compiler vectorizes to

#define MODFAST_TABLES \
  { &baseline::kernels, &baseline::kernels, &baseline::kernels }

#endif
