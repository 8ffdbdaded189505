// Kernels with one bug each. A line that a report may name ends in a comment with what it must say there.
#include "cases.h"

namespace {

constexpr dim3 kBlock(64);

// ---- races within a block

__global__ void missing_barrier(int* out) {
  __shared__ int tile[64];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);  // BUG: data race
  out[threadIdx.x] = tile[63 - threadIdx.x];          // BUG: data race
}
CASE(missing_barrier) { return launch(&missing_barrier, 1, kBlock, 0, Global<int>(64)); }

__global__ void tile_reused_too_early(int* out) {
  __shared__ int tile[64];
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = round;  // BUG: data race
    __syncthreads();
    out[threadIdx.x] += tile[63 - threadIdx.x];  // BUG: data race
  }
}
CASE(tile_reused_too_early) { return launch(&tile_reused_too_early, 1, kBlock, 0, Global<int>(64)); }

__global__ void missing_syncwarp(int* out) {
  __shared__ int tile[32];
  tile[threadIdx.x] = 0;
  __syncwarp();
  tile[threadIdx.x] = 1;                      // BUG: data race
  out[threadIdx.x] = tile[threadIdx.x ^ 1u];  // BUG: data race
}
CASE(missing_syncwarp) { return launch(&missing_syncwarp, 1, 32, 0, Global<int>(32)); }

__global__ void syncwarp_of_other_lanes(int* out) {
  __shared__ int value;
  if (threadIdx.x == 31) value = 7;  // BUG: data race
  if (threadIdx.x < 16) __syncwarp(0x0000ffffu);
  if (threadIdx.x >= 16) __syncwarp(0xffff0000u);
  if (threadIdx.x == 0) out[0] = value;  // BUG: data race|uninitialized memory
}
CASE(syncwarp_of_other_lanes) { return launch(&syncwarp_of_other_lanes, 1, 32, 0, Global<int>(1)); }

__global__ void shuffle_taken_for_a_barrier(int* out) {
  __shared__ int tile[32];
  tile[threadIdx.x] = 1;
  __shfl_sync(0xffffffffu, 0, 0);
  out[threadIdx.x] = tile[threadIdx.x ^ 1u];  // BUG: data race
}
CASE(shuffle_taken_for_a_barrier) {
  return launch(&shuffle_taken_for_a_barrier, 1, 32, 0, Global<int>(32));
}

__global__ void lost_updates(int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  count += 1;  // BUG: data race
  __syncthreads();
  if (threadIdx.x == 0) *out = count;
}
CASE(lost_updates) { return launch(&lost_updates, 1, kBlock, 0, Global<int>(1)); }

__global__ void same_value_writes(int* out) {
  *out = 1;  // BUG: data race
}
CASE(same_value_writes) { return launch(&same_value_writes, 1, kBlock, 0, Global<int>(1)); }

__global__ void atomic_and_plain(int* out) {
  if (threadIdx.x == 5) {
    *out += 1;  // BUG: data race
  } else {
    atomicAdd(out, 1);  // BUG: data race
  }
}
CASE(atomic_and_plain) { return launch(&atomic_and_plain, 1, kBlock, 0, Global<int>(1)); }

// ---- races between blocks

__global__ void blocks_add(int* out) {
  if (threadIdx.x == 0) *out += 1;  // BUG: data race
}
CASE(blocks_add) { return launch(&blocks_add, 4, kBlock, 0, Global<int>(1)); }

__global__ void block_reads_its_neighbor(int* cells, int* out) {
  cells[blockIdx.x * 64 + threadIdx.x] = 1;                             // BUG: data race
  out[blockIdx.x * 64 + threadIdx.x] = cells[(1 - blockIdx.x) * 64 + threadIdx.x];  // BUG: data race
}
CASE(block_reads_its_neighbor) {
  Global<int> cells(128), out(128);
  return launch(&block_reads_its_neighbor, 2, kBlock, 0, cells, out);
}

__global__ void sum_in_any_order(float* out) {
  atomicAdd(out, 1.0f / (1 + blockIdx.x * 64 + threadIdx.x));
}
CASE(sum_in_any_order) { return launch(&sum_in_any_order, 4, kBlock, 0, Global<float>(1)); }

// ---- memory that holds nothing yet

__global__ void uninitialized_shared(int* out) {
  __shared__ int tile[64];
  if (threadIdx.x < 63) tile[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];  // BUG: uninitialized memory
}
CASE(uninitialized_shared) { return launch(&uninitialized_shared, 1, kBlock, 0, Global<int>(64)); }

__global__ void uninitialized_global(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];  // BUG: uninitialized memory
}
CASE(uninitialized_global) {
  Global<float> in(64, Global<float>::Uninitialized{}), out(64);
  return launch(&uninitialized_global, 1, kBlock, 0, in, out);
}

// ---- outside

__global__ void past_a_global_array(int* out, int n) {
  if (static_cast<int>(threadIdx.x) <= n) out[threadIdx.x] = 1;  // BUG: out of bounds
}
CASE(past_a_global_array) { return launch(&past_a_global_array, 1, kBlock, 0, Global<int>(60), 60); }

__global__ void pack_past_the_end(const float* in, float* out) {
  const float4 four = reinterpret_cast<const float4*>(in)[threadIdx.x];  // BUG: out of bounds
  out[threadIdx.x] = four.x + four.w;  // BUG: out of bounds
}
CASE(pack_past_the_end) {
  Global<float> in(254), out(64);
  return launch(&pack_past_the_end, 1, kBlock, 0, in, out);
}

__global__ void past_dynamic_shared(int* out) {
  DYN_SMEM(int, tile);
  tile[threadIdx.x + 1] = 1;  // BUG: out of bounds
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + 1];
}
CASE(past_dynamic_shared) { return launch(&past_dynamic_shared, 1, kBlock, 64 * 4, Global<int>(64)); }

