// What the compiler calls in code compiled with -fsanitize=thread,bounds,alignment. This file, like all
// of the machine, is compiled without.
#include "machine.h"

#define HOOK extern "C"
#define CALLER __builtin_return_address(0)
#define SIZED(n)                                                                                     \
  HOOK void __tsan_read##n(void* at) { simt::access(at, n, 1, simt::Access::read, CALLER); }           \
  HOOK void __tsan_write##n(void* at) { simt::access(at, n, 1, simt::Access::write, CALLER); }         \
  HOOK void __tsan_unaligned_read##n(void* at) { simt::access(at, n, 1, simt::Access::read, CALLER); } \
  HOOK void __tsan_unaligned_write##n(void* at) { simt::access(at, n, 1, simt::Access::write, CALLER); }
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)
HOOK void __tsan_read_range(void* at, size_t n) { simt::access(at, n, 1, simt::Access::read, CALLER); }
HOOK void __tsan_write_range(void* at, size_t n) { simt::access(at, n, 1, simt::Access::write, CALLER); }
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_vptr_read(void**) {}
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}

// Atomics of host code, which counts references.
#define ATOMIC(bits, T)                                                                              \
  HOOK T __tsan_atomic##bits##_load(const T* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); } \
  HOOK void __tsan_atomic##bits##_store(T* at, T x, int) { __atomic_store_n(at, x, __ATOMIC_SEQ_CST); } \
  HOOK T __tsan_atomic##bits##_fetch_add(T* at, T x, int) {                                          \
    return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST);                                              \
  }                                                                                                  \
  HOOK T __tsan_atomic##bits##_fetch_sub(T* at, T x, int) {                                          \
    return __atomic_fetch_sub(at, x, __ATOMIC_SEQ_CST);                                              \
  }
ATOMIC(8, uint8_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)

struct UbsanLocation {
  const char* file;
  uint32_t line, column;
};

static void undefined(const UbsanLocation* where, const char* what, const void* at) {
  if (!simt::m.current) return;
  simt::Inside inside;
  std::ostringstream text;
  text << what << " (" << at << "), at " << simt::short_name(where->file) << ':' << where->line;
  simt::fail(*inside.thread, nullptr, text.str());
}

HOOK void __ubsan_handle_out_of_bounds(UbsanLocation* where, uintptr_t index) {
  undefined(where, "out of bounds: index of an array", reinterpret_cast<void*>(index));
}
HOOK void __ubsan_handle_type_mismatch_v1(UbsanLocation* where, uintptr_t at) {
  undefined(where, "misaligned address", reinterpret_cast<void*>(at));
}
