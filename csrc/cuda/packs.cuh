// Several neighbouring elements, moved by one access. Device code only; no torch header.
#pragma once

#include <cuda_runtime.h>

#include "../math/number.h"

namespace modfast {

template <class T, int V>
struct Pack {
  T values[V];
};

template <class T>
constexpr int kPack = 16 / sizeof(T);

// What one access of so many bytes moves.
template <int bytes>
struct Word;
template <>
struct Word<1> {
  using type = uint8_t;
};
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
template <class T, int V>
using word_t = typename Word<sizeof(T) * V>::type;

// Marked as read once, so that what is read again, labels for every row, stays in the first-level
// cache.
template <class T, int V>
__device__ __forceinline__ Pack<T, V> load_pack(const T* from) {
  if constexpr (V == 1) {
    return Pack<T, 1>{{*from}};
  } else {
    return bit_cast<Pack<T, V>>(__ldcs(reinterpret_cast<const word_t<T, V>*>(from)));
  }
}

template <class T, int V>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, V>& pack) {
  if constexpr (V == 1) {
    *to = pack.values[0];
  } else {
    *reinterpret_cast<word_t<T, V>*>(to) = bit_cast<word_t<T, V>>(pack);
  }
}

}  // namespace modfast
