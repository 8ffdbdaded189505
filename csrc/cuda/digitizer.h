// Ranges and rules on the device: what digitize and binned_histogram share.
#pragma once

#include "../codes.h"
#include "device.h"
#include "digitize_kernels.cuh"

namespace modfast {

struct DeviceRules {
  Tensor range;       // [1 or d, 2]
  Tensor uniform;     // memory of UniformBins [1 or d]
  Tensor thresholds;  // [1 or d, bins] of the notebook rule and of edges made in double, else empty
  int bins;
  bool looked_up = false;  // multiplication finds the nearest threshold

  template <class C>
  Rules<C> as() const {
    const C* t = static_cast<const C*>(thresholds.data_ptr());
    return Rules<C>{static_cast<const UniformBins<C>*>(uniform.data_ptr()),
                    thresholds.numel() > 0 ? t : nullptr, bins, looked_up};
  }
};

// Waits for the device only for thresholds that are made on the CPU.
DeviceRules find_rules(const char* op, const Tensor& x, const Values& values, int64_t bins,
                       const std::optional<Tensor>& range, bool per_column, const std::string& rule,
                       cudaStream_t stream);

// f(T{}) for the type of the values.
template <class F>
void with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float32: return f(float{});
    case Dtype::float64: return f(double{});
    case Dtype::bfloat16: return f(bfloat16{});
    case Dtype::float16: return f(float16{});
  }
}

// Blocks for a walk: few enough that what a block does once is shared by many values.
inline int64_t blocks_for(int64_t size) { return (size + 8191) / 8192; }

}  // namespace modfast
