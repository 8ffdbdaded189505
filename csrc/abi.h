// The one seam to torch: its stable ABI, and how modfast reads tensors through it.
//
// Nothing else of libtorch is included anywhere, so that one library serves every torch >= 2.11.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
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

// An uninitialized contiguous tensor on the device of `like`. By torch's C shim, since its C++ one
// looks an operator up by name at each call.
inline Tensor empty_beside(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                           int32_t dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), dtype, device_type,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor new_like(const Tensor& like) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return empty_beside(like, like.sizes(), dtype);
}

// out = a bᵀ, of row-major matrices, by torch's own product.
inline void multiply_into(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a),
                                    torch::stable::detail::from(torch::stable::transpose(b, 0, 1)),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace modfast
