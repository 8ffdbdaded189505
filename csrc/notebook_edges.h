// The thresholds of digitize that are tables, made on the CPU for CPU and GPU alike.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "codes.h"
#include "math/binning.h"
#include "math/number.h"

namespace modfast {

inline Tensor cpu_number(double x, ScalarType dtype) {
  const bool is_double = dtype == ScalarType::Double;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      0, nullptr, nullptr, is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
      aoti_torch_device_type_cpu(), 0, &handle));
  const Tensor number(handle);
  void* at = number.mutable_data_ptr();
  if (is_double) {
    *static_cast<double*>(at) = x;
  } else {
    *static_cast<float*>(at) = static_cast<float>(x);
  }
  return number;
}

// torch.linspace itself: how it rounds depends on the machine's vectors.
inline Tensor linspace(double lo, double hi, int64_t steps, ScalarType dtype) {
  using torch::stable::detail::from;
  const std::optional<ScalarType> type = dtype;
  std::array<StableIValue, 7> stack{from(cpu_number(lo, dtype)), from(cpu_number(hi, dtype)),
                                    from(steps), from(type), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linspace", "Tensor_Tensor", stack.data(),
                                               TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Of ranges [n, 2]: thresholds [n, bins], the edges raised to the next number, so that the edges < x
// are the thresholds <= x.
template <class C>
std::vector<C> notebook_thresholds(const C* limits, int64_t n_ranges, int bins) {
  constexpr ScalarType dtype = sizeof(C) == 8 ? ScalarType::Double : ScalarType::Float;
  std::vector<C> thresholds;
  thresholds.reserve(n_ranges * bins);
  for (int64_t r = 0; r < n_ranges; ++r) {
    const Tensor edges = linspace(limits[2 * r], limits[2 * r + 1], bins, dtype);
    const C* e = static_cast<const C*>(edges.data_ptr());
    for (int i = 0; i < bins; ++i) {
      thresholds.push_back(std::nextafter(e[i], std::numeric_limits<C>::infinity()));
    }
  }
  return thresholds;
}

// Of ranges [n, 2] in double, for values of a smaller type: thresholds [n, bins], numpy's edges as near as
// that type comes, of which the first is lo.
inline std::vector<float> wide_thresholds(const double* limits, int64_t n_ranges, int bins,
                                          Dtype dtype) {
  std::vector<float> thresholds;
  thresholds.reserve(n_ranges * bins);
  for (int64_t r = 0; r < n_ranges; ++r) {
    const double lo = limits[2 * r], hi = limits[2 * r + 1], width = bin_width(lo, hi, bins);
    for (int i = 0; i < bins; ++i) {
      const double edge = i == 0 ? lo : bin_edge(lo, hi, width, bins, i);
      thresholds.push_back(dtype == Dtype::bfloat16  ? nearest<bfloat16>(edge)
                           : dtype == Dtype::float16 ? nearest<float16>(edge)
                                                     : nearest<float>(edge));
    }
  }
  return thresholds;
}

}  // namespace modfast
