// Correct kernels that a careless checker would report, with their results checked.
#include <numeric>

#include "cases.h"
#include "math/number.h"

using modfast::bfloat16;
using modfast::float16;

namespace {

// Shared memory changed atomically, cleared and read plainly with barriers between; blocks add up in
// global memory, and any order gives the same integers.
__global__ void private_histograms(const int* codes, int n, int* counts) {
  __shared__ int mine[16];
  if (threadIdx.x < 16) mine[threadIdx.x] = 0;
  __syncthreads();
  for (int64_t i = blockIdx.x * 64 + threadIdx.x; i < n; i += gridDim.x * 64) {
    atomicAdd(mine + __ldg(codes + i), 1);
  }
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(counts + threadIdx.x, mine[threadIdx.x]);
}
CASE(private_histograms) {
  Global<int> codes(1000), counts(16);
  std::vector<int> expected(16);
  for (int i = 0; i < 1000; ++i) ++expected[codes.values[i] = i * i % 16];
  const std::string report = launch(&private_histograms, 3, 64, 0, codes, 1000, counts);
  return report + expect(counts.values == expected);
}

// Warps take turns with one tile, with a barrier before and after.
__global__ void block_sums(const int* in, int* out) {
  __shared__ int of_warp[2];
  for (int round = 0; round < 3; ++round) {
    const int sum = __reduce_add_sync(0xffffffffu, in[round * 64 + threadIdx.x]);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) out[round] = of_warp[0] + of_warp[1];
    __syncthreads();
  }
}
CASE(block_sums) {
  Global<int> in(192), out(3);
  std::iota(in.values.begin(), in.values.end(), -50);
  const std::string report = launch(&block_sums, 1, 64, 0, in, out);
  const auto sum = [&](int i) { return std::accumulate(in + i * 64, in + i * 64 + 64, 0); };
  return report + expect(out.values == std::vector{sum(0), sum(1), sum(2)});
}

// Two buffers: one barrier a round is enough.
__global__ void double_buffer(int* out) {
  __shared__ int tile[2][64];
  int sum = 0;
  for (int round = 0; round < 5; ++round) {
    tile[round % 2][threadIdx.x] = round * 100 + static_cast<int>(threadIdx.x);
    __syncthreads();
    sum += tile[round % 2][63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}
CASE(double_buffer) {
  Global<int> out(64);
  const std::string report = launch(&double_buffer, 1, 64, 0, out);
  bool right = true;
  for (int i = 0; i < 64; ++i) right &= out.values[i] == 1000 + 5 * (63 - i);
  return report + expect(right);
}

// The second barrier could go.
__global__ void one_barrier_too_many(int* out) {
  __shared__ int tile[64];
  tile[threadIdx.x] = 1;
  __syncthreads();  // needed
  out[threadIdx.x] = tile[63 - threadIdx.x];
  __syncthreads();  // needless
  out[threadIdx.x] += 1;
}
CASE(one_barrier_too_many) { return launch(&one_barrier_too_many, 1, 64, 0, Global<int>(64)); }

// A warp exchanges through shared memory, ordered by __syncwarp alone; warps share nothing.
__global__ void warp_tiles(int* out) {
  __shared__ int tile[2][32];
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int round = 0; round < 3; ++round) {
    tile[warp][lane] = static_cast<int>(threadIdx.x) + round;
    __syncwarp();
    out[threadIdx.x] += tile[warp][31 - lane];
    __syncwarp();
  }
}
CASE(warp_tiles) {
  Global<int> out(64);
  const std::string report = launch(&warp_tiles, 1, 64, 0, out);
  bool right = true;
  for (int i = 0; i < 64; ++i) right &= out.values[i] == 3 * (i / 32 * 32 + 31 - i % 32) + 3;
  return report + expect(right);
}

// Half warps go their own ways, each with its own mask; order passes on from lane 0 over 8 to 9.
__global__ void half_warps(int* out) {
  __shared__ int value;
  const unsigned half = threadIdx.x / 16 == 0 ? 0x0000ffffu : 0xffff0000u;
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __popc(__ballot_sync(half, threadIdx.x % 2));
  } else {
    out[threadIdx.x] = __shfl_down_sync(half, static_cast<int>(threadIdx.x), 1);
  }
  if (threadIdx.x == 0) value = 5;
  if (threadIdx.x < 9) __syncwarp(0x1ffu);
  if (threadIdx.x == 8 || threadIdx.x == 9) __syncwarp(0x300u);
  if (threadIdx.x == 9) out[9] += value;
}
CASE(half_warps) {
  Global<int> out(32);
  const std::string report = launch(&half_warps, 1, 32, 0, out);
  bool right = true;
  for (int i = 0; i < 32; ++i) right &= out.values[i] == (i == 9 ? 13 : i < 16 ? 8 : i < 31 ? i + 1 : 31);
  return report + expect(right);
}

