// The element types of weights, and how they become numbers to compute with and back.
//
// bfloat16 and float16 are storage only: arithmetic is in float. The conversions are plain integer
// and float operations, so that compilers vectorize them at every SIMD level and the same source
// runs on GPU and host.
#pragma once

#include "portable.h"

namespace modfast {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type in which updates and gradients of a T are computed.
template <class T>
struct compute {
  using type = float;
};
template <>
struct compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename compute<T>::type;

MODFAST_BOTH float load(float x) { return x; }
MODFAST_BOTH double load(double x) { return x; }

MODFAST_BOTH float load(bfloat16 x) {
  return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

MODFAST_BOTH float load(float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127, subnormals included.
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t finite = bit_cast<uint32_t>(scaled);
  const uint32_t special = magnitude | 0x7f800000u;  // infinity, NaN
  return bit_cast<float>(sign | (magnitude >= 0x0f800000u ? special : finite));
}

template <class T>
MODFAST_BOTH T store(compute_t<T> x);

template <>
MODFAST_BOTH float store<float>(float x) { return x; }
template <>
MODFAST_BOTH double store<double>(double x) { return x; }

// Both round to nearest, ties to even.
template <>
MODFAST_BOTH bfloat16 store<bfloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return bfloat16{static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
}

template <>
MODFAST_BOTH float16 store<float16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: rebias the exponent and round the 13 bits that fall off.
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 aligns the last bit to keep with a float's last bit, so that the
  // addition itself rounds.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // rounds past the largest: infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
  return float16{static_cast<uint16_t>(sign | half)};
}

// x as the nearest T, in T's compute type. A 16-bit number is not rounded twice: what a float must leave
// out is told by its last bit.
template <class T>
MODFAST_BOTH compute_t<T> nearest(double x) {
  if constexpr (sizeof(T) > 2) {
    return static_cast<T>(x);
  } else {
    const float near = static_cast<float>(x);
    const double wide = near;
    uint32_t bits = bit_cast<uint32_t>(near);
    if (wide != x && (bits & 1u) == 0) bits += (wide < 0 ? -wide < -x : wide < x) ? 1u : ~0u;
    return load(store<T>(bit_cast<float>(bits)));
  }
}

}  // namespace modfast
