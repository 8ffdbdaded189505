// Lists of weights with their cluster labels, read from tensors and checked.
#pragma once

#include "abi.h"
#include "math/tiles.h"

namespace modfast {

// A weight as its kernel sees it: a row-major matrix, dimension 0 by all the others, with a label for
// each row and column; or, without labels, one row of all its elements.
struct Weight {
  void* data;
  const int32_t* rows;
  const int32_t* cols;
  bool labeled;
  Dtype dtype;
  Tiling tiling;
};

// `labels` holds row labels and then column labels of each of the first `n_labeled` weights, one
// after the other; the other weights have none.
inline std::vector<Weight> read_weights(const char* op, const Tensors& weights,
                                        const Tensor& labels, size_t n_labeled) {
  MODFAST_CHECK(!weights.empty(), op, "weights must not be empty");
  MODFAST_CHECK(n_labeled <= weights.size(), op, "sums must have at most one row per weight, got ",
                n_labeled, " for ", weights.size());
  MODFAST_CHECK(labels.scalar_type() == ScalarType::Int, op, "labels must be int32, got ",
                torch::headeronly::toString(labels.scalar_type()));
  MODFAST_CHECK(labels.is_contiguous() && same_device(labels, weights[0]), op,
                "labels must be contiguous and on the device of weights[0]");
  const int32_t* next = static_cast<const int32_t*>(labels.data_ptr());
  int64_t unread = labels.numel();
  std::vector<Weight> result;
  result.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    MODFAST_CHECK(weight.is_contiguous(), op, "weights[", i, "] must be contiguous");
    MODFAST_CHECK(i == 0 || same_device(weight, weights[0]), op, "weights[", i,
                  "] must be on the device of weights[0]");
    Weight w{};
    w.data = weight.data_ptr();
    w.dtype = float_dtype(weight, op, "weights", i);
    w.labeled = i < n_labeled;
    if (w.labeled) {
      const auto sizes = weight.sizes();
      MODFAST_CHECK(!sizes.empty(), op, "weights[", i, "] must have at least one dimension");
      int64_t n_cols = 1;
      for (size_t d = 1; d < sizes.size(); ++d) n_cols *= sizes[d];
      w.tiling = Tiling::of(sizes[0], n_cols);
      unread -= sizes[0] + n_cols;
      MODFAST_CHECK(unread >= 0, op, "labels must have one entry per row and column of each weight, got ",
                    labels.numel(), ", too few for weights[", i, "]");
      w.rows = next;
      w.cols = next + sizes[0];
      next = w.cols + n_cols;
    } else {
      w.tiling = Tiling::of(1, weight.numel());
    }
    result.push_back(w);
  }
  MODFAST_CHECK(unread == 0, op, "labels must have one entry per row and column of each weight, got ",
                labels.numel(), ", ", unread, " too many");
  return result;
}

// Whether a value computed from the weights is float64: if any of them is; else it is float32.
inline bool any_double(const std::vector<Weight>& weights) {
  bool any = false;
  for (const Weight& w : weights) any |= w.dtype == Dtype::float64;
  return any;
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

// The sums of the labeled weights, which come first: float64 [n_labeled, 2], within clusters and
// total.
struct Sums {
  double* data;
  size_t n_labeled;
};

// `exactly`: how many rows `sums` must have.
inline Sums read_sums(const char* op, const Tensor& sums, const Tensors& weights,
                      size_t exactly = 0) {
  MODFAST_CHECK(sums.scalar_type() == ScalarType::Double && sums.is_contiguous() && sums.dim() == 2 &&
                    sums.size(1) == 2,
                op, "sums must be contiguous float64 of shape [n_labeled, 2]");
  const size_t n_labeled = static_cast<size_t>(sums.size(0));
  MODFAST_CHECK(exactly == 0 || n_labeled == exactly, op, "sums must have ", exactly, " rows, got ",
                n_labeled);
  MODFAST_CHECK(weights.empty() || same_device(sums, weights[0]), op,
                "sums must be on the weights' device");
  return Sums{static_cast<double*>(sums.data_ptr()), n_labeled};
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