// Dynamic shared memory, two-dimensional blocks, a three-dimensional grid.
__global__ void transpose(const float* in, float* out, int n) {
  DYN_SMEM(float, tile);
  const int x = threadIdx.x, y = threadIdx.y, plane = blockIdx.z * n * n;
  tile[y * 9 + x] = in[plane + (blockIdx.y * 8 + y) * n + blockIdx.x * 8 + x];
  __syncthreads();
  out[plane + (blockIdx.x * 8 + y) * n + blockIdx.y * 8 + x] = tile[x * 9 + y];
}
CASE(transpose) {
  Global<float> in(3 * 16 * 16), out(3 * 16 * 16, Global<float>::Uninitialized{});
  std::iota(in.values.begin(), in.values.end(), 0.0f);
  const std::string report = launch(&transpose, dim3(2, 2, 3), dim3(8, 8), 8 * 9 * 4, in, out, 16);
  bool right = true;
  for (int i = 0; i < 3 * 256; ++i) {
    right &= out.values[i] == in.values[i / 256 * 256 + i % 16 * 16 + i / 16 % 16];
  }
  return report + expect(right);
}

// All threads leave a loop together, by a vote; some have nothing to do in it.
__global__ void votes(const int* in, int* out) {
  int left = in[threadIdx.x], rounds = 0;
  while (__syncthreads_or(left > 0)) {
    if (left > 0) --left;
    ++rounds;
  }
  const int odd = __syncthreads_count(in[threadIdx.x] % 2), all = __syncthreads_and(left == 0);
  if (threadIdx.x >= 3) return;
  out[threadIdx.x] = threadIdx.x == 0 ? rounds : threadIdx.x == 1 ? odd : all;
}
CASE(votes) {
  Global<int> in(64), out(3);
  for (int i = 0; i < 64; ++i) in.values[i] = i % 7;
  const std::string report = launch(&votes, 1, 64, 0, in, out);
  return report + expect(out.values == std::vector{6, 27, 1});
}

// Packs of 16 bytes in memory, numbers of 2 bytes in them, an array of its own per thread.
__global__ void half_precision(const bfloat16* in, float16* out) {
  const uint4 pack = reinterpret_cast<const uint4*>(in)[threadIdx.x];
  bfloat16 eight[8];
  std::memcpy(eight, &pack, 16);
  float16 doubled[8];
  for (int i = 0; i < 8; ++i) doubled[i] = modfast::store<float16>(2 * modfast::load(eight[7 - i]));
  uint4 result;
  std::memcpy(&result, doubled, 16);
  reinterpret_cast<uint4*>(out)[threadIdx.x] = result;
}
CASE(half_precision) {
  Global<bfloat16> in(256);
  Global<float16> out(256, Global<float16>::Uninitialized{});
  for (int i = 0; i < 256; ++i) in.values[i] = modfast::store<bfloat16>(static_cast<float>(i));
  const std::string report = launch(&half_precision, 1, 32, 0, in, out);
  bool right = true;
  for (int i = 0; i < 256; ++i) right &= modfast::load(out.values[i]) == 2 * (i / 8 * 8 + 7 - i % 8);
  return report + expect(right);
}

// Every kind of atomic operation, where the order does not matter.
__global__ void atomics(int* i32, unsigned* u32, unsigned long long* u64, float* f32, double* f64) {
  const int t = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
  atomicAdd(i32, -t);
  atomicMax(i32 + 1, t % 50);
  atomicMin(i32 + 2, -t);
  atomicSub(i32 + 3, 1);
  atomicOr(u32, 1u << t % 32);
  atomicAnd(u32 + 1, ~(1u << t % 16));
  atomicXor(u32 + 2, 1u);
  atomicAdd(u64, 1ull << 32);
  atomicAdd(f32, 1.0f);
  atomicAdd(f64, 0.5);
  // The largest, by compare and swap.
  unsigned* largest = u32 + 3;
  const unsigned mine = static_cast<unsigned>(t % 77);
  unsigned old = 0, seen;
  while (old < mine && (seen = atomicCAS(largest, old, mine)) != old) old = seen;
  atomicExch(u32 + 4, 9u);
}
CASE(atomics) {
  Global<int> i32(4);
  Global<unsigned> u32(5);
  Global<unsigned long long> u64(1);
  Global<float> f32(1);
  Global<double> f64(1);
  u32.values[1] = 0xffffffffu;
  const std::string report = launch(&atomics, 2, 64, 0, i32, u32, u64, f32, f64);
  return report + expect(i32.values == std::vector{-8128, 49, -127, -128} &&
                         u32.values == std::vector<unsigned>{0xffffffffu, 0xffff0000u, 0, 76, 9} &&
                         u64.values[0] == 128ull << 32 && f32.values[0] == 128 && f64.values[0] == 64);
}

