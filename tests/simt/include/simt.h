// A machine that runs kernels on the host and checks every access to memory. See ../README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace simt {

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using Site = std::source_location;

// ---- asked by kernels

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
int lane();
void* dynamic_shared();

void sync_block(Site site);
struct Votes {
  int yes, all;
};
Votes count_block(bool yes, Site site);
void sync_warp(unsigned mask, Site site);

// Waits for the lanes of `mask`; gives the values that all lanes brought. `source`: the lane whose
// value the caller wants, which has to be one of them.
const uint64_t* exchange(const char* name, unsigned mask, uint64_t value, Site site, int source = -1);

// `constant`: through the read-only cache, which does not see what the kernel writes.
enum class Access { read, write, atomic, constant };
void access(const void* at, size_t size, size_t alignment, Access kind, const void* pc);

// ---- asked by hosts

constexpr size_t kMaxShared = 227 << 10;  // what a block of compute capability 9.0 may have
constexpr size_t kPlainShared = 48 << 10;  // without asking
// Lets a kernel have up to so many bytes of dynamic shared memory.
void allow_shared(const void* kernel, size_t bytes);

// A copy or a fill by the host; false, with a report, where it leaves the arrays or reads what nothing
// has written.
bool host_access(const void* at, size_t bytes, Access kind);

// An array that kernels may touch, in elements of `element` bytes; all are forgotten at once.
void add_array(const void* data, size_t bytes, size_t element, bool initialized);
void forget_arrays();

// Runs the kernel once for each schedule, from the same memory, and compares the results.
bool launch(dim3 grid, dim3 block, size_t shared_bytes, const void* kernel,
            void (*call)(const void* parameters), const void* parameters);
bool failed();
const char* take_report();

}  // namespace simt
