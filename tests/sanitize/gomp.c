// Tells the thread sanitizer what an OpenMP library orders that was built without it: a parallel region
// begins after what its thread did before, and ends before what that thread does next.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

void __tsan_acquire(void*);
void __tsan_release(void*);

struct region {
  void (*body)(void*);
  void* data;
  char begun, ended;
};

static void run(void* given) {
  struct region* region = given;
  __tsan_acquire(&region->begun);
  region->body(region->data);
  __tsan_release(&region->ended);
}

void GOMP_parallel(void (*body)(void*), void* data, unsigned n_threads, unsigned flags) {
  typedef void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  static parallel next;
  if (!__atomic_load_n(&next, __ATOMIC_ACQUIRE)) {
    void* library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
    parallel found = library ? (parallel)dlsym(library, "GOMP_parallel") : NULL;
    if (!found) {
      fputs("sanitize: no libgomp.so.1 is loaded, which torch runs its threads with\n", stderr);
      abort();
    }
    __atomic_store_n(&next, found, __ATOMIC_RELEASE);
  }
  struct region region = {body, data, 0, 0};
  __tsan_release(&region.begun);
  next(run, &region, n_threads, flags);
  __tsan_acquire(&region.ended);
}