__global__ void past_static_shared(int* out, int shift) {
  __shared__ int tile[64];
  __shared__ int neighbor[64];
  neighbor[threadIdx.x] = 0;
  tile[threadIdx.x + shift] = 1;  // BUG: out of bounds
  __syncthreads();
  out[threadIdx.x] = neighbor[threadIdx.x];
}
CASE(past_static_shared) { return launch(&past_static_shared, 1, kBlock, 0, Global<int>(64), 1); }

__global__ void another_threads_variable(int* out) {
  __shared__ int* address;
  int own = static_cast<int>(threadIdx.x);
  if (threadIdx.x == 3) address = &own;
  __syncthreads();
  out[threadIdx.x] = *address;  // BUG: another thread's local variables
  __syncthreads();
}
CASE(another_threads_variable) { return launch(&another_threads_variable, 1, kBlock, 0, Global<int>(64)); }

// ---- alignment, caches

__global__ void misaligned_pack(const float* in, float* out) {
  const float4 four = *reinterpret_cast<const float4*>(in + 1);  // BUG: misaligned
  out[threadIdx.x] = four.x + four.w;  // BUG: misaligned
}
CASE(misaligned_pack) {
  Global<float> in(8), out(64);
  return launch(&misaligned_pack, 1, kBlock, 0, in, out);
}

__global__ void stale_cache(int* data) {
  data[threadIdx.x] = 1;
  data[threadIdx.x] += __ldg(data + threadIdx.x);  // BUG: read-only cache
}
CASE(stale_cache) { return launch(&stale_cache, 1, kBlock, 0, Global<int>(64)); }

// ---- barriers that not all threads reach

__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();  // BUG: divergent barrier
    out[threadIdx.x] = 1;
  } else {
    __syncthreads();  // BUG: divergent barrier
    out[threadIdx.x] = 2;
  }
}
CASE(divergent_barrier) { return launch(&divergent_barrier, 1, kBlock, 0, Global<int>(64)); }

__global__ void early_return(int* out) {
  if (threadIdx.x == 40) return;
  __syncthreads();  // BUG: thread ends|has ended
  out[threadIdx.x] = 1;
}
CASE(early_return) { return launch(&early_return, 1, kBlock, 0, Global<int>(64)); }

// ---- warp collectives

__global__ void shuffle_from_an_inactive_lane(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 20);  // BUG: inactive lane 20
  }
}
CASE(shuffle_from_an_inactive_lane) {
  return launch(&shuffle_from_an_inactive_lane, 1, 32, 0, Global<int>(32));
}

__global__ void mask_without_the_caller(int* out) {
  out[threadIdx.x] = static_cast<int>(__ballot_sync(0x7fffffffu, 1));  // BUG: wrong mask
}
CASE(mask_without_the_caller) { return launch(&mask_without_the_caller, 1, 32, 0, Global<int>(32)); }

__global__ void masks_that_differ(int* out) {
  const unsigned mask = threadIdx.x < 31 ? 0xffffffffu : 0x80000000u;
  out[threadIdx.x] = __any_sync(mask, 1);  // BUG: lane 31 ends while others wait|names lane 31, which has ended
}
CASE(masks_that_differ) { return launch(&masks_that_differ, 1, 32, 0, Global<int>(32)); }

__global__ void mask_with_a_lane_that_ended(int* out) {
  if (threadIdx.x == 9) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);  // BUG: wrong mask|lane 9 ends
}
CASE(mask_with_a_lane_that_ended) {
  return launch(&mask_with_a_lane_that_ended, 1, 32, 0, Global<int>(32));
}

__global__ void mismatched_collectives(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __any_sync(0xffffffffu, 1);  // BUG: mismatched collectives
  } else {
    out[threadIdx.x] = __all_sync(0xffffffffu, 1);  // BUG: mismatched collectives
  }
}
CASE(mismatched_collectives) { return launch(&mismatched_collectives, 1, 32, 0, Global<int>(32)); }

__global__ void deadlock(int* out) {
  if (threadIdx.x == 0) {
    __syncthreads();  // BUG: deadlock
  } else {
    __syncwarp();  // BUG: deadlock
  }
  out[threadIdx.x] = 1;
}
CASE(deadlock) { return launch(&deadlock, 1, 32, 0, Global<int>(32)); }

__global__ void waits_by_spinning(volatile int* flag) {
  if (threadIdx.x == 0) {
    while (flag[0] == 0) {  // BUG: waiting by spinning
    }
  }
}
CASE(waits_by_spinning) { return launch(&waits_by_spinning, 1, 32, 0, Global<int>(1)); }

// ---- launches that a GPU refuses

__global__ void does_nothing() {}
CASE(odd_block) { return launch(&does_nothing, 1, 48, 0); }
CASE(empty_grid) { return launch(&does_nothing, 0, 32, 0); }
CASE(shared_not_asked_for) { return launch(&does_nothing, 1, 32, 64 << 10); }
CASE(too_much_shared) { return launch(&does_nothing, 1, 32, 1 << 20); }

}  // namespace

// ---- copies and fills by the host

std::string report_of(cudaError_t status) {
  const std::string report = status == cudaSuccess ? "" : cudaGetErrorString(status);
  simt::forget_arrays();
  return report;
}

CASE(fill_past_the_end) {
  Global<int> out(4);
  return report_of(cudaMemsetAsync(out, 0, 20, nullptr));
}

CASE(copy_of_uninitialized) {
  Global<int> in(4, Global<int>::Uninitialized{});
  int out[4];
  return report_of(cudaMemcpyAsync(out, in, sizeof(out), cudaMemcpyDeviceToHost, nullptr));
}
