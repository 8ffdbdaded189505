// Included before each operator of csrc/cuda: registers it as modfast_simt:: for CPU tensors, and tells
// the machine which memory its kernels may touch: the operator's tensors, and those that it makes.
//
// The build renames modfast to modfast_simt, so that both libraries live in one process.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "simt.h"

namespace simt {

// What an operator makes lives until it ends: each launch saves and restores all arrays.
inline std::vector<torch::stable::Tensor>& made() {
  static std::vector<torch::stable::Tensor> tensors;
  return tensors;
}

inline AOTITorchError new_tensor(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                 int32_t device_type, int32_t device_index, AtenTensorHandle* result) {
  const AOTITorchError error =
      aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type, device_index, result);
  if (error) return error;
  const torch::stable::Tensor tensor(*result);
  // A second owner would free it twice.
  aoti_torch_new_tensor_handle(*result, result);
  const size_t element = tensor.element_size();
  add_array(tensor.data_ptr(), tensor.numel() * element, element, false);
  made().push_back(tensor);
  return error;
}

}  // namespace simt

#define aoti_torch_empty_strided simt::new_tensor
#include "abi.h"
#undef aoti_torch_empty_strided

namespace simt {

using modfast::Tensor;

template <class T>
void add_argument(const T&) {}

inline void add_argument(const Tensor& tensor) {
  if (tensor.numel() == 0) return;
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const size_t element = tensor.element_size();
  add_array(tensor.data_ptr(), (last + 1) * element, element, true);
}

inline void add_argument(const modfast::Tensors& tensors) {
  for (const Tensor& tensor : tensors) add_argument(tensor);
}

inline void add_argument(const std::optional<Tensor>& tensor) {
  if (tensor) add_argument(*tensor);
}

struct Arrays {
  ~Arrays() {
    forget_arrays();
    made().clear();
  }
};

template <auto operator_>
struct Watched;

template <class Result, class... Arguments, Result (*operator_)(Arguments...)>
struct Watched<operator_> {
  static Result call(Arguments... arguments) {
    const Arrays arrays;
    (add_argument(arguments), ...);
    return operator_(arguments...);
  }
};

}  // namespace simt

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) _STABLE_TORCH_LIBRARY_IMPL(ns, CPU, m, C10_UID)
#undef TORCH_BOX
#define TORCH_BOX(function)                                                                     \
  torch::stable::detail::boxer<std::remove_pointer_t<decltype(&simt::Watched<function>::call)>, \
                               &simt::Watched<function>::call>::boxed_fn

// In place of csrc/cuda/device.h.
#define MODFAST_CUDA_DEVICE_H
#include <cuda_runtime.h>

namespace modfast {

class OnDevice {
 public:
  OnDevice(const char* op, const Tensor& tensor) {
    MODFAST_CHECK(tensor.is_cpu(), op, "tensors must be on the CPU, where the kernels run here");
  }
  cudaStream_t stream() const { return nullptr; }
  // torch's product, of which the machine only knows by this what it reads and writes.
  void multiply(const char* op, const Tensor& a, const Tensor& b, const Tensor& out) const {
    const auto check = [&](const Tensor& x, simt::Access kind) {
      MODFAST_CHECK(simt::host_access(x.data_ptr(), x.numel() * x.element_size(), kind), op,
                    simt::take_report());
    };
    check(a, simt::Access::read);
    check(b, simt::Access::read);
    check(out, simt::Access::write);
    multiply_into(a, b, out);
  }
};

}  // namespace modfast
