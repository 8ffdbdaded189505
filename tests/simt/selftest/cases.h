// How the cases of the self-test are run and found by name.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

using Run = std::string (*)();

inline std::map<std::string, Run>& cases() {
  static std::map<std::string, Run> all;
  return all;
}

struct Added {
  Added(const char* name, Run run) { cases()[name] = run; }
};

// CASE(name) { ...; return report; } -- an empty report where nothing is wrong.
#define CASE(name)                                 \
  static std::string run_##name();                 \
  static const Added added_##name(#name, &run_##name); \
  static std::string run_##name()

// An array that kernels may touch.
template <class T>
struct Global {
  std::vector<T> values;

  explicit Global(size_t n, T value = T{}) : values(n, value) { add(true); }
  struct Uninitialized {};
  Global(size_t n, Uninitialized) : values(n) { add(false); }
  operator T*() { return values.data(); }

 private:
  void add(bool initialized) { simt::add_array(values.data(), values.size() * sizeof(T), sizeof(T), initialized); }
};

template <class... Parameters, class... Arguments>
std::string launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                   Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  const cudaError_t status =
      cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  const std::string report = status == cudaSuccess ? "" : cudaGetErrorString(status);
  simt::forget_arrays();
  return report;
}

inline std::string expect(bool right) { return right ? "" : "wrong result"; }
