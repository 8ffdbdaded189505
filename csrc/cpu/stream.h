// Stores that go around the cache, for results too large for it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace modfast {

// A result beyond this will be read from memory anyway: it exceeds the private caches of the cores.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Copies n bytes; whole aligned 16-byte words go around the cache.
inline __attribute__((always_inline)) void stream(void* to, const void* from, int64_t n) {
#if defined(__x86_64__)
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const int64_t odd = -reinterpret_cast<intptr_t>(out) & 15;
  const int64_t head = odd < n ? odd : n;
  std::memcpy(out, in, head);
  int64_t k = head;
  for (; k + 64 <= n; k += 64) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + k));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + k + 16));
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + k + 32));
    const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + k + 48));
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + k), a);
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + k + 16), b);
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + k + 32), c);
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + k + 48), d);
  }
  std::memcpy(out + k, in + k, n - k);
#else
  std::memcpy(to, from, n);
#endif
}

// Streaming stores are weakly ordered: before other threads read them, a fence.
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace modfast
