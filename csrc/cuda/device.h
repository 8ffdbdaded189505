// Which device and stream an operator works on.
//
// Classic include guards, because the host harness of the kernels brings this class itself: its
// tensors lie on the CPU.
#ifndef MODFAST_CUDA_DEVICE_H
#define MODFAST_CUDA_DEVICE_H

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../abi.h"

namespace modfast {

// While it lives, the device of `tensor` is the current one. Work goes to that device's current
// stream, on which torch also orders the reuse of freed memory: scratch tensors need no care.
class OnDevice {
 public:
  OnDevice(const char* op, const Tensor& tensor)
      : index_(checked_index(op, tensor)), guard_(index_) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }
  // out = a bᵀ, on the stream
  void multiply(const char*, const Tensor& a, const Tensor& b, const Tensor& out) const {
    multiply_into(a, b, out);
  }

 private:
  static int32_t checked_index(const char* op, const Tensor& tensor) {
    MODFAST_CHECK(tensor.is_cuda(), op, "tensors must be on a CUDA device");
    return tensor.get_device_index();
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace modfast

#endif  // MODFAST_CUDA_DEVICE_H
