// The Python module modfast._C: facts of this build and run-time switches. It handles no tensors;
// importing it is what registers the CPU operators.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/simd.h"

namespace py = pybind11;
using modfast::SimdLevel;

namespace {

py::list levels(bool (*accept)(SimdLevel)) {
  py::list names;
  for (int i = 0; i < modfast::kSimdLevels; ++i) {
    if (accept(static_cast<SimdLevel>(i))) names.append(modfast::kSimdNames[i]);
  }
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = MODFAST_VERSION;
#if defined(__clang__)
  info["compiler"] = "Clang " __clang_version__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
  info["simd_built"] = levels(modfast::simd_built);
  info["simd_supported"] = levels(modfast::simd_supported);
  info["simd"] = modfast::kSimdNames[static_cast<int>(modfast::simd_level())];
  info["threads"] = "torch's pool (torch::stable::parallel_for)";
  info["cuda_architectures"] = MODFAST_CUDA_ARCHITECTURES;
  info["cuda_toolkit"] = MODFAST_CUDA_TOOLKIT;
  info["torch_target"] = MODFAST_TORCH_TARGET;
  info["torch_built"] = MODFAST_TORCH_BUILT;
  return info;
}

void set_simd_level(const std::string& name) {
  for (int i = 0; i < modfast::kSimdLevels; ++i) {
    const SimdLevel level = static_cast<SimdLevel>(i);
    if (name == modfast::kSimdNames[i] && modfast::simd_supported(level)) {
      modfast::set_simd_level(level);
      return;
    }
  }
  throw std::invalid_argument(
      "level must be one of " +
      py::str(levels(modfast::simd_supported)).cast<std::string>() + ", got '" + name + "'");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and run-time switches of modfast's compiled library.";
  m.def("build_info", &build_info, "How this library was built, and which SIMD level it uses.");
  m.def("set_simd_level", &set_simd_level, py::arg("level"),
        "Chooses the SIMD level of the CPU kernels: 'baseline', 'avx2' or 'avx512'.");
}
