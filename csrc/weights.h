// Lists of weights with their cluster labels, read from tensors and checked.
#pragma once

#include "abi.h"
#include "math/tiles.h"

namespace modfast {

// A weight as its kernel sees it: a row-major matrix with a label for each row and column, or,
// without labels, one row of all its elements.
struct Weight {
  void* data;
  const int32_t* rows;
  const int32_t* cols;
  Dtype dtype;
  Tiling tiling;

  bool labeled() const { return rows != nullptr; }
};

namespace detail {

inline const int32_t* labels(const Tensor& labels, const Tensor& weight, const char* op,
                             const char* name, size_t index) {
  MODFAST_CHECK(labels.scalar_type() == ScalarType::Int, op, name, "[", index,
                "] must be int32, got ", torch::headeronly::toString(labels.scalar_type()));
  MODFAST_CHECK(labels.dim() == 1 && labels.is_contiguous(), op, name, "[", index,
                "] must be a contiguous vector");
  MODFAST_CHECK(same_device(labels, weight), op, name, "[", index,
                "] must be on the weight's device");
  return static_cast<const int32_t*>(labels.data_ptr());
}

}  // namespace detail

// `unlabeled_allowed`: empty labels mean a weight without clusters.
inline std::vector<Weight> read_weights(const char* op, const Tensors& weights, const Tensors& rows,
                                        const Tensors& cols, bool unlabeled_allowed) {
  MODFAST_CHECK(!weights.empty(), op, "weights must not be empty");
  MODFAST_CHECK(weights.size() == rows.size() && weights.size() == cols.size(), op,
                "weights, rows and cols must have equal lengths, got ", weights.size(), ", ",
                rows.size(), " and ", cols.size());
  std::vector<Weight> result;
  result.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    MODFAST_CHECK(weight.is_contiguous(), op, "weights[", i, "] must be contiguous");
    MODFAST_CHECK(same_device(weight, weights[0]), op, "weights[", i,
                  "] must be on the device of weights[0]");
    const int64_t n_rows = rows[i].numel();
    const int64_t n_cols = cols[i].numel();
    const int64_t size = weight.numel();
    const bool unlabeled = unlabeled_allowed && n_rows == 0 && n_cols == 0;
    MODFAST_CHECK(unlabeled || n_rows * n_cols == size, op, "weights[", i, "] has ", size,
                  " elements, but ", n_rows, " row and ", n_cols, " column labels");
    Weight w{};
    w.data = weight.data_ptr();
    w.dtype = float_dtype(weight, op, "weights", i);
    w.tiling = unlabeled ? Tiling::of(1, size) : Tiling::of(n_rows, n_cols);
    if (!unlabeled) {
      w.rows = detail::labels(rows[i], weight, op, "rows", i);
      w.cols = detail::labels(cols[i], weight, op, "cols", i);
    }
    result.push_back(w);
  }
  return result;
}

// Pointers to tensors that go with the weights one to one: gradients, optimizer states.
inline std::vector<void*> read_companions(const char* op, const char* name,
                                          const Tensors& companions, const Tensors& weights) {
  MODFAST_CHECK(companions.size() == weights.size(), op, name, " must have one entry per weight, got ",
                companions.size(), " for ", weights.size());
  std::vector<void*> result;
  result.reserve(companions.size());
  for (size_t i = 0; i < companions.size(); ++i) {
    const Tensor& companion = companions[i];
    MODFAST_CHECK(companion.is_contiguous(), op, name, "[", i, "] must be contiguous");
    MODFAST_CHECK(companion.scalar_type() == weights[i].scalar_type(), op, name, "[", i, "] is ",
                  torch::headeronly::toString(companion.scalar_type()), ", its weight ",
                  torch::headeronly::toString(weights[i].scalar_type()));
    MODFAST_CHECK(companion.numel() == weights[i].numel(), op, name, "[", i, "] has ",
                  companion.numel(), " elements, its weight ", weights[i].numel());
    MODFAST_CHECK(same_device(companion, weights[i]), op, name, "[", i,
                  "] must be on the weight's device");
    result.push_back(companion.data_ptr());
  }
  return result;
}

// The sums tensor: float64 [n, 2], within clusters and total.
inline double* read_sums(const char* op, const Tensor& sums, const Tensors& weights) {
  MODFAST_CHECK(sums.scalar_type() == ScalarType::Double && sums.is_contiguous() &&
                    sums.numel() == static_cast<int64_t>(2 * weights.size()),
                op, "sums must be contiguous float64 of shape [", weights.size(), ", 2]");
  MODFAST_CHECK(same_device(sums, weights[0]), op, "sums must be on the weights' device");
  return static_cast<double*>(sums.data_ptr());
}

// Adam's step counts, one float32 number on the CPU for each weight: counted up, and read.
inline std::vector<double> count_steps(const char* op, const Tensors& steps, size_t n) {
  MODFAST_CHECK(steps.size() == n, op, "steps must have one entry per weight, got ", steps.size(),
                " for ", n);
  std::vector<double> result;
  result.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    MODFAST_CHECK(steps[i].scalar_type() == ScalarType::Float, op, "steps[", i, "] must be float32");
    const double step = number(steps[i], op, "steps") + 1.0;
    *static_cast<float*>(steps[i].mutable_data_ptr()) = static_cast<float>(step);
    result.push_back(step);
  }
  return result;
}

}  // namespace modfast