// Warps keep what is odd, in order, at places that ballots tell.
__global__ void compaction(const int* in, int* out, int* count) {
  __shared__ int of_warp[4];
  const int value = in[threadIdx.x];
  const unsigned kept = __ballot_sync(0xffffffffu, value % 2);
  const unsigned warp = threadIdx.x / 32, before = kept & ((1u << threadIdx.x % 32) - 1);
  if (threadIdx.x % 32 == 0) of_warp[warp] = __popc(kept);
  __syncthreads();
  int place = __popc(before);
  for (unsigned w = 0; w < warp; ++w) place += of_warp[w];
  if (value % 2) out[place] = value;
  if (threadIdx.x == 127) *count = place + value % 2;
}
CASE(compaction) {
  Global<int> in(128), out(128), count(1);
  std::vector<int> odd;
  for (int i = 0; i < 128; ++i) {
    in.values[i] = i * 37 % 101;
    if (in.values[i] % 2) odd.push_back(in.values[i]);
  }
  const std::string report = launch(&compaction, 1, 128, 0, in, out, count);
  return report + expect(count.values[0] == static_cast<int>(odd.size()) &&
                         std::equal(odd.begin(), odd.end(), out.values.begin()));
}

// All read what all read; whole structs go through shared memory; the last pack is not whole.
__global__ void packs(const float* in, int n, const float* factor, float* out) {
  __shared__ float4 tile[32];
  for (int64_t first = int64_t{4} * 32 * blockIdx.x; first < n; first += int64_t{4} * 32 * gridDim.x) {
    const int64_t at = first + 4 * threadIdx.x;
    if (at + 4 <= n) tile[threadIdx.x] = __ldcs(reinterpret_cast<const float4*>(in + at));
    __syncwarp();
    if (at + 4 <= n) {
      const float4 four = tile[threadIdx.x];
      *reinterpret_cast<float4*>(out + at) =
          make_float4(four.x * __ldg(factor), four.y * *factor, four.z * *factor, four.w * *factor);
    } else {
      for (int64_t i = at; i < n; ++i) out[i] = in[i] * *factor;
    }
    __syncwarp();
  }
}
CASE(packs) {
  Global<float> in(403), factor(1, 3.0f), out(403, Global<float>::Uninitialized{});
  std::iota(in.values.begin(), in.values.end(), 0.0f);
  const std::string report = launch(&packs, 2, 32, 0, in, 403, factor, out);
  bool right = true;
  for (int i = 0; i < 403; ++i) right &= out.values[i] == 3 * in.values[i];
  return report + expect(right);
}

}  // namespace

__global__ void host_and_kernel(int* values) {
  DYN_SMEM(int, tile);
  for (int i = threadIdx.x; i < 16 << 10; i += 64) tile[i] = i;
  __syncthreads();
  values[threadIdx.x] += tile[(threadIdx.x + 1) * 64];
}
// The host fills and copies; a kernel asks for more shared memory than all have.
CASE(host_and_kernel) {
  Global<int> values(64, Global<int>::Uninitialized{});
  const int ones[32] = {1};
  int out[64];
  cudaMemsetAsync(values, 0, 64 * sizeof(int), nullptr);
  cudaMemcpyAsync(values, ones, sizeof(ones), cudaMemcpyHostToDevice, nullptr);
  cudaFuncSetAttribute(reinterpret_cast<const void*>(&host_and_kernel),
                       cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(64);
  config.dynamicSmemBytes = 64 << 10;
  int* data = values;
  const bool good = cudaLaunchKernelEx(&config, &host_and_kernel, data) == cudaSuccess &&
                    cudaMemcpyAsync(out, data, sizeof(out), cudaMemcpyDeviceToHost, nullptr) == cudaSuccess;
  simt::forget_arrays();
  return expect(good && out[0] == 65 && out[1] == 128);
}

// A product of bytes, one fragment.
__global__ void product_of_bytes(const uint8_t* a, const uint8_t* b, int* c) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto word = [](const uint8_t* at) {
    return at[0] | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
  };
  const uint32_t x[4] = {word(a + g * 32 + 4 * t), word(a + (g + 8) * 32 + 4 * t),
                         word(a + g * 32 + 16 + 4 * t), word(a + (g + 8) * 32 + 16 + 4 * t)};
  const uint32_t y[2] = {word(b + g * 32 + 4 * t), word(b + g * 32 + 16 + 4 * t)};
  int sums[4] = {1, 1, 1, 1};
  simt_multiply_bytes(sums, x, y);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}
CASE(product_of_bytes) {
  Global<uint8_t> a(16 * 32), b(8 * 32);  // b by columns
  for (int i = 0; i < 16 * 32; ++i) a.values[i] = static_cast<uint8_t>(i * 37);
  for (int i = 0; i < 8 * 32; ++i) b.values[i] = static_cast<uint8_t>(i * 91 + 5);
  Global<int> c(16 * 8);
  const std::string report = launch(&product_of_bytes, 1, 32, 0, a, b, c);
  bool right = true;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      int sum = 1;
      for (int k = 0; k < 32; ++k) sum += a.values[i * 32 + k] * b.values[j * 32 + k];
      right = right && c.values[i * 8 + j] == sum;
    }
  }
  return report.empty() ? expect(right) : report;
}
