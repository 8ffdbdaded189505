// The one seam to torch: its stable ABI, and how modfast reads tensors through it.
//
// Nothing else of libtorch is included anywhere, so that one library serves every torch >= 2.11.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "check.h"

namespace modfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The element types with kernels, in the order of every kernel table.
enum class Dtype : int { float32, float64, bfloat16, float16 };
constexpr int kDtypes = 4;

inline Dtype float_dtype(const Tensor& tensor, const char* op, const char* name, size_t index) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default:
      fail(op, name, "[", index, "] must be float32, float64, bfloat16 or float16, got ",
           torch::headeronly::toString(tensor.scalar_type()));
  }
}

// The number that a CPU scalar tensor holds.
inline double number(const Tensor& scalar, const char* op, const char* name) {
  MODFAST_CHECK(scalar.is_cpu() && scalar.numel() == 1, op, name, " must be one number on the CPU");
  const void* data = scalar.data_ptr();
  switch (scalar.scalar_type()) {
    case ScalarType::Float: return *static_cast<const float*>(data);
    case ScalarType::Double: return *static_cast<const double*>(data);
    default:
      fail(op, name, " must be float32 or float64, got ",
           torch::headeronly::toString(scalar.scalar_type()));
  }
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() ? b.is_cpu() : !b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// A scalar or vector that the operator makes on the device of `like`.
inline Tensor empty_beside(const Tensor& like, std::initializer_list<int64_t> sizes,
                           ScalarType dtype) {
  return torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, dtype);
}

}  // namespace modfast
